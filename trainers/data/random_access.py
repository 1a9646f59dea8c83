"""Random numbers by address: the value depends on what it is for, never on what was drawn before.

A sequential generator would tie a sample to its worker, its rank and the steps before it. Here a
number is a hash of its name, such as (seed, epoch, sample, purpose): any rank can compute any
sample, and resuming at step s costs nothing. The mixer is the finaliser of splitmix64 (Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from enum import IntEnum, auto
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

Part = int | np.integer | NDArray[np.integer]

_MASK = 2**64 - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_FEISTEL_ROUNDS = 3


class Purpose(IntEnum):
    """What a number is for, so that no two uses share one. Append, never reorder."""

    SHORT = auto()
    TARGET = auto()
    ORDER = auto()
    SAMPLE = auto()
    SPLIT = auto()
    IS_RANDOM = auto()
    DOCUMENT = auto()
    SENTENCE = auto()
    MASK = auto()
    ACTION = auto()
    TOKEN = auto()
    DROPOUT = auto()
    NOISE = auto()
    TEXT = auto()
    ROW = auto()


def _as_uint64(part: Part) -> NDArray[np.uint64]:
    """Reinterpret whole numbers modulo 2**64, so that negative ones are valid parts too."""
    if isinstance(part, (int, np.integer)):
        return np.asarray([int(part) & _MASK], dtype=np.uint64)
    return np.asarray(part).astype(np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Splitmix64's finaliser, in place: every input bit changes every output bit with odds 1/2."""
    shifted = x >> _SHIFTS[0]
    x ^= shifted
    x *= _FACTORS[0]
    np.right_shift(x, _SHIFTS[1], out=shifted)
    x ^= shifted
    x *= _FACTORS[1]
    np.right_shift(x, _SHIFTS[2], out=shifted)
    x ^= shifted
    return x


def hash64(*parts: Part) -> NDArray[np.uint64]:
    """Hash whole numbers and arrays of them, broadcast to one shape of at least one dimension.

    The order of the parts matters. Put the widest array last: the shorter ones are then mixed at
    their own size, and hash64(key, x) with an earlier hash as `key` is one mix for each x.
    """
    num_known = 0
    while num_known < len(parts) and isinstance(parts[num_known], (int, np.integer)):
        num_known += 1
    state = _hash_of_numbers(*(int(part) for part in parts[:num_known])).copy()  # type: ignore[arg-type]
    for part in parts[num_known:]:
        state = _next(state, _as_uint64(part))
    return state


@lru_cache(maxsize=1024)
def _hash_of_numbers(*parts: int) -> NDArray[np.uint64]:
    state = np.zeros(1, dtype=np.uint64)
    for part in parts:
        state = _next(state, _as_uint64(part))
    return state


def _next(state: NDArray[np.uint64], part: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return _mix((state + _GOLDEN) ^ part)


def uniform(*parts: Part) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits."""
    return (hash64(*parts) >> np.uint64(11)) * 2.0**-53


def below(bound: Part, *parts: Part) -> NDArray[np.int64]:
    """Whole numbers in [0, bound); `bound` (at least 1) broadcasts against the parts.

    The bias of the modulo is bound / 2**64: nothing at the sizes of a corpus.
    """
    return (hash64(*parts) % _as_uint64(bound)).astype(np.int64)


def permute(index: Part, size: int, *key: Part) -> NDArray[np.int64]:
    """Send each index in [0, size) to its place in the permutation of [0, size) that `key` names.

    A bijection for each key, in O(1) memory: a Feistel network over a grid of rows x columns that
    is the smallest square-like one holding `size` cells, walked on while it lands outside (rare:
    the grid has less than one row too many). `key` parts broadcast against `index`. Raises
    ValueError for an index outside [0, size).
    """
    place = np.atleast_1d(np.asarray(index, dtype=np.int64))
    if size < 1 or (place.size and (place.min() < 0 or place.max() >= size)):
        raise ValueError(f"permute: every index must lie in [0, {size}), got {index}")
    place, name = np.broadcast_arrays(place, hash64(size, *key))
    # What hash64(name, turn, x) has mixed before x, for all turns at once.
    keys = hash64(name, np.arange(2 * _FEISTEL_ROUNDS).reshape(-1, *(1,) * name.ndim))
    place = _feistel(place, size, keys)
    while (outside := place >= size).any():
        place[outside] = _feistel(place[outside], size, keys[:, outside])
    return place


def _feistel(cell: NDArray[np.int64], size: int, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    rows = isqrt(size - 1) + 1
    columns = -(-size // rows)
    row, column = np.divmod(cell.astype(np.uint64), np.uint64(columns))
    # Each half turn adds a function of one coordinate to the other, which can be undone: so the
    # whole is a bijection whatever the hash is.
    for turn in range(0, len(keys), 2):
        row = (row + _next(keys[turn], column) % np.uint64(rows)) % np.uint64(rows)
        column = (column + _next(keys[turn + 1], row) % np.uint64(columns)) % np.uint64(columns)
    return (row * np.uint64(columns) + column).astype(np.int64)
