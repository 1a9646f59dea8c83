"""From the configuration to model and optimizer: the only place where names become classes."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from came import CAME, LAMB, SM3, Adafactor
from trainers.config import Config, OptimizerConfig, RuntimeConfig
from trainers.data.splits import Splits
from trainers.errors import ConfigError
from trainers.models import build_model, set_unigram_bias
from trainers.objectives.causal_lm import CausalLM
from trainers.objectives.masked_lm import MaskedLM
from trainers.objectives.span_corruption import SpanCorruption
from trainers.pretrained import load_pretrained


def build_module(config: Config, data: Splits) -> nn.Module:
    """The model inside its objective, in float32: `forward` takes a batch and gives `Sums`.

    Raises ConfigError when the model on disk that is the start has fewer entries than the data's
    vocabulary.
    """
    if config.model.path is None:
        model = build_model(config.model, data.vocab_size, data.special, config.run.seed)
        if config.model.unigram_bias:
            set_unigram_bias(model, data.token_counts)
        return as_objective(config.objective.name, model)
    # What transformers has loaded is set to judge, and would be measured so before it trains.
    model = load_pretrained(config.model, config.run.seed).train()
    if data.vocab_size > model.config.vocab_size:
        raise ConfigError(
            f"data.tokenizer={config.data.tokenizer} has {data.vocab_size} entries and "
            f"model.path={config.model.path} knows {model.config.vocab_size}: give it its own"
        )
    return as_objective(config.objective.name, model)


def as_objective(name: str, model: PreTrainedModel) -> nn.Module:
    """`model` inside the objective `name`."""
    kinds = {"masked_lm": MaskedLM, "causal_lm": CausalLM, "span_corruption": SpanCorruption}
    return kinds[name](model)


def build_optimizer(
    config: OptimizerConfig, runtime: RuntimeConfig | None, module: nn.Module
) -> torch.optim.Optimizer:
    """The optimizer, with weight decay for matrices and none for biases and norms (BERT).

    `runtime` says which kernel; None takes the fastest at hand.
    """
    trained = [param for param in module.parameters() if param.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    lr, betas, eps = config.lr, config.betas, config.eps
    match config.name:
        case "adamw":
            pair = (betas[0], betas[1])
            return torch.optim.AdamW(groups, lr=lr, betas=pair, eps=eps[0], fused=True)
        case "lamb":
            return LAMB(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps[0])
        case "sm3":
            return SM3(groups, lr=lr, beta1=betas[0], eps=eps[0])
        case "adafactor":
            return Adafactor(
                groups,
                lr=lr,
                eps=(eps[0], eps[1]),
                clip_threshold=config.clip_threshold,
                beta1=betas[0] if betas else None,
                scale_parameter=bool(config.scale_parameter),
                relative_step=False,  # the schedule says how fast
            )
        case "came":
            return CAME(
                groups,
                lr=lr,
                betas=(betas[0], betas[1], betas[2]),
                eps=(eps[0], eps[1]),
                clip_threshold=config.clip_threshold,
                bias_correction=config.bias_correction,
                momentum=config.momentum or "float32",
                kernel=runtime.kernel if runtime else "auto",
            )
