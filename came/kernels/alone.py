"""Matrices that no other rank holds a part of: through all passes at once, while they are in cache.

What the other ranks need to follow, the sums, is left in the buffers of factor space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from came.kernels.table import Part


@dataclass
class Alone:
    """A few matrices, and the buffers they are updated with."""

    part: Part
    sums: Tensor  # (4, size): of g^2, then of d^2, d u, u^2
    squares: Tensor
    residuals: Tensor
    scales: Tensor
    out: Tensor

    @classmethod
    def within(cls, part: Part, scratch: Tensor) -> "Alone":
        """`scratch` is (7, size or more), and the same for all of a plan."""
        rows = scratch[:, : part.size]
        return cls(part, rows[:4], rows[0], rows[1:4], rows[4], rows[5:])


def step_alone(
    kernel: ModuleType, batches: Sequence[Alone], squares: Tensor, residuals: Tensor
) -> None:
    """Update `batches`; `squares` and `residuals` take their sums, unless they are empty."""
    for alone in batches:
        part = alone.part
        alone.sums.zero_()
        kernel.add_squares(part, alone.squares)
        kernel.update_squares(part, alone.squares, alone.scales)
        kernel.add_residuals(part, alone.scales, alone.residuals)
        kernel.update_confidence(part, alone.residuals, alone.out)
        kernel.apply_update(part, alone.scales, alone.out)
        if squares.numel() > 0:
            span = slice(part.at, part.at + part.size)
            squares[span], residuals[:, span] = alone.squares, alone.residuals
