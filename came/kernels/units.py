"""Who does what between the passes, and for vectors: units of matrices and pieces of vectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from came.kernels.table import BOX, Part, Rows
from came.kernels.tiles import Shape, power, shared_sums

UNIT = ("owner", "entry", "entries", "saved")  # some matrices of one parameter's batch
VECTOR_TILE = ("box", "owner", "begin", "end", "slot", "rank", "count", "counter")
LENGTHS = (1024, 4096, 8192)  # rows or columns that a program takes at a time
VECTOR = 4096  # numbers of a vector that a program takes


@dataclass(frozen=True)
class Units:
    """One launch of a small step between the passes: `units` is int32 (units, UNIT).

    A program works on `entries x length` rows or columns at a time.  `whole`: every unit is all of
    its parameter; otherwise `owners` are the parameters that are several.  `signs`: their momentum
    is stored so.
    """

    whole: bool
    signs: bool
    entries: int
    length: int
    units: Tensor
    owners: Tensor


def units(part: Part) -> list[Units]:
    """The matrices of a part, by the size of their programs."""
    found: dict[tuple[bool, bool, int, int], list[Tensor]] = {}
    for owner in part.matrices:
        batch, rows, cols, _, _ = part.table.matrix[owner].tolist()
        longest = max(rows, cols)
        together = max(1, LENGTHS[0] // power(longest)) if batch > 1 else 1
        length = next((size for size in LENGTHS if size >= longest), LENGTHS[-1])
        signs = int(part.table.statistic[owner, -1]) != 0
        key = (batch == 1, signs, together, power(longest) if together > 1 else length)
        entry = torch.arange(0, batch, together)
        column = torch.ones_like(entry)
        row = (owner * column, entry, (batch - entry).clamp(max=together), 0 * column)
        found.setdefault(key, []).append(torch.stack(row, dim=1))
    launches = []
    for (whole, signs, together, length), rows_of in found.items():
        for saved, unit in enumerate(rows_of):
            unit[:, 3] = saved
        owners = torch.stack([unit[0, 0] for unit in rows_of]).to(torch.int32)
        launches.append(
            Units(whole, signs, together, length, torch.cat(rows_of).to(torch.int32), owners)
        )
    return launches


def vector_tiles(rows: Rows) -> list[tuple[Shape, Tensor, int, int]]:
    """The launches over all vectors: shape, int32 (tiles, VECTOR_TILE), parts and counters.

    A vector of which nothing lies on this rank has one empty tile.
    """
    found: dict[Shape, list[list[int]]] = {}
    for index, row in enumerate(rows.box.tolist()):
        box = dict(zip(BOX, row, strict=True))
        shape = Shape(box["grad_dtype"], box["param_dtype"], 0, False, 1, VECTOR)
        for begin in range(0, box["cols"], VECTOR):
            end = min(begin + VECTOR, box["cols"])
            found.setdefault(shape, []).append([index, box["owner"], begin, end])
    absent = [owner for owner, task in enumerate(rows.tasks) if not task.blocks]
    first = next(iter(found), Shape(0, 0, 0, False, 1, VECTOR))
    if absent:
        found.setdefault(first, []).extend([0, owner, 0, 0] for owner in absent)
    launches = []
    for shape, tiles in found.items():
        table = torch.tensor(tiles)
        groups, num_parts, num_counters = shared_sums(
            table[:, 1], torch.ones(len(tiles), dtype=torch.long), 0, 0
        )
        launches.append(
            (shape, torch.cat([table, groups], dim=1).to(torch.int32), num_parts, num_counters)
        )
    return launches
