"""From the configuration to the objects of a run: the only place where names become classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from came import CAME
from trainers.config import Config, OptimizerConfig
from trainers.data.batches import MaskedLMBatches
from trainers.data.prepare import Prepared, prepare
from trainers.data.tokenizer import fingerprint
from trainers.errors import ConfigError, DataError
from trainers.models import build_bert, set_unigram_bias
from trainers.objectives.masked_lm import MaskedLM

COUNTED_TOKENS = 2**24  # enough for frequencies, and read in a moment
HELDOUT_SEED = 0  # the same held-out masks and pairs in every run, so that runs compare


@dataclass(frozen=True)
class Data:
    """What is learned from and judged by; the fingerprints name text and tokenizer."""

    train: MaskedLMBatches
    heldout: MaskedLMBatches
    vocab_size: int
    pad_id: int
    fingerprint: str
    tokenizer_fingerprint: str
    token_counts: NDArray[np.int64]  # of each entry of the vocabulary, in the head of the data


def build_data(config: Config) -> Data:
    """Open (or make) the prepared data.

    Raises:
        DataError: the text is missing, malformed, or has fewer samples than one global batch.
    """
    prepared = prepare(config.data, config.objective.sequence_length)
    train = _batches(config, prepared, "train", config.run.seed)
    heldout = _batches(config, prepared, "heldout", HELDOUT_SEED)
    if train.num_samples < config.batch.global_size:
        raise DataError(
            f"the data gives {train.num_samples} samples of {config.objective.sequence_length} "
            f"tokens, fewer than batch.global_size={config.batch.global_size}: "
            "add text, or set a smaller batch.global_size"
        )
    return Data(
        train,
        heldout,
        prepared.tokenizer.get_vocab_size(),
        prepared.special.pad,
        prepared.fingerprint,
        fingerprint(prepared.tokenizer),
        np.bincount(
            prepared.train.tokens[:COUNTED_TOKENS], minlength=prepared.tokenizer.get_vocab_size()
        ),
    )


def _batches(config: Config, prepared: Prepared, part: str, seed: int) -> MaskedLMBatches:
    vocab_size = prepared.tokenizer.get_vocab_size()
    store = getattr(prepared, part)
    return MaskedLMBatches(store, prepared.special, vocab_size, config.objective, seed)


def build_module(config: Config, data: Data) -> nn.Module:
    """The model inside its objective, in float32."""
    if config.objective.sequence_length > config.model.max_positions:
        raise ConfigError(
            f"objective.sequence_length={config.objective.sequence_length} is longer than "
            f"model.max_positions={config.model.max_positions}"
        )
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
