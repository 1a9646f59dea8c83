"""Which tokens a sample is made of: runs of sentences, and pairs of them.

As in BERT's create_pretraining_data.py, with the differences that make a sample a pure function of
its number: runs are fixed, only the split point and the random half are drawn anew in each epoch;
runs stop before the limit instead of being cut at it; the random half is made of whole sentences
too, so that no cut in mid-sentence gives the answer away.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.data.random_access import Part, Purpose, below, uniform
from trainers.data.store import Store
from trainers.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """Token ranges of the two segments of each sample; `second_size` is 0 for single segments."""

    first: Ints
    first_size: Ints
    second: Ints
    second_size: Ints
    is_random: NDArray[np.bool_]


@dataclass(frozen=True)
class Chunks:
    """Runs of whole sentences: sample i is the sentences [start[i], end[i]) of document[i]."""

    start: Ints
    end: Ints
    document: Ints


def build_chunks(store: Store, limit: int, short_fraction: float) -> Chunks:
    """Cut each document greedily into runs of at most `limit` tokens; every sentence lies in one.

    A run aims at `limit` tokens, or with probability `short_fraction` at a length drawn from [2,
    limit], so that a model meets short inputs too (and keeps at least one sentence). Raises
    DataError when the store has sentences longer than the limit.
    """
    if store.meta.max_sentence_tokens > limit:
        raise DataError(
            f"prepared sentences have up to {store.meta.max_sentence_tokens} tokens, "
            f"but the sequence length leaves room for {limit}: prepare the data for this length"
        )
    following = _next_starts(store, limit, short_fraction)
    # All documents advance together: the number of rounds is that of the runs in the longest one.
    current = np.asarray(store.document_starts[:-1])
    last = np.asarray(store.document_starts[1:])
    starts, ends = [], []
    while current.size:
        starts.append(current)
        current = following[current]
        ends.append(current)
        unfinished = current < last
        current, last = current[unfinished], last[unfinished]
    start, end = np.sort(np.concatenate(starts)), np.sort(np.concatenate(ends))
    document = np.searchsorted(store.document_starts, start, side="right") - 1
    return Chunks(start, end, document)


def _next_starts(store: Store, limit: int, short_fraction: float) -> Ints:
    """For each sentence, where the run that starts with it ends."""
    sentence = np.arange(store.meta.num_sentences)
    is_short = uniform(Purpose.SHORT, sentence) < short_fraction
    target = np.where(is_short, 2 + below(limit - 1, Purpose.TARGET, sentence), limit)
    starts = store.sentence_starts
    end = np.searchsorted(starts, starts[:-1] + target, side="right") - 1
    document_end = np.repeat(store.document_starts[1:], np.diff(store.document_starts))
    return np.minimum(np.maximum(end, sentence + 1), document_end)


def single_spans(store: Store, chunks: Chunks, sample: Ints) -> Spans:
    """Samples of one segment: the whole run."""
    first = store.sentence_starts[chunks.start[sample]]
    size = store.sentence_starts[chunks.end[sample]] - first
    none = np.zeros_like(first)
    return Spans(first, size, none, none, none.astype(bool))


def pair_spans(store: Store, chunks: Chunks, sample: Ints, key: Part, limit: int) -> Spans:
    """Samples of two segments, together at most `limit` tokens.

    A run is split between two of its sentences at random. With probability 1/2 its second half is
    kept, else it is replaced by sentences from another document that fill the same room; a run of
    one sentence has nothing to keep, so that its second segment is always random. `key` names the
    random numbers: one hash for each sample.
    """
    starts = store.sentence_starts
    start, end = chunks.start[sample], chunks.end[sample]
    is_single = end - start == 1
    split = start + 1 + below(np.maximum(end - start - 1, 1), key, Purpose.SPLIT)
    first_size = starts[split] - starts[start]
    is_random = is_single | (uniform(key, Purpose.IS_RANDOM) < 0.5)

    room = np.where(is_single, limit, starts[end] - starts[start]) - first_size
    random_start, random_end = _random_run(store, chunks.document[sample], room, key)
    second_start = np.where(is_random, random_start, split)
    second_end = np.where(is_random, random_end, end)
    second_size = starts[second_end] - starts[second_start]

    # The longer segment gives way, as in BERT: it keeps what the other leaves, at least half.
    first_size = np.minimum(first_size, np.maximum(limit - second_size, (limit + 1) // 2))
    second_size = np.minimum(second_size, limit - first_size)
    return Spans(starts[start], first_size, starts[second_start], second_size, is_random)


def _random_run(store: Store, document: Ints, room: Ints, key: Part) -> tuple[Ints, Ints]:
    """Sentences from a random place in another document: at least one, else what has room."""
    other = below(store.meta.num_documents - 1, key, Purpose.DOCUMENT)
    other += other >= document
    begin, end = store.document_starts[other], store.document_starts[other + 1]
    start = begin + below(end - begin, key, Purpose.SENTENCE)
    fitting = (
        np.searchsorted(store.sentence_starts, store.sentence_starts[start] + room, side="right")
        - 1
    )
    return start, np.clip(fitting, start + 1, end)
