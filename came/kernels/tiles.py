"""Who does what in a fused GPU kernel: boxes cut into tiles, one for each program.

One launch covers all boxes of a part, however many tensors they come from; boxes that need another
machine code (dtypes, formats, the power of two above their columns) are launches of their own.
A tile is a row of integers; rows and columns of its box are counted from the box's first:

    passes 1, 2   128 columns by some rows. Where several tiles share a row or a column, they are a
                  GROUP, and the place of its sums in scratch memory is written into the tiles.
    pass 3        256 columns by some rows. A block of int8 momentum, and a byte of signs, lies in
                  one tile, so int8 tiles begin where blocks do: maybe before their box.

Matrices that are so small that several fit a program (3 x 3 of a convolution) are not cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from came.kernels.table import BOX, FORMATS, Part
from came.momentum import BLOCK, rows_per_block

CHUNK = 2048  # numbers that a program has in its registers
SUM_COLS = 128  # columns of a tile of passes 1 and 2: a row of them is one warp's
MAX_PARTS = 1 << 18  # numbers of scratch memory a launch may take, for each of the three sums
ALIGNMENT = 16  # bytes that one thread reads at once

SUM_TILE = (
    "box",
    "owner",
    "row",
    "rows",
    "col",  # negative where the box begins within 128 columns
    "cols",  # of the box
    "row_at",  # where its rows and columns begin in factor space
    "col_at",
    *("row_slot", "row_rank", "row_count", "row_counter"),  # see `shared_sums`
    *("col_slot", "col_rank", "col_count", "col_counter"),
)
UPDATE_TILE = ("box", "owner", "row", "row_end", "col", "cols", "row_at", "col_at")


@dataclass(frozen=True)
class Shape:
    """What a kernel is compiled for.

    A program works on `matrices x rows x cols` numbers at a time, powers of two.  `aligned`: rows
    begin at multiples of 16 bytes.  `many`: one tile has rows of several matrices of a batch.
    """

    grad_dtype: int
    param_dtype: int
    format: int
    aligned: bool
    block_rows: int  # that share an int8 scale
    cols: int
    rows: int = 0
    matrices: int = 1
    many: bool = False


@dataclass(frozen=True)
class SumTiles:
    """One launch of passes 1 and 2: `tiles` is int32 (tiles, SUM_TILE)."""

    shape: Shape
    tiles: Tensor
    num_parts: int
    num_counters: int


@dataclass(frozen=True)
class _Box:
    """A row of the table of boxes with what is needed of its matrix."""

    index: int
    owner: int
    rows: int
    cols: int
    first_row: int
    first_col: int
    height: int  # rows of one matrix of the parameter
    width: int
    row_at: int
    col_at: int
    shape: Shape

    @property
    def entry(self) -> int:
        """The matrix of the batch in which it begins."""
        return self.first_row // self.height

    @property
    def entries(self) -> int:
        return (self.first_row + self.rows - 1) // self.height - self.entry + 1


def boxes(part: Part) -> list[_Box]:
    """The boxes of a part; reads the addresses of this step's gradients."""
    rows, table = part.table.matrices, part.table
    found = []
    for index in part.boxes:
        box = dict(zip(BOX, rows.box[index].tolist(), strict=True))
        owner = box["owner"]
        _, height, width, row_at, col_at = table.matrix[owner].tolist()
        signs = box["format"] == FORMATS["sign"]
        numbers = (
            width,
            box["cols"],
            box["first_col"],
            *rows.address[index, : 2 if signs else 3].tolist(),
        )
        shape = Shape(
            grad_dtype=box["grad_dtype"],
            param_dtype=box["param_dtype"],
            format=box["format"],
            aligned=all(number % ALIGNMENT == 0 for number in numbers),
            block_rows=rows_per_block(rows.tasks[owner].param)
            if box["format"] == FORMATS["int8"]
            else 1,
            cols=power(width),
        )
        place = (box["rows"], box["cols"], box["first_row"], box["first_col"])
        found.append(_Box(index, owner, *place, height, width, row_at, col_at, shape))
    return found


