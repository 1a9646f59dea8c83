"""The step over simulated ranks, in one process: a list sum stands for the all-reduce."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from came.layout import EachSplit, FlatSplit, Param, ShardLayout, packed_offsets
from came.reference import reference_state, reference_step
from came.rules import came as rule
from came.rules import factored

OPTIONS = {
    "lr": 1e-2,
    "betas": (0.9, 0.99, 0.999),
    "eps": (1e-30, 1e-16),
    "clip_threshold": 0.7,
    "weight_decay": 0.1,
}
SHAPES = [(48, 80), (7, 13), (13,), (3, 2, 3, 3), (1, 9), (9, 1), (), (33, 10), (1,), (5, 4, 6)]


class SimulatedRank:
    """One rank of a world that lives in this process."""

    def __init__(self, layout: ShardLayout, size: int, weights: list[Tensor]) -> None:
        self.layout = layout
        # NaN between the parameters: padding must never be read
        self.flat = torch.full((size,), float("nan"), dtype=weights[0].dtype)
        self.cut(weights, self.flat)
        self.state = factored.allocate(self.flat, layout)

    def cut(self, wholes: list[Tensor], flat: Tensor) -> Tensor:
        for piece in self.layout.fragments:
            part = wholes[piece.param].reshape(-1)[piece.start : piece.start + piece.numel]
            flat[piece.offset : piece.offset + piece.numel] = part
        return flat

    def begin(self, grads: list[Tensor]) -> Any:
        grad = self.cut(grads, torch.full_like(self.flat, float("nan")))
        todo = factored.tasks(self.layout, self.flat, grad, self.state, OPTIONS)
        return rule.step(todo, self.flat.new_empty(0))


def simulate(ranks: list[SimulatedRank], grads: list[Tensor]) -> int:
    """One step on all ranks in lockstep; returns how many sums it took."""
    steps = [rank.begin(grads) for rank in ranks]
    num_sums = 0
    while True:
        buffers = [next(step, None) for step in steps]
        if buffers[0] is None:
            assert all(buffer is None for buffer in buffers)
            return num_sums
        total = sum(buffers[1:], start=buffers[0].clone())
        for buffer in buffers:
            buffer.copy_(total)
        num_sums += 1


def gather(ranks: list[SimulatedRank], key: str, index: int) -> Tensor:
    """An elementwise tensor of one parameter, from all ranks."""
    param = ranks[0].layout.params[index]
    found = torch.full((param.numel,), float("nan"), dtype=ranks[0].flat.dtype)
    for rank in ranks:
        if key == "exp_avg_sq":
            views = factored.vector_views(rank.layout, rank.state)
        else:
            flat = rank.flat if key == "param" else rank.state[key]
            views = [(p, flat[p.offset : p.offset + p.numel]) for p in rank.layout.fragments]
        for piece, view in views:
            if piece.param == index:
                found[piece.start : piece.start + piece.numel] = view
    return found.reshape(param.shape)


def flat_split(shapes: list[tuple[int, ...]], world_size: int, rng: random.Random) -> FlatSplit:
    numels = [Param("", shape).numel for shape in shapes]
    gaps = [numel + rng.choice([0, 3]) for numel in numels]
    slice_numel = -(-sum(gaps) // world_size)
    return FlatSplit(tuple(numels), packed_offsets(gaps), slice_numel, world_size)


def check(shapes: list[tuple[int, ...]], split: Any, dtype: torch.dtype, tolerance: float) -> None:
    """Ten steps against the reference: parameters and every state tensor."""
    generator = torch.Generator().manual_seed(len(shapes) + split.world_size)
    weights = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    params = tuple(Param(str(i), shape) for i, shape in enumerate(shapes))
    numels = [sum(p.numel for p in split.fragments(r)) for r in range(split.world_size)]
    size = getattr(split, "slice_numel", 0) or max(
        sum(-(-p.numel // split.world_size) for p in params), *numels, 1
    )
    ranks = [
        SimulatedRank(ShardLayout(params, split, rank), size, weights)
        for rank in range(split.world_size)
    ]
    wanted = [weight.double() for weight in weights]
    states = [reference_state(weight) for weight in wanted]
    for _ in range(10):
        grads = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
        assert simulate(ranks, grads) == 2
        for weight, grad, state in zip(wanted, grads, states, strict=True):
            reference_step(weight, grad.double(), state, **OPTIONS)
    for index, (weight, state) in enumerate(zip(wanted, states, strict=True)):
        views = [factored.factor_views(rank.layout, rank.state).get(index) for rank in ranks]
        for key, value in {"param": weight, **state}.items():
            if key.endswith(("row", "col")):
                for view in views:  # every rank holds all of it
                    found = getattr(view, key.removeprefix("exp_avg_")).reshape(value.shape)
                    assert_close(found, value, tolerance, f"{shapes[index]} {key}")
            else:
                assert_close(gather(ranks, key, index), value, tolerance, f"{shapes[index]} {key}")


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error <= tolerance, f"{what}: off by {error:.1e}"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["flat", "each"])
def test_sharded_equals_the_reference(kind: str, world_size: int) -> None:
    numels = tuple(Param("", shape).numel for shape in SHAPES)
    split: FlatSplit | EachSplit = EachSplit(numels, world_size)
    if kind == "flat":
        split = flat_split(SHAPES, world_size, random.Random(world_size))
    # In fp64 the algebra itself is tested; in fp32 its rounding.
    check(SHAPES, split, torch.float64, 1e-12)
    check(SHAPES, split, torch.float32, 3e-6)


@pytest.mark.parametrize("seed", range(30))
def test_random_shapes_and_worlds(seed: int) -> None:
    rng = random.Random(seed)
    shapes = [
        tuple(rng.randint(1, 12) for _ in range(rng.choice([1, 2, 2, 2, 3])))
        for _ in range(rng.randint(1, 5))
    ]
    check(shapes, flat_split(shapes, rng.randint(1, 6), rng), torch.float64, 1e-10)


@pytest.mark.parametrize(
    ("sigma", "tolerance"), [(1.0, 1e-5), (1e-2, 5e-4), (1e-4, 5e-2), (0.0, None)]
)
def test_residual_sums_do_not_cancel(sigma: float, tolerance: float | None) -> None:
    """A gradient of a constant and a little noise: the residual is a small difference.

    Expanded about a clip factor of zero the row sums of the residual come out wrong by a factor of
    70, and negative, at sigma = 1e-4.
    """
    generator = torch.Generator().manual_seed(0)
    param = Param("w", (48, 80))
    split = FlatSplit((param.numel,), (0,), param.numel // 2, 2)
    weight = torch.randn(param.shape, generator=generator)
    ranks = [
        SimulatedRank(ShardLayout((param,), split, r), split.slice_numel, [weight])
        for r in range(2)
    ]
    wanted, state = weight.double(), reference_state(weight.double())
    for _ in range(100):
        grad = 1 + sigma * torch.randn(param.shape, generator=generator)
        simulate(ranks, [grad])
        reference_step(wanted, grad.double(), state, **OPTIONS)
    found = factored.factor_views(ranks[0].layout, ranks[0].state)[0].res_row[0].double()
    assert found.isfinite().all() and (found > 0).all()
    assert gather(ranks, "param", 0).isfinite().all()
    if tolerance is not None:
        wanted_row = state["exp_avg_res_row"]
        assert ((found - wanted_row).abs() / wanted_row).max() < tolerance


def test_rows_without_gradient_stay_finite() -> None:
    param = Param("embedding", (10, 4))
    split = FlatSplit((40,), (0,), 20, 2)
    ranks = [
        SimulatedRank(ShardLayout((param,), split, r), 20, [torch.ones(10, 4)]) for r in range(2)
    ]
    grad = torch.zeros(10, 4)
    for _ in range(3):
        simulate(ranks, [grad])  # nothing at all
    grad[3] = 1e-3
    for _ in range(3):
        simulate(ranks, [grad])  # one row of ten
    assert gather(ranks, "param", 0).isfinite().all()
    assert gather(ranks, "exp_avg", 0).isfinite().all()
    assert (gather(ranks, "exp_avg", 0)[4:] == 0).all()
