"""The C++ kernel is the oracle, and plain torch, on every shape, format, dtype and world."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from came.kernels import cpu
from came.layout import EachSplit, Param
from tests.came.simulation import (
    OPTIONS,
    SHAPES,
    SimulatedRank,
    assert_close,
    check_against_reference,
    flat_split,
    gather,
    simulate,
    statistics,
    world,
)

# Long rows, long columns, more columns than an int8 block, widths that no vector register divides.
WIDE = [(3, 1030), (700, 5), (129, 257), (2, 40, 130), (64, 16), (1, 1), (300, 1), (31,), (2050,)]
FORMATS = ("float32", "bfloat16", "int8", "sign")
Worlds = tuple[list[SimulatedRank], list[SimulatedRank]]


@pytest.fixture(autouse=True, scope="module")
def built() -> None:
    assert cpu.load() is None


def random_tensors(shapes: list[tuple[int, ...]], seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def run_both(
    shapes: list[tuple[int, ...]],
    world_size: int,
    *,
    num_steps: int = 20,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    grads: Callable[[int], list[Tensor]] | None = None,
    **options: Any,
) -> Worlds:
    """The same steps by plain torch and in C++."""
    weights = random_tensors(shapes, 1000, dtype)
    split = flat_split(shapes, world_size, random.Random(world_size))
    found = []
    for kernel in ("eager", "cpu"):
        settings = {**OPTIONS, **options, "kernel": kernel}
        ranks = world(shapes, split, weights, settings, grad_dtype=grad_dtype)
        for step in range(num_steps):
            made = grads(step) if grads else random_tensors(shapes, step, grad_dtype or dtype)
            simulate(ranks, made)
        found.append(ranks)
    return found[0], found[1]


def check_alike(
    eager: list[SimulatedRank], fused: list[SimulatedRank], tolerance: float, key: str = "param"
) -> None:
    """Parameters and all that every rank keeps whole, each tensor by its norm."""
    for index, param in enumerate(eager[0].layout.params):
        what = f"{param.shape} {key}"
        assert_close(gather(fused, key, index), gather(eager, key, index), tolerance, what)
        for name, value in statistics(eager[0], index).items():
            for rank in fused:
                found = statistics(rank, index)[name].double()
                assert_close(found, value.double(), tolerance, f"{param.shape} {name}")


@pytest.mark.parametrize("shapes", [SHAPES, WIDE], ids=["small", "wide"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_sharded_equals_the_reference(shapes: list[tuple[int, ...]], world_size: int) -> None:
    numels = tuple(Param("", shape).numel for shape in shapes)
    for split in (
        flat_split(shapes, world_size, random.Random(world_size)),
        EachSplit(numels, world_size),
    ):
        check_against_reference(
            shapes, split, torch.float32, 3e-6, kernel="cpu", num_steps=20 if world_size < 4 else 5
        )


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("momentum", FORMATS)
def test_formats_are_those_of_plain_torch(momentum: str, world_size: int) -> None:
    """One step is the same to rounding; later a number near a border of codes may tip over."""
    for shapes in (SHAPES, WIDE):
        check_alike(*run_both(shapes, world_size, num_steps=1, momentum=momentum), 1e-5)
        eager, fused = run_both(shapes, world_size, num_steps=20, momentum=momentum)
        if momentum == "sign":
            # A sign that tips is as large as its number; what all ranks keep follows it.
            for index, shape in enumerate(shapes):
                found, wanted = gather(fused, "param", index), gather(eager, "param", index)
                assert_close(found, wanted, 2e-2, str(shape))
        else:
            check_alike(eager, fused, {"float32": 1e-5, "bfloat16": 1e-4, "int8": 1e-3}[momentum])


def test_what_is_stored_is_what_plain_torch_stores() -> None:
    """Codes, scales and bits, after one step from nothing: the last bit of a sum may tip a code."""
    for momentum in FORMATS:
        eager, fused = run_both(WIDE, 1, num_steps=1, momentum=momentum)
        for key, value in eager[0].state.items():
            found = fused[0].state[key]
            if value.dtype in (torch.int8, torch.uint8):
                assert (found != value).double().mean() < 1e-3, key
                assert (found.int() - value.int()).abs().max() <= 1 or momentum == "sign"
            else:
                torch.testing.assert_close(
                    found, value, rtol=1e-2 if "bf" in key else 1e-5, atol=1e-7
                )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    for world_size in (1, 3):
        eager, fused = run_both(WIDE, world_size, dtype=dtype, grad_dtype=grad_dtype)
        check_alike(eager, fused, 1e-5 if dtype == torch.float32 else 3e-3)
        for index in range(len(WIDE)):  # the momentum is float32 all the same
            wanted, found = (gather(ranks, "exp_avg", index) for ranks in (eager, fused))
            assert_close(found, wanted, 1e-5, f"{WIDE[index]} exp_avg")


def test_stochastic_rounding_is_that_of_plain_torch() -> None:
    """Where the last bit of the sums tips nothing, every number is the same."""
    for world_size in (1, 3):
        eager, fused = run_both(
            WIDE, world_size, num_steps=1, dtype=torch.bfloat16, stochastic_rounding=True, seed=5
        )
        nearest, _ = run_both(WIDE, world_size, num_steps=1, dtype=torch.bfloat16)
        total = tipped = moved = 0
        for index in range(len(WIDE)):
            wanted, found = gather(eager, "param", index), gather(fused, "param", index)
            total, tipped = total + wanted.numel(), tipped + int((found != wanted).sum())
            moved += int((gather(nearest, "param", index) != wanted).sum())
        assert moved > total / 10
        assert tipped <= total / 500


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_a_result_depends_on_the_number_of_threads_alone(num_threads: int) -> None:
    shapes = [(400, 300), (2, 300, 70), (90_000,), (7, 20_000)]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        eager, first = run_both(shapes, 1, num_steps=3)
        _, second = run_both(shapes, 1, num_steps=3)
    finally:
        torch.set_num_threads(before)
    check_alike(eager, first, 1e-5)
    for index in range(len(shapes)):
        assert torch.equal(gather(first, "param", index), gather(second, "param", index))
        for key, value in statistics(first[0], index).items():
            assert torch.equal(value, statistics(second[0], index)[key])


def test_every_rank_ends_with_the_same_statistics_bit_for_bit() -> None:
    shapes = [(20, 30), (40, 10), (8,), (15, 40), (30, 30), (200, 300)]
    _, ranks = run_both(shapes, 3, num_steps=5)
    assert {len(rank.plan.alone) for rank in ranks} != {0}
    for index in range(len(shapes)):
        for key, value in statistics(ranks[0], index).items():
            assert all(torch.equal(statistics(rank, index)[key], value) for rank in ranks), key


@pytest.mark.parametrize("sigma", [1.0, 1e-2, 1e-4, 0.0])
def test_a_constant_and_a_little_noise(sigma: float) -> None:
    """The residual is a small difference; sums that cancelled would be negative, their root NaN."""

    def grads(step: int) -> list[Tensor]:
        return [1 + sigma * grad for grad in random_tensors([(48, 80)], step, torch.float32)]

    eager, fused = run_both([(48, 80)], 2, num_steps=60, grads=grads)
    wanted, found = (statistics(ranks[0], 0)["exp_avg_res_row"] for ranks in (eager, fused))
    assert (
        found.isfinite().all() and (found > 0).all() and gather(fused, "param", 0).isfinite().all()
    )
    if sigma:  # how well the sums are conditioned: fp32 itself is off by as much from fp64
        assert ((found - wanted).abs() / wanted).max() < {1.0: 1e-5, 1e-2: 5e-4, 1e-4: 5e-2}[sigma]


@pytest.mark.parametrize("scale", [1e15, 1e-15, 1e-25, 0.0])
def test_huge_tiny_and_no_gradients(scale: float) -> None:
    def grads(step: int) -> list[Tensor]:
        made = [scale * grad for grad in random_tensors(WIDE, step, torch.float32)]
        made[2][5:40] = 0  # rows without a gradient
        return made

    eager, fused = run_both(WIDE, 2, num_steps=10, grads=grads)
    check_alike(eager, fused, 1e-5)
    assert all(gather(fused, "param", index).isfinite().all() for index in range(len(WIDE)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("momentum", FORMATS)
def test_a_gradient_that_is_no_number_harms_its_own_parameter_alone(
    momentum: str, bad: float
) -> None:
    for victim in (2, len(WIDE) - 1):

        def broken(step: int, victim: int = victim) -> list[Tensor]:
            made = random_tensors(WIDE, step, torch.float32)
            made[victim].view(-1)[7] = bad
            return made

        _, sound = run_both(WIDE, 2, num_steps=2, momentum=momentum)
        _, found = run_both(WIDE, 2, num_steps=2, momentum=momentum, grads=broken)
        for index in range(len(WIDE)):
            same = torch.equal(gather(found, "param", index), gather(sound, "param", index))
            assert same == (index != victim), WIDE[index]
        table = found[0].plan.table
        tasks = table.matrices.tasks + table.vectors.tasks
        told = [
            task.index for task, rms in zip(tasks, table.rms, strict=True) if not rms.isfinite()
        ]
        assert told == [victim]
