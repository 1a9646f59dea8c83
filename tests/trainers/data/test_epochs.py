"""Blocks that are remembered change nothing of what is drawn."""

import numpy as np
import pytest

from trainers.data.epochs import BLOCK, Epochs
from trainers.data.random_access import Purpose, permute


@pytest.mark.parametrize("num_samples", [1, 7, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_any_positions_are_drawn_as_one_by_one(num_samples: int) -> None:
    epochs = Epochs(num_samples, seed=3)
    asked = [
        np.arange(10),
        np.arange(BLOCK - 5, BLOCK + 5),  # in two blocks
        np.array([BLOCK * 9 + 4, 2, BLOCK * 9 + 4]),
        np.arange(5 * BLOCK, 5 * BLOCK + 300)[::-1],
        np.array([], dtype=np.int64),
        np.array(12),
    ]
    for positions in asked * 2:
        epoch, sample = epochs.draw(positions)
        place = positions % num_samples
        assert np.array_equal(epoch, positions // num_samples)
        wanted = permute(place, num_samples, Purpose.ORDER, 3, positions // num_samples)
        assert np.array_equal(sample, wanted)
