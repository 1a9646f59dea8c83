"""The tiles of the GPU kernels, as integers: every number of every box lies in one of them."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from came.kernels import tiles
from came.kernels.table import BOX, Part
from came.kernels.tiles import SUM_TILE, UPDATE_TILE, Shape
from came.kernels.units import LENGTHS, units, vector_tiles
from came.layout import Param
from came.momentum import BLOCK, rows_per_block
from tests.came.simulation import OPTIONS, flat_split, world


def parts(seed: int, momentum: str) -> list[Part]:
    """All matrices of every rank of a random world."""
    rng = random.Random(seed)
    sizes = [1, 3, 7, 16, 100, 128, 129, 300, 513]
    shapes = [
        tuple(rng.choice(sizes[:5] if axis < 2 and dims == 3 else sizes) for axis in range(dims))
        for dims in (rng.choice([1, 2, 2, 3]) for _ in range(4))
    ]
    split = flat_split(shapes, rng.choice([1, 2, 3, 5]), rng)
    ranks = world(
        shapes, split, [torch.zeros(shape) for shape in shapes], {**OPTIONS, "momentum": momentum}
    )
    found = []
    for rank in ranks:
        rank.plan.refresh([rank.grad])
        table = rank.plan.table
        size = sum(task.param.num_factors for task in table.matrices.tasks)
        found.append(table.part(0, len(table.matrices.tasks), 0, size))
    return found


def named(table: Tensor, names: tuple[str, ...]) -> list[dict[str, int]]:
    return [dict(zip(names, row, strict=True)) for row in table.tolist()]


def check_numbers(
    part: Part, tile: dict[str, int], shape: Shape, begin: int, end: int, seen: Counter[Any]
) -> None:
    """Count the numbers of a tile, and find them where the box says they are."""
    table = part.table
    box = dict(zip(BOX, table.matrices.box[tile["box"]].tolist(), strict=True))
    param: Param = table.matrices.tasks[tile["owner"]].param
    _, height, width = param.matrices
    row_at, col_at = table.matrix[tile["owner"], 3:].tolist()
    assert tile["cols"] == box["cols"] and tile["owner"] == box["owner"]
    wide = shape.cols
    for row in range(max(0, begin), end):
        entry = (box["first_row"] + row) // height
        assert tile["row_at"] + row - begin == row_at + box["first_row"] + row
        for col in range(max(0, tile["col"]), min(box["cols"], tile["col"] + wide)):
            seen[tile["box"], row, col] += 1
            if not shape.many:
                lane = col - tile["col"]
                wanted = col_at + entry * width + box["first_col"] + col
                assert tile["col_at"] + lane == wanted


def check_all_once(part: Part, seen: Counter[Any]) -> None:
    total = sum(box["rows"] * box["cols"] for box in named(part.table.matrices.box, BOX))
    assert len(seen) == total and set(seen.values()) <= {1}


@pytest.mark.parametrize("chunks", [1, 4])
@pytest.mark.parametrize("seed", range(8))
def test_sum_tiles_cover_every_number_once(
    seed: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "MAX_PARTS", 2000)
    for part in parts(seed, random.Random(seed).choice(["float32", "int8"])):
        seen: Counter[Any] = Counter()
        for launch in tiles.sum_tiles(tiles.boxes(part), chunks):
            taken: Counter[int] = Counter()
            counters: dict[int, set[int]] = {}
            assert launch.num_parts <= 2000
            for tile in named(launch.tiles, SUM_TILE):
                end = tile["row"] + tile["rows"]
                check_numbers(part, tile, launch.shape, tile["row"], end, seen)
                for kind, size in (("row", tile["rows"]), ("col", launch.shape.cols)):
                    count, rank = tile[f"{kind}_count"], tile[f"{kind}_rank"]
                    assert 0 <= rank < count
                    if count > 1:
                        begin = tile[f"{kind}_slot"] + rank * size
                        taken.update(range(begin, begin + size))
                        counters.setdefault(tile[f"{kind}_counter"], set()).add(count)
            # Every part has its own place, and every sum its own counter.
            assert set(taken) == set(range(launch.num_parts)) and set(taken.values()) <= {1}
            assert set(counters) == set(range(launch.num_counters))
            assert all(len(found) == 1 for found in counters.values())
        check_all_once(part, seen)


@pytest.mark.parametrize("momentum", ["float32", "int8", "sign"])
@pytest.mark.parametrize("seed", range(8))
def test_update_tiles_own_whole_blocks(seed: int, momentum: str) -> None:
    for part in parts(seed, momentum):
        seen: Counter[Any] = Counter()
        owners: dict[Any, set[int]] = {}
        number = 0
        for shape, table in tiles.update_tiles(tiles.boxes(part), 2):
            for tile in named(table, UPDATE_TILE):
                check_numbers(part, tile, shape, tile["row"], tile["row_end"], seen)
                number += 1
                box = dict(zip(BOX, part.table.matrices.box[tile["box"]].tolist(), strict=True))
                if momentum == "sign":
                    assert tile["col"] % 8 == 0  # bytes begin with the box
                if momentum != "int8":
                    continue
                high = rows_per_block(part.table.matrices.tasks[tile["owner"]].param)
                first_row, first_col = (
                    box["first_row"] + tile["row"],
                    box["first_col"] + tile["col"],
                )
                assert first_row % high == 0 and first_col % min(BLOCK, shape.cols) == 0
                for block in range(
                    first_row // high, -(-(box["first_row"] + tile["row_end"]) // high)
                ):
                    owners.setdefault((tile["box"], block, first_col // BLOCK), set()).add(number)
        assert all(len(found) == 1 for found in owners.values())
        check_all_once(part, seen)


@pytest.mark.parametrize("seed", range(8))
def test_units_cover_every_matrix_once(seed: int) -> None:
    for part in parts(seed, "float32"):
        seen: Counter[Any] = Counter()
        for launch in units(part):
            for owner, entry, entries, saved in launch.units.tolist():
                assert entries <= launch.entries and launch.length <= LENGTHS[-1]
                assert launch.owners[saved] == owner
                seen.update((owner, entry + i) for i in range(entries))
        batches = [task.param.matrices[0] for task in part.table.matrices.tasks]
        assert seen == Counter((owner, e) for owner, n in enumerate(batches) for e in range(n))


@pytest.mark.parametrize("world_size", [1, 3])
def test_vectors_in_pieces(world_size: int) -> None:
    """Of a vector that lies elsewhere there is an empty tile: it has an RMS here too."""
    shapes = [(10000,), (3,), (5000,)]
    split = flat_split(shapes, world_size, random.Random(0))
    covered = [0, 0, 0]
    for rank in world(shapes, split, [torch.zeros(shape) for shape in shapes]):
        owners = set()
        for _, table, _, _ in vector_tiles(rank.plan.table.vectors):
            for _, owner, begin, end, *_ in table.tolist():
                covered[owner] += end - begin
                owners.add(owner)
        assert owners == {0, 1, 2}
    assert covered == [10000, 3, 5000]
