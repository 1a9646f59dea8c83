"""What a run learns from and is judged by, ready to be asked for batches."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainers.config import Config
from trainers.data.batches import Batches
from trainers.data.causal import CausalBatches
from trainers.data.masked import MaskedLMBatches
from trainers.data.needs import needs_of
from trainers.data.packed import PackedMLMBatches
from trainers.data.prepare import Prepared, look_for, prepare
from trainers.data.span_corruption import SpanCorruptionBatches
from trainers.data.tokenizer import SpecialIds, fingerprint
from trainers.data.words import num_words
from trainers.errors import DataError
from trainers.phases import phase_configs, shortest_length

COUNTED_TOKENS = 2**24  # enough for frequencies, and read in a moment
HELDOUT_SEED = 0  # the same held-out masks and pairs in every run, so that runs compare


@dataclass(frozen=True)
class Splits:
    """What is learned from and judged by; the fingerprints name text and tokenizer."""

    train: Batches
    heldout: Batches
    tokenizer: Tokenizer
    special: SpecialIds
    fingerprint: str
    tokenizer_fingerprint: str
    token_counts: NDArray[np.int64]  # of each entry of the vocabulary, in the head of the data

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, special tokens included."""
        return self.tokenizer.get_vocab_size()

    def num_words(self, batch: Mapping[str, NDArray[np.int64]]) -> int | None:
        """How many words the labels of a batch spell; None where the labels are no running text."""
        if not isinstance(self.heldout, CausalBatches):
            return None
        return num_words(self.tokenizer, self.heldout.eos, batch)


def look_for_text(config: Config) -> None:
    """Raise DataError or ConfigError for what `open_phases` would not find, before it reads."""
    look_for(config.data, needs_of(config.objective, shortest_length(config)))


def open_phases(config: Config) -> tuple[Splits, ...]:
    """Open (or make) the prepared data of each phase, one store for all of them.

    Raises:
        DataError: the text is missing, malformed, or has fewer samples than one global batch.
    """
    # What is prepared is the same for each: to look for it is to hash all files of the text.
    prepared = prepare(config.data, needs_of(config.objective, shortest_length(config)))
    return tuple(_phase(inside, prepared) for inside in phase_configs(config))


def open_splits(config: Config, shortest: int | None = None) -> Splits:
    """The prepared data of one phase; sentences are cut to fit sequences of `shortest` tokens."""
    return _phase(config, prepare(config.data, needs_of(config.objective, shortest)))


def _phase(config: Config, prepared: Prepared) -> Splits:
    train = _batches(config, prepared, "train", config.run.seed)
    heldout = _batches(config, prepared, "heldout", HELDOUT_SEED)
    if train.num_samples < config.batch.global_size:
        raise DataError(
            f"the data gives {train.num_samples} samples of {config.objective.sequence_length} "
            f"tokens, fewer than batch.global_size={config.batch.global_size}: "
            "add text, or set a smaller batch.global_size"
        )
    return _splits(prepared, train, heldout)


def open_whole(config: Config) -> Splits:
    """All the text of `config.data` as the held-out part, for a model that is trained already."""
    prepared = prepare(replace(config.data, heldout_fraction=0.0), needs_of(config.objective))
    whole = replace(prepared, heldout=prepared.train)
    batches = _batches(config, whole, "heldout", HELDOUT_SEED)
    return _splits(prepared, batches, batches)


def _splits(prepared: Prepared, train: Batches, heldout: Batches) -> Splits:
    return Splits(
        train,
        heldout,
        prepared.tokenizer,
        prepared.special,
        prepared.fingerprint,
        fingerprint(prepared.tokenizer),
        np.bincount(
            prepared.train.tokens[:COUNTED_TOKENS], minlength=prepared.tokenizer.get_vocab_size()
        ),
    )


def _batches(config: Config, prepared: Prepared, part: str, seed: int) -> Batches:
    vocab_size = prepared.tokenizer.get_vocab_size()
    store = getattr(prepared, part)
    match config.objective.name:
        case "masked_lm":
            single = MaskedLMBatches(store, prepared.special, vocab_size, config.objective, seed)
            # What is judged by stays unpacked: the same samples, with packing or without.
            if not config.objective.packing or part == "heldout":
                return single
            return PackedMLMBatches(
                single, prepared.special.pad, config.objective, seed, prepared.folder
            )
        case "causal_lm":
            return CausalBatches(store, prepared.special.eos, config.objective, seed)
        case "span_corruption":
            return SpanCorruptionBatches(store, prepared.special, config.objective, seed)
