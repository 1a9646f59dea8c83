"""Rows of samples: every sample once, none too many, and next to nothing left empty."""

import numpy as np
import pytest

from trainers.data.packing import best_fit, pack

CAPACITY = 512


def text_lengths(num_samples: int, seed: int = 0) -> np.ndarray:
    """Lengths as chunks of an encyclopedia have: many short articles, and full chunks of long."""
    generator = np.random.default_rng(seed)
    documents = np.exp(generator.normal(5.0, 1.1, num_samples)).astype(int) + 5
    rest = documents % CAPACITY
    return np.concatenate([np.full((documents // CAPACITY).sum(), 500), rest[rest > 2]])


def fullness(lengths, rows) -> float:
    return lengths.sum() / (rows.num_rows * CAPACITY)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("capacity", [1, 7, 64, 512])
def test_every_sample_lies_in_one_row_that_has_room_for_it(seed, capacity):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, capacity + 1, generator.integers(1, 400))
    rows = pack(lengths, capacity)
    assert np.array_equal(np.sort(rows.samples), np.arange(len(lengths)))
    assert (np.diff(rows.starts) > 0).all() and rows.starts[-1] == len(lengths)
    assert np.add.reduceat(lengths[rows.samples], rows.starts[:-1]).max() <= capacity


def one_at_a_time(lengths, capacity) -> int:
    """The definition: longest first, each into the fullest row with room. How many rows."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        room = min(fitting, default=capacity)
        if fitting:
            rooms.remove(room)
        rooms.append(room - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(10))
def test_the_histogram_gives_what_best_fit_gives_one_at_a_time(seed):
    lengths = np.random.default_rng(seed).integers(1, 65, 300)
    assert pack(lengths, 64).num_rows == one_at_a_time(lengths.tolist(), 64)


def test_lengths_of_texts_leave_less_than_one_percent_empty():
    lengths = text_lengths(20_000)
    assert fullness(lengths, pack(lengths, CAPACITY)) > 0.99
    assert lengths.mean() < 0.5 * CAPACITY  # padded, more than half would be empty


def test_the_work_does_not_depend_on_the_number_of_samples():
    counts = np.bincount(text_lengths(20_000), minlength=CAPACITY + 1)
    few, many = best_fit(counts, CAPACITY), best_fit(1000 * counts, CAPACITY)
    assert len(many) <= 2 * len(few)


def test_neighbours_in_the_corpus_are_not_neighbours_in_a_row():
    rows = pack(np.full(3000, 100), CAPACITY)
    apart = np.abs(np.diff(rows.samples.reshape(-1, 5), axis=1))
    assert apart.mean() == pytest.approx(1000, rel=0.05)  # of two random numbers below 3,000
