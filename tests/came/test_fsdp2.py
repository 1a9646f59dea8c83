"""CAME under FSDP2 equals the authors' package on one process."""

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from came.layout import Box, Fragment, Param, RowSplit, ShardLayout, boxes
from came.momentum import FORMATS
from came.sharding.portable import scales_by_block, scales_by_row
from tests.came import fsdp2_checks
from tests.ranks import run_ranks

INT8 = FORMATS["int8"]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_on_this_many_ranks(world_size: int) -> None:
    checks = {
        2: fsdp2_checks.check_two_ranks,
        3: fsdp2_checks.check_three_ranks,
        4: fsdp2_checks.check_four_ranks,
    }
    run_ranks(checks[world_size], world_size)


def test_checkpoints_go_on_on_as_many_ranks_and_on_others(tmp_path: Path) -> None:
    run_ranks(fsdp2_checks.check_checkpoints, 2, str(tmp_path))
    run_ranks(fsdp2_checks.check_resharded, 3, str(tmp_path))


def split(shape: tuple[int, ...], world_size: int) -> RowSplit:
    holders = tuple((rank,) for rank in range(world_size))
    return RowSplit(shape[0], Param("", shape).numel // shape[0], holders)


@pytest.mark.parametrize("shape", [(53, 7), (1, 9), (3, 2, 3, 3), (13,), (8, 4)])
def test_rows_are_cut_as_torch_cuts_them(shape: tuple[int, ...]) -> None:
    numbers = torch.arange(Param("", shape).numel).view(shape)
    for world_size in range(1, 9):
        cut = split(shape, world_size)
        chunks = [chunk.reshape(-1) for chunk in numbers.chunk(world_size)]
        assert list(cut.owners(0)) == list(range(len(chunks)))
        for rank in range(world_size):
            layout = ShardLayout((Param("", shape),), cut, rank)
            if rank >= len(chunks):
                assert layout.fragments == ()
                continue
            (piece,) = layout.fragments
            assert chunks[rank].tolist() == list(range(piece.start, piece.start + piece.numel))
            assert (piece.offset, len(cut.rows(rank))) == (0, len(numbers.chunk(world_size)[rank]))


def int8_box(param: Param, rows: range) -> Box:
    """The box of some entries of the first dimension."""
    numel = param.numel // param.shape[0]
    (box,) = boxes(param, Fragment(0, rows.start * numel, len(rows) * numel, 0))
    return box


def int8_store(param: Param, rows: range, values: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of a rank that holds these rows."""
    box = int8_box(param, rows)
    codes, scales = (torch.zeros(size) for size in INT8.sizes(param, box))
    stored = codes.to(torch.int8), scales
    INT8.store(stored, param, box, values[rows.start : rows.stop].view(box.batches, box.rows, -1))
    return stored[0].view(-1, *param.shape[1:]), scales


def int8_load(param: Param, rows: range, codes: Tensor, scales: Tensor) -> Tensor:
    return INT8.load((codes.view(-1), scales), param, int8_box(param, rows), None).view(codes.shape)


def int8_scale(param: Param, rows: range, codes: Tensor, scales: Tensor) -> Tensor:
    """For each number the scale of its block."""
    return int8_load(param, rows, torch.full_like(codes, 127), scales)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("shape", [(53, 7), (1, 9), (3, 2, 3, 3), (9, 5, 31), (5, 300), (7, 129)])
def test_int8_is_cut_anew(shape: tuple[int, ...], flatten: bool) -> None:
    """A block that is put together has the larger scale, and codes rounded once; all else stays."""
    param, generator = Param("", shape, flatten), torch.Generator().manual_seed(0)
    magnitudes = torch.randn(shape[0], generator=generator).exp().view(-1, *[1] * (len(shape) - 1))
    for before, after in itertools.product(range(1, 6), range(1, 6)):
        values = torch.randn(shape, generator=generator) * magnitudes
        cuts = [rows for rows in map(split(shape, before).rows, range(before)) if rows]
        saved = [(rows, *int8_store(param, rows, values)) for rows in cuts]
        codes = torch.cat([codes for _, codes, _ in saved])
        table = torch.cat([scales_by_row(param, rows, scales) for rows, _, scales in saved])
        old = torch.cat([int8_load(param, *part) for part in saved])
        old_scale = torch.cat([int8_scale(param, *part) for part in saved])
        for rank in range(after):
            rows = split(shape, after).rows(rank)
            held = slice(rows.start, rows.stop)
            own = codes[held].clone()
            scales = scales_by_block(param, rows, table[held], own)
            if not rows:
                assert scales.numel() == own.numel() == 0
                continue
            assert scales.numel() == INT8.sizes(param, int8_box(param, rows))[1]
            new, scale = (f(param, rows, own, scales) for f in (int8_load, int8_scale))
            put_together = scale != old_scale[held]
            assert torch.equal(new[~put_together], old[held][~put_together])
            assert (scale >= old_scale[held]).all()
            assert ((new - old[held]).abs() <= scale / 254 * (1 + 1e-5)).all()
            assert before != after or not put_together.any()
