"""What a run learns from and is judged by, ready to be asked for batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.config import Config
from trainers.data.batches import MaskedLMBatches
from trainers.data.needs import needs_of
from trainers.data.prepare import Prepared, prepare
from trainers.data.tokenizer import fingerprint
from trainers.errors import DataError

COUNTED_TOKENS = 2**24  # enough for frequencies, and read in a moment
HELDOUT_SEED = 0  # the same held-out masks and pairs in every run, so that runs compare


@dataclass(frozen=True)
class Splits:
    """What is learned from and judged by; the fingerprints name text and tokenizer."""

    train: MaskedLMBatches
    heldout: MaskedLMBatches
    vocab_size: int
    pad_id: int
    fingerprint: str
    tokenizer_fingerprint: str
    token_counts: NDArray[np.int64]  # of each entry of the vocabulary, in the head of the data


def open_splits(config: Config) -> Splits:
    """Open (or make) the prepared data.

    Raises:
        DataError: the text is missing, malformed, or has fewer samples than one global batch.
    """
    prepared = prepare(config.data, needs_of(config.objective))
    train = _batches(config, prepared, "train", config.run.seed)
    heldout = _batches(config, prepared, "heldout", HELDOUT_SEED)
    if train.num_samples < config.batch.global_size:
        raise DataError(
            f"the data gives {train.num_samples} samples of {config.objective.sequence_length} "
            f"tokens, fewer than batch.global_size={config.batch.global_size}: "
            "add text, or set a smaller batch.global_size"
        )
    return Splits(
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
