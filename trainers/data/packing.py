"""Which samples share a row: best fit on the histogram of their lengths.

Krell, Kosec, Perez and Fitzgibbon 2021, "Efficient sequence packing without cross-contamination",
section 3: the longest samples first, each into the row that it fills best. Samples of one length
are alike, so that all of them are placed at once: the work depends on the length of a row, not on
the number of samples. The rows depend on the lengths alone, neither on a seed nor on an epoch.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainers.data.random_access import Purpose, hash64

Ints = NDArray[np.int64]
Kind = tuple[tuple[int, ...], int]  # lengths of the samples in a row, and how many such rows


@dataclass(frozen=True)
class Rows:
    """Row i holds the samples `samples[starts[i]:starts[i + 1]]`, in this order."""

    starts: Ints
    samples: Ints

    @property
    def num_rows(self) -> int:
        return len(self.starts) - 1


def pack(lengths: Ints, capacity: int) -> Rows:
    """Every sample in one row, the `lengths` of a row together at most `capacity`.

    Each length must lie in [1, capacity]. Which of the samples of a length share a row is drawn
    once, so that neighbours in the corpus are not neighbours here.
    """
    kinds = best_fit(np.bincount(lengths, minlength=capacity + 1), capacity)
    shuffled = hash64(Purpose.ROW, np.arange(len(lengths), dtype=np.uint64))
    by_length = np.lexsort((shuffled, lengths))
    taken = np.searchsorted(lengths, np.arange(capacity + 1), sorter=by_length)
    samples, sizes = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for row, count in kinds:
        columns = []
        for length in row:
            columns.append(by_length[taken[length] : taken[length] + count])
            taken[length] += count
        samples.append(np.stack(columns, axis=1).ravel())
        sizes.append(np.full(count, len(row)))
    starts = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
    return Rows(starts, np.concatenate(samples))


def best_fit(counts: Ints, capacity: int) -> list[Kind]:
    """Kinds of rows that hold `counts[n]` samples of each length n."""
    open_rows: dict[int, list[Kind]] = {}
    rooms: list[int] = []  # the keys of `open_rows`, ascending
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            place = bisect_left(rooms, length)
            if place < len(rooms):
                placed, kinds = _fill(open_rows[rooms[place]], length, left)
                if not open_rows[rooms[place]]:
                    del open_rows[rooms.pop(place)]
            else:
                placed, kinds = left, list(_new_rows(length, left, capacity))
            for row, count in kinds:
                room = capacity - sum(row)
                if room not in open_rows:
                    insort(rooms, room)
                open_rows.setdefault(room, []).append((row, count))
            left -= placed
    return [kind for room in rooms for kind in open_rows[room]]


def _fill(kinds: list[Kind], length: int, left: int) -> tuple[int, list[Kind]]:
    """Put samples into rows of the last kind, which is shortened; returns how many, and where."""
    row, count = kinds.pop()
    placed = min(count, left)
    if placed < count:
        kinds.append((row, count - placed))
    return placed, [((*row, length), placed)]


def _new_rows(length: int, left: int, capacity: int) -> Iterator[Kind]:
    """Rows of samples of one length: only rows of their own have room for them by now."""
    whole, rest = divmod(left, capacity // length)
    if whole:
        yield (length,) * (capacity // length), whole
    if rest:
        yield (length,) * rest, 1
