"""Spans of noise as in T5: what is taken out of a text, and what is left of it.

    text      a b c d e f g h i j            noise spans  c d | g
    inputs    a b <0> e f <1> h i j </s>     one sentinel in the place of each span
    targets   <0> c d <1> g </s>             each span behind its sentinel

Raffel et al. 2020, section 3.1.4; the lengths and the draw are those of `random_spans_helper` and
`random_spans_noise_mask` of the published code (google-research/text-to-text-transfer-transformer,
t5/data/preprocessors.py). All samples have the same lengths, so that nothing is padded.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.data.random_access import Part, Purpose, hash64
from trainers.span_lengths import SpanLengths

Ints = NDArray[np.int64]


def draw_spans(key: Part, lengths: SpanLengths) -> tuple[Ints, Ints]:
    """Where the spans of each sample start and how long they are, both [B, spans], ascending.

    Text and noise take turns; each is cut into `spans` pieces, every way as likely as any other.
    Text comes first. `key` [B] names the random numbers: one hash for each sample.
    """
    size = _compositions(key, Purpose.NOISE, lengths.noise, lengths.spans)
    text = _compositions(key, Purpose.TEXT, lengths.text - lengths.noise, lengths.spans)
    return np.cumsum(text + size, axis=1) - size, size


def _compositions(key: Part, purpose: Purpose, total: int, parts: int) -> Ints:
    """`total` as a sum of `parts` numbers, 1 or more each: [B, parts]."""
    name = hash64(key, purpose)[:, None]
    if parts == 1:
        return np.full(name.shape, total)
    order = hash64(name, np.arange(total - 1, dtype=np.uint64))
    # The cuts are the places of the smallest hashes: every choice of places is as likely.
    cuts = np.sort(np.argpartition(order, parts - 2, axis=1)[:, : parts - 1], axis=1)
    ends = np.full((len(cuts), 1), total)
    return np.diff(np.concatenate([0 * ends, cuts + 1, ends], axis=1))


def respect_borders(start: Ints, size: Ints, is_border: NDArray[np.bool_]) -> Ints:
    """The starts [B, spans] of spans moved so that none holds a border of documents.

    A span on a border (`is_border` [B, text]: the eos of a document) moves left until it ends
    before it, and moves the spans in its way; where the sample's start leaves no room for that,
    they move right. Lengths and numbers stay as drawn, and a token of text at least between two
    spans. A sample whose documents are too short for its spans keeps them where they were: there a
    span runs over a border, as T5's own do.
    """
    moved = start.copy()
    for turned in (False, True):
        rows = np.flatnonzero(_on_border(moved, size, is_border))
        spans = moved[rows], size[rows], is_border[rows]
        if turned:
            spans = _turned(*spans)
        spans = _move_left(*spans), *spans[1:]
        moved[rows] = _turned(*spans)[0] if turned else spans[0]
    return moved


def _on_border(start: Ints, size: Ints, is_border: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which samples have a span on a border: [B]."""
    floor = _floor(is_border)
    return (np.take_along_axis(floor, start + size - 1, axis=1) > start).any(axis=1)


def _floor(is_border: NDArray[np.bool_]) -> Ints:
    """For each token, where a span that ends with it can start at the earliest: [B, text]."""
    behind = np.where(is_border, np.arange(1, is_border.shape[1] + 1), 0)
    return np.maximum.accumulate(behind, axis=1)


def _turned(start: Ints, size: Ints, is_border: NDArray[np.bool_]) -> tuple[Ints, Ints, Any]:
    """The same spans read from the end of the text."""
    end = is_border.shape[1] - start - size
    return end[:, ::-1], size[:, ::-1], is_border[:, ::-1]


def _move_left(start: Ints, size: Ints, is_border: NDArray[np.bool_]) -> Ints:
    """New starts [B, spans], found from the last span to the first; the old ones without room."""
    row, floor = np.arange(len(start)), _floor(is_border)
    moved = np.empty_like(start)
    fits = np.ones(len(start), dtype=bool)
    room = np.full(len(start), is_border.shape[1])
    for span in reversed(range(start.shape[1])):
        length = size[:, span]
        stop = np.minimum(start[:, span] + length, room)
        while True:
            fits &= stop >= length
            stop = np.where(fits, stop, length)  # lost, but a valid place
            first = floor[row, stop - 1]
            blocked = fits & (first > stop - length)
            if not blocked.any():
                break
            stop = np.where(blocked, first - 1, stop)
        moved[:, span] = stop - length
        room = moved[:, span] - 1
    return np.where(fits[:, None], moved, start)


def corrupt(text: Ints, start: Ints, size: Ints, sentinels: Ints, eos: int) -> tuple[Ints, Ints]:
    """Inputs and targets, [B, inputs] and [B, targets], of `text` [B, text] without the spans.

    `sentinels` stand for the spans in their order; every sample has the same number of spans and
    of tokens in them.
    """
    num_samples, num_spans = start.shape
    row = np.arange(num_samples)[:, None]
    edges = np.zeros((num_samples, text.shape[1] + 1), dtype=np.int64)
    edges[row, start] += 1
    is_start = edges[:, :-1] > 0
    edges[row, start + size] -= 1
    is_noise = np.cumsum(edges[:, :-1], axis=1) > 0
    names = np.broadcast_to(sentinels[:num_spans], start.shape)

    visible = text.copy()
    visible[row, start] = names
    inputs = visible[~is_noise | is_start].reshape(num_samples, -1)

    is_name = np.zeros((num_samples, int(size[0].sum()) + num_spans), dtype=bool)
    is_name[row, np.cumsum(size, axis=1) - size + np.arange(num_spans)] = True
    targets = np.empty(is_name.shape, dtype=np.int64)
    targets[is_name] = names.ravel()
    targets[~is_name] = text[is_noise]

    end = np.full((num_samples, 1), eos)
    return np.concatenate([inputs, end], axis=1), np.concatenate([targets, end], axis=1)
