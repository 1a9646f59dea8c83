"""The storage formats of the momentum: what they keep, and that sharding does not change it."""

import random

import pytest
import torch
from torch import Tensor

from came.fields import Field, allocate, stored_boxes
from came.layout import FlatSplit, Fragment, Param, ShardLayout, boxes, whole
from came.momentum import BLOCK, FORMATS, rows_per_block
from tests.came.simulation import OPTIONS, SHAPES, flat_split, gather, simulate, statistics, world

MATRICES = [(48, 80), (7, 13), (3, 2, 3, 3), (1, 9), (9, 1), (5, 700), (300, 3), (2, 40, 130)]


def store(param: Param, layout: ShardLayout, values: Tensor, format: str) -> tuple[Tensor, int]:
    """Values as this rank's boxes of a format give them back (NaN elsewhere), and their bytes."""
    tensor = torch.empty(max([p.offset + p.numel for p in layout.fragments], default=0))
    fields = [(Field("exp_avg", format=format),)]
    state = allocate(tensor, layout, fields)
    found = torch.full((param.numel,), float("nan"))
    starts = {piece.param: piece.start - piece.offset for piece in layout.fragments}
    for kept in stored_boxes(layout, fields, state):
        box, stored, storage = kept.box, kept.stored["exp_avg"], FORMATS[format]
        span = slice(starts[0] + box.offset, starts[0] + box.offset + box.numel)
        block = values.view(-1)[span].view(box.batches, box.rows, box.cols)
        storage.store(stored, param, box, block)
        ones = torch.ones(box.batches, box.rows), torch.ones(box.batches, box.cols)
        found[span] = storage.load(stored, param, box, ones).float().reshape(-1)
    return found, sum(v.nbytes for key, v in state.items() if key != "step")


def random_values(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Momentum-like: every row of another magnitude."""
    generator = torch.Generator().manual_seed(seed)
    magnitudes = torch.randn(shape[:-1], generator=generator).exp().unsqueeze(-1)
    return torch.randn(shape, generator=generator) * magnitudes


@pytest.mark.parametrize("shape", MATRICES)
def test_formats_keep_what_they_promise(shape: tuple[int, ...]) -> None:
    param, values = Param("w", shape), random_values(shape)
    layout, flat = whole(Param("w", shape)), random_values(shape).view(-1)
    assert torch.equal(store(param, layout, values, "float32")[0], flat)
    assert torch.equal(store(param, layout, values, "bfloat16")[0], flat.bfloat16().float())
    assert torch.equal(store(param, layout, values, "sign")[0], torch.where(flat < 0, -1.0, 1.0))
    # int8: half a code of the largest number nearby, and that number itself is exact.
    found, _ = store(param, layout, values, "int8")
    per_block, cols = rows_per_block(param), shape[-1]
    tall, error = flat.view(-1, cols), (found - flat).view(-1, cols)
    for top in range(0, tall.shape[0], per_block):
        for left in range(0, cols, BLOCK):
            block = slice(top, top + per_block), slice(left, left + BLOCK)
            assert tall[block].numel() <= BLOCK
            largest = tall[block].abs().max()
            assert error[block].abs().max() <= largest / 254 * (1 + 1e-5)
            assert error[block].view(-1)[tall[block].abs().argmax()] == 0


def test_bytes_per_number() -> None:
    param, values = Param("w", (512, 1024)), random_values((512, 1024))
    sizes = {name: store(param, whole(param), values, name)[1] / param.numel for name in FORMATS}
    assert sizes == {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / 256, "sign": 1 / 8}


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("format", list(FORMATS))
def test_what_was_stored_is_stored_again_unchanged(format: str, shape: tuple[int, ...]) -> None:
    """A checkpoint gathers values and scatters them: nothing may move in a round trip."""
    param = Param("w", shape)
    once, _ = store(param, whole(param), random_values(shape), format)
    assert torch.equal(store(param, whole(param), once, format)[0], once)


@pytest.mark.parametrize("shape", MATRICES)
@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_int8_blocks_that_no_rank_cuts_are_the_same_in_every_world(
    shape: tuple[int, ...], world_size: int
) -> None:
    param, values = Param("w", shape), random_values(shape)
    alone, _ = store(param, whole(param), values, "int8")
    split = FlatSplit((param.numel,), (0,), -(-param.numel // world_size), world_size)
    found = torch.full((param.numel,), float("nan"))
    cut = torch.zeros(param.numel, dtype=torch.bool)
    block = torch.arange(param.numel).view(-1, shape[-1])
    rows, cols = (
        torch.arange(block.shape[0]) // rows_per_block(param),
        torch.arange(shape[-1]) // BLOCK,
    )
    number = (rows[:, None] * 10_000 + cols[None, :]).view(-1)
    owner = torch.arange(param.numel) // split.slice_numel
    for index in number.unique():
        cut[number == index] = owner[number == index].unique().numel() > 1
    for rank in range(world_size):
        mine, _ = store(param, ShardLayout((param,), split, rank), values, "int8")
        found = torch.where(mine.isnan(), found, mine)
    assert torch.equal(found[~cut], alone[~cut])
    # One requantisation of what is cut: a smaller block has a smaller scale.
    largest = values.abs().max()
    assert (found - values.view(-1)).abs().max() <= largest / 254 * (1 + 1e-5)


@pytest.mark.parametrize("format", ["bfloat16", "int8", "sign"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_sharded_formats_compute_what_one_rank_computes(format: str, world_size: int) -> None:
    """In float64 no rounding border is met by chance: only int8 blocks that are cut may differ,
    and all in all by less than half of what int8 itself costs."""
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    options, one = {**OPTIONS, "momentum": format}, flat_split(SHAPES, 1, random.Random(0))
    exact, alone = world(SHAPES, one, weights), world(SHAPES, one, weights, options)
    ranks = world(SHAPES, flat_split(SHAPES, world_size, random.Random(0)), weights, options)
    for _ in range(10):
        grads = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        simulate(exact, grads)
        simulate(alone, grads)
        assert simulate(ranks, grads) == 2
    found, wanted, ideal = (
        torch.cat([gather(w, "param", i).view(-1) for i in range(len(SHAPES))])
        for w in (ranks, alone, exact)
    )
    error, cost = (found - wanted).norm(), (wanted - ideal).norm()
    assert cost > 0
    if format == "int8" and world_size > 1:
        assert error <= 0.5 * cost
        return
    assert error <= 1e-9 * wanted.norm()
    for index in range(len(SHAPES)):
        for key, value in statistics(alone[0], index).items():
            difference = (statistics(ranks[0], index)[key] - value).norm()
            assert difference <= 1e-9 * value.norm(), (key, difference)


def test_nothing_and_not_a_number_in_int8() -> None:
    param = Param("w", (2, 600))
    values = random_values((2, 600))
    values[0, :256] = 0
    values[1, 300] = float("nan")
    found = store(param, whole(param), values, "int8")[0].view(2, 600)
    assert (found[0, :256] == 0).all()
    assert found[1, 256:512].isnan().all() and found.isnan().sum() == 256


def test_boxes_of_a_piece_have_the_sizes_of_their_rows() -> None:
    param = Param("w", (10, 600))
    for start, numel in ((0, 6000), (17, 1200), (5983, 17), (300, 5000)):
        cut = list(boxes(param, Fragment(0, start, numel, 0)))
        assert sum(FORMATS["int8"].sizes(param, box)[0] for box in cut) == numel
