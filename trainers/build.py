"""From the configuration to model and optimizer: the only place where names become classes."""

from typing import Any

import torch
from torch import nn

from came import CAME
from trainers.config import Config, OptimizerConfig
from trainers.data.splits import Splits
from trainers.models import build_bert, set_unigram_bias
from trainers.objectives.masked_lm import MaskedLM


def build_module(config: Config, data: Splits) -> nn.Module:
    """The model inside its objective, in float32."""
    model = build_bert(config.model, data.vocab_size, data.pad_id, config.run.seed)
    if config.model.unigram_bias:
        set_unigram_bias(model, data.token_counts)
    return MaskedLM(model)


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer, with weight decay for matrices and none for biases and norms (BERT)."""
    trained = [param for param in module.parameters() if param.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        beta1, beta2 = config.betas[:2]
        return torch.optim.AdamW(
            groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps[0], fused=True
        )
    beta1, beta2, beta3 = config.betas
    return CAME(
        groups,
        lr=config.lr,
        betas=(beta1, beta2, beta3),
        eps=(config.eps[0], config.eps[1]),
        clip_threshold=config.clip_threshold,
    )