def sum_tiles(todo: list[_Box], chunks: int) -> list[SumTiles]:
    """The launches of passes 1 and 2, in tiles of so many times `CHUNK` numbers."""
    by_shape: dict[Shape, list[tuple[Tensor, int]]] = {}
    for box in todo:
        shape = replace(box.shape, param_dtype=0, cols=min(box.shape.cols, SUM_COLS))
        several = CHUNK // (power(box.height) * box.shape.cols)
        if box.entries > 1 and several > 1 and box.shape.cols <= SUM_COLS:
            shape = replace(shape, matrices=several, rows=power(box.height), many=True)
            tiles = _grid(box, several * box.height, shape.cols, whole=True)
        else:
            shape = replace(shape, rows=CHUNK // shape.cols)
            before = box.first_col % shape.cols
            tiles = _grid(box, chunks * shape.rows, shape.cols, first=(0, -before))
        tiles[:, 3] -= tiles[:, 2]  # rows, not where they end
        # What is left in scratch memory for each tile: sums of columns, and of rows cut in two.
        cost = shape.cols + (chunks * shape.rows if box.cols > shape.cols else 0)
        by_shape.setdefault(shape, []).append((tiles, cost))
    return [launch for shape, found in by_shape.items() for launch in _launches(shape, found)]


def update_tiles(todo: list[_Box], chunks: int) -> list[tuple[Shape, Tensor]]:
    """The launches of pass 3: what to compile for, and int32 (tiles, UPDATE_TILE)."""
    by_shape: dict[Shape, list[Tensor]] = {}
    for box in todo:
        cols, block_rows = min(box.shape.cols, BLOCK), box.shape.block_rows
        blocks = box.shape.format == FORMATS["int8"]
        cut = box.height % block_rows == 0 and box.height * box.width >= CHUNK
        many = box.entries > 1 and not cut
        shape = replace(box.shape, cols=cols, rows=CHUNK // cols, many=many)
        before = (box.first_row % block_rows, box.first_col % cols) if blocks else (0, 0)
        first = (-before[0], -before[1])
        tiles = _grid(box, chunks * shape.rows, cols, first=first, whole=many)
        by_shape.setdefault(shape, []).append(tiles)
    return [(shape, torch.cat(found).to(torch.int32)) for shape, found in by_shape.items()]


def _grid(
    box: _Box,
    tall: int,
    wide: int,
    *,
    first: tuple[int, int] = (0, 0),
    whole: bool = False,
) -> Tensor:
    """The tiles of a box from row and column `first` on: int64 (tiles, UPDATE_TILE).

    Each matrix of the batch by itself, unless they are taken as a `whole`: one tall matrix.
    """
    entries, length = (1, box.rows) if whole or box.entries == 1 else (box.entries, box.height)
    begin = (torch.arange(entries) * length).view(-1, 1, 1)
    top = torch.arange(first[0], length, tall).view(1, -1, 1)
    col = torch.arange(first[1], box.cols, wide).view(1, 1, -1)
    row, end = begin + top, begin + (top + tall).clamp(max=length)
    entry = (box.first_row + row.clamp(min=0)) // box.height
    columns = (
        *(box.index, box.owner, row, end, col, box.cols),
        *(box.row_at + box.first_row + row, box.col_at + entry * box.width + box.first_col + col),
    )
    size = (entries, top.numel(), col.numel())
    return torch.stack([torch.as_tensor(c).expand(size) for c in columns], dim=-1).view(
        -1, len(UPDATE_TILE)
    )


def _launches(shape: Shape, found: list[tuple[Tensor, int]]) -> Iterator[SumTiles]:
    """Tiles in launches that fit the scratch memory, with their groups."""
    cost = torch.cat([torch.full((len(tiles),), cost) for tiles, cost in found])
    launch = (cost.cumsum(0) - 1) // MAX_PARTS
    together = torch.cat([tiles for tiles, _ in found])
    for number in range(int(launch[-1]) + 1):
        tiles = together[launch == number]
        row_at, col_at = tiles[:, 6], tiles[:, 7]
        # No two boxes of a matrix have numbers of the same row, so tiles that share rows share all.
        rows, num_parts, num_counters = shared_sums(row_at, tiles[:, 3], 0, 0)
        cols, num_parts, num_counters = shared_sums(
            col_at, torch.full_like(col_at, shape.cols), num_parts, num_counters
        )
        yield SumTiles(
            shape, torch.cat([tiles, rows, cols], dim=1).to(torch.int32), num_parts, num_counters
        )


def shared_sums(
    key: Tensor, size: Tensor, part_at: int, counter_at: int
) -> tuple[Tensor, int, int]:
    """Tiles with the same key have one sum, of `size` numbers: where each leaves its part of it.

    Returns int64 (tiles, 4): where the parts of the sum begin in scratch memory, the place among
    them, their number, and the counter of those that are done; then what is taken of both.
    """
    _, group, counts = torch.unique(key, return_inverse=True, return_counts=True)
    order = torch.argsort(group, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[group[order]]
    several = (counts > 1).to(torch.int64)
    taken = torch.zeros_like(counts).index_copy_(0, group, size) * counts * several
    slot, counter = part_at + taken.cumsum(0) - taken, counter_at + several.cumsum(0) - several
    columns = (slot[group], rank, counts[group], counter[group])
    return (
        torch.stack(columns, dim=1),
        part_at + int(taken.sum()),
        counter_at + int(several.sum()),
    )


def power(number: int) -> int:
    """The power of two that is not less."""
    return 1 << (number - 1).bit_length()
