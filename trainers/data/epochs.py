"""Which sample stands at a position: every epoch has all samples, in an order of its own."""

from functools import lru_cache

import numpy as np

from trainers.data.batches import Ints
from trainers.data.random_access import Purpose, permute

BLOCK = 4096  # positions drawn at once, of which neighbours will be asked for; a millisecond


class Epochs:
    """Positions 0, 1, 2 ... through all epochs of `num_samples` samples.

    A pure function of (seed, position). Runs ask for neighbours, so blocks are remembered.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples, self._seed = num_samples, seed
        self._block = lru_cache(maxsize=4)(self._draw_block)

    def draw(self, positions: Ints) -> tuple[Ints, Ints]:
        """The epoch of each position, and which sample it has there."""
        positions = np.asarray(positions, dtype=np.int64)
        if positions.ndim == 1 and len(positions):
            number, last = int(positions.min()) // BLOCK, int(positions.max()) // BLOCK
            if number == last:
                epoch, sample = self._block(number)
                place = positions - number * BLOCK
                return epoch[place], sample[place]
        return self._draw(positions)

    def _draw_block(self, number: int) -> tuple[Ints, Ints]:
        return self._draw(np.arange(number * BLOCK, (number + 1) * BLOCK))

    def _draw(self, positions: Ints) -> tuple[Ints, Ints]:
        epoch, place = np.divmod(positions, self._num_samples)
        return epoch, permute(place, self._num_samples, Purpose.ORDER, self._seed, epoch)
