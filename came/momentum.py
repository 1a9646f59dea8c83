"""How the momentum is stored: four formats of the same numbers.

    float32    4 bytes        the compute dtype (float64 for float64 parameters)
    bfloat16   2 bytes        rounded to nearest
    int8       1 byte         blocks of up to 256 numbers share one scale, their largest magnitude
    sign       1 bit          times a magnitude for each row and each column

A format stores one box of a matrix at a time, so what is stored never depends on what else lies in
the buffer.  The borders of int8 blocks follow the parameter, not the box: a matrix that is cut by
another sharding keeps the blocks that are not cut.

The sign format follows SMMF (Park and Lee, 2024, arXiv 2412.08894): the signs are kept, and of the
magnitudes a rank-one approximation.  Here it is built from row and column sums of the *squares*,
which the step sums over the ranks anyway, and not from sums of magnitudes.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from came.layout import Box, Param

BLOCK = 256  # numbers that share a scale, at most

Parts = tuple[tuple[str, torch.dtype | None], ...]


class Format(Protocol):
    """One way to store the numbers of boxes.

    `parts` names the tensors it needs: a suffix of the state's key and a dtype (None: the dtype
    that is computed in).  `sizes` says how many numbers of each a box takes.
    """

    @property
    def parts(self) -> Parts: ...

    def sizes(self, param: Param, box: Box) -> tuple[int, ...]: ...

    def load(
        self, stored: Sequence[Tensor], param: Param, box: Box, scales: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """The numbers of the box, `(batches, rows, cols)`.

        `scales` are the magnitudes of its rows and columns, `(batches, rows)` and
        `(batches, cols)`, for the sign format.
        """

    def store(self, stored: Sequence[Tensor], param: Param, box: Box, values: Tensor) -> None: ...


class Float:
    """Numbers as they are, or rounded to `dtype`."""

    def __init__(self, suffix: str, dtype: torch.dtype | None) -> None:
        self.parts: Parts = ((suffix, dtype),)

    def sizes(self, param: Param, box: Box) -> tuple[int, ...]:
        return (box.numel,)

    def load(
        self, stored: Sequence[Tensor], param: Param, box: Box, scales: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        return stored[0].view(box.batches, box.rows, box.cols)

    def store(self, stored: Sequence[Tensor], param: Param, box: Box, values: Tensor) -> None:
        stored[0].view(values.shape).copy_(values)


class Int8:
    """Codes in [-127, 127] and one scale a block: `value = scale * code / 127`.

    Seen as one tall matrix of all rows of its batch, a parameter is cut into blocks of
    `rows_per_block` rows by `BLOCK` columns, from its first row and column on.
    """

    parts: Parts = (("_int8", torch.int8), ("_int8_scale", torch.float32))

    def sizes(self, param: Param, box: Box) -> tuple[int, ...]:
        row_blocks, col_blocks = _num_blocks(param, box)
        return box.numel, row_blocks * col_blocks

    def load(
        self, stored: Sequence[Tensor], param: Param, box: Box, scales: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        rows, cols = _block_indices(param, box, stored[0].device)
        scale = stored[1].view(_num_blocks(param, box))
        # The largest code gives back its scale bit for bit: 127 * (1 / 127) is 1 in float32.
        codes = stored[0].view(rows.numel(), cols.numel()).to(scale.dtype) * (1 / 127)
        values = codes * scale[rows[:, None], cols[None, :]]
        return values.view(box.batches, box.rows, box.cols)

    def store(self, stored: Sequence[Tensor], param: Param, box: Box, values: Tensor) -> None:
        row_blocks, col_blocks = _num_blocks(param, box)
        rows, cols = _block_indices(param, box, values.device)
        flat = values.reshape(rows.numel(), cols.numel()).to(torch.float32)
        per_block, top, left = rows_per_block(param), _first_row(param, box), box.col
        before_row, before_col = top % per_block, left % BLOCK
        padded = F.pad(
            flat,
            (
                before_col,
                col_blocks * BLOCK - before_col - flat.shape[1],
                before_row,
                row_blocks * per_block - before_row - flat.shape[0],
            ),
        )
        scale = padded.view(row_blocks, per_block, col_blocks, BLOCK).abs().amax(dim=(1, 3))
        stored[1].view(scale.shape).copy_(scale)
        inverse = torch.where(scale > 0, 127 / scale, 0.0)
        codes = (flat * inverse[rows[:, None], cols[None, :]]).round_().clamp_(-127, 127)
        # What is not a number has no code; its scale is not a number either.
        stored[0].view(codes.shape).copy_(codes.nan_to_num_(0.0))


class Sign:
    """One bit a number, set where it is negative; each row of a box starts a new byte."""

    parts: Parts = (("_sign", torch.uint8),)

    def sizes(self, param: Param, box: Box) -> tuple[int, ...]:
        return (box.batches * box.rows * -(-box.cols // 8),)

    def load(
        self, stored: Sequence[Tensor], param: Param, box: Box, scales: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        signs = self.signs(stored, box)
        assert scales is not None, "signs are nothing without magnitudes"
        return signs.to(scales[0].dtype) * scales[0].unsqueeze(2) * scales[1].unsqueeze(1)

    def store(self, stored: Sequence[Tensor], param: Param, box: Box, values: Tensor) -> None:
        negative = (values < 0).view(-1, box.cols).to(torch.uint8)
        bits = F.pad(negative, (0, -box.cols % 8)).view(negative.shape[0], -1, 8)
        stored[0].view(bits.shape[:2]).copy_((bits << _bit(bits)).sum(dim=2, dtype=torch.uint8))

    @staticmethod
    def signs(stored: Sequence[Tensor], box: Box) -> Tensor:
        """The signs of a box, 1 or -1."""
        codes = stored[0].view(box.batches, box.rows, -1, 1)
        bits = (codes >> _bit(codes)) & 1
        return 1 - 2 * bits.flatten(2)[:, :, : box.cols].to(torch.int8)


FORMATS: dict[str, Format] = {
    "float32": Float("", None),
    "bfloat16": Float("_bfloat16", torch.bfloat16),
    "int8": Int8(),
    "sign": Sign(),
}


def rows_per_block(param: Param) -> int:
    """Rows of a matrix that share int8 blocks: a power of two, 1 where a row is long enough."""
    return 1 << (max(1, BLOCK // max(1, param.matrices[2])).bit_length() - 1)


def _first_row(param: Param, box: Box) -> int:
    """The first row of a box, counted through all matrices of the batch."""
    return box.batch * param.matrices[1] + box.row


def _num_blocks(param: Param, box: Box) -> tuple[int, int]:
    """Blocks that a box touches, down and across."""
    per_block, top = rows_per_block(param), _first_row(param, box)
    bottom, right = top + box.batches * box.rows - 1, box.col + box.cols - 1
    return bottom // per_block - top // per_block + 1, right // BLOCK - box.col // BLOCK + 1


def _block_indices(param: Param, box: Box, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each row and each column of a box, which of its blocks they lie in."""
    per_block, top = rows_per_block(param), _first_row(param, box)
    rows = torch.arange(top, top + box.batches * box.rows, device=device) // per_block
    cols = torch.arange(box.col, box.col + box.cols, device=device) // BLOCK
    return rows - top // per_block, cols - box.col // BLOCK


def _bit(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)
