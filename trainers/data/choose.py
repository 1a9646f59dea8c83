"""Which documents are taken, and which of them are held out: decided by the hash of their content.

So equal documents stay together, and documents that are added move no others. Of a small corpus the
smallest hashes are held out, two at least: a random next sentence needs another document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.data.random_access import uniform
from trainers.data.shards import Shard
from trainers.errors import DataError

MIN_DOCUMENTS = 2
VOCABULARY_BYTES = 2**30  # of text that a vocabulary is trained on; more would only cost memory

# What a number that is derived from the hash of a document is for.
_THIN, _VOCABULARY = 1, 2


@dataclass(frozen=True)
class Choice:
    """Which documents of each shard are taken and held out."""

    rates: tuple[float, ...]  # of each group, the share of its documents that is taken
    threshold: int  # smaller hashes are held out
    vocabulary_rate: float  # the share of the training documents that the vocabulary is made from

    def taken(self, shard: Shard, group: int) -> NDArray[np.bool_]:
        """Whether each document of a shard takes part at all."""
        return _thinned(shard.hashes, _THIN, self.rates[group])

    def heldout(self, shard: Shard) -> NDArray[np.bool_]:
        """Whether each document of a shard is held out, if it takes part."""
        return shard.hashes < np.uint64(self.threshold)

    def for_vocabulary(self, shard: Shard, group: int) -> NDArray[np.bool_]:
        """Whether the vocabulary is trained on each document of a shard."""
        sampled = _thinned(shard.hashes, _VOCABULARY, self.vocabulary_rate)
        return self.taken(shard, group) & ~self.heldout(shard) & sampled


def _thinned(hashes: NDArray[np.uint64], purpose: int, rate: float) -> NDArray[np.bool_]:
    if rate >= 1:
        return np.ones(len(hashes), dtype=bool)
    return uniform(purpose, hashes) < rate


def choose(
    name: str, shards: Sequence[tuple[Shard, int]], weights: Sequence[float], fraction: float
) -> Choice:
    """Decide about all documents of shards, each with the number of its group.

    `weights`: the share of the text (bytes) that each group is to have; empty: all is taken. The
    group that is scarcest for its weight is taken whole. `fraction` of the documents is held out;
    0: none, and all are in the other part. Raises DataError when a part would have less than
    MIN_DOCUMENTS documents that differ, or all of it nothing.
    """
    rates = _rates(name, shards, weights)
    choice = Choice(rates, int(fraction * 2**64), 1.0)
    counts, smallest, num_bytes = _count(choice, shards)
    if fraction and counts[1] < MIN_DOCUMENTS < len(smallest):
        choice = Choice(rates, int(smallest[MIN_DOCUMENTS]), 1.0)
        counts, _, num_bytes = _count(choice, shards)
    if counts[0] == 0:
        raise DataError(f"{name}: there is no document in it")
    if fraction and min(counts) < MIN_DOCUMENTS:
        raise DataError(
            f"{name}: {sum(counts)} documents, {counts[0]} to train on and {counts[1]} held out "
            f"(data.heldout_fraction={fraction}), but each part needs {MIN_DOCUMENTS} that "
            "differ; add text or change the fraction; in a .txt file blank lines separate documents"
        )
    return Choice(rates, choice.threshold, min(1.0, VOCABULARY_BYTES / num_bytes))


def _rates(
    name: str, shards: Sequence[tuple[Shard, int]], weights: Sequence[float]
) -> tuple[float, ...]:
    if not weights:
        return (1.0,) * (1 + max((group for _, group in shards), default=0))
    sizes = np.zeros(len(weights))
    for shard, group in shards:
        sizes[group] += len(shard.texts)
    if not sizes.all():
        empty = int(np.flatnonzero(sizes == 0)[0])
        raise DataError(f"{name}: source {empty + 1} of the mix has no text to be weighed")
    wanted = np.asarray(weights) / sizes
    return tuple(float(rate) for rate in wanted / wanted.max())


def _count(
    choice: Choice, shards: Sequence[tuple[Shard, int]]
) -> tuple[list[int], NDArray[np.uint64], int]:
    """Documents in each part, the smallest hashes in order, and the bytes to train on."""
    counts, num_bytes = [0, 0], 0
    smallest = np.zeros(0, dtype=np.uint64)
    for shard, taken, heldout in _each(choice, shards):
        counts[0] += int((taken & ~heldout).sum())
        counts[1] += int((taken & heldout).sum())
        num_bytes += int(shard.document_bytes()[taken & ~heldout].sum())
        smallest = np.unique(np.concatenate([smallest, shard.hashes[taken]]))[: MIN_DOCUMENTS + 1]
    return counts, smallest, num_bytes


def _each(
    choice: Choice, shards: Sequence[tuple[Shard, int]]
) -> Iterator[tuple[Shard, NDArray[np.bool_], NDArray[np.bool_]]]:
    for shard, group in shards:
        yield shard, choice.taken(shard, group), choice.heldout(shard)
