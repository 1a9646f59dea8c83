"""The Triton kernels on a GPU: against plain torch, the reference in float64, and themselves."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from came.kernels import gpu, launches, tiles
from came.layout import EachSplit, FlatSplit, Param
from came.reference import reference_state, reference_step
from tests.came.kernels.pairs import (
    check_close,
    check_equal,
    check_same_bits,
    random_grads,
    run_both,
)
from tests.came.simulation import OPTIONS, flat_split, gather, simulate, statistics, world
from tests.gpu.device import needs_gpu

pytestmark = [needs_gpu, pytest.mark.timeout(900)]  # what is new is compiled

# More tiles than a GPU runs at a time; rows of a multiple of 16 bytes and of none; many columns,
# three, one; batches of large and of small matrices; vectors of several tiles and of one number.
SHAPES = [
    *[(3000, 1024), (1030, 1537), (7, 50257), (20000, 3), (5000, 1), (1, 777)],
    *[(3, 300, 272), (40, 32, 3, 3), (2, 9, 260), (30522,), (5,), ()],
]
# float32 sums of up to a million numbers in another order; a hair's breadth turns over the last
# bit of what is stored in 8 or 16 bits.
TOLERANCE = {"float32": 5e-6, "bfloat16": 1e-4, "int8": 2e-4, "sign": 1e-4}
NAMES = ("lr", "betas", "eps", "clip_threshold", "weight_decay")


def split_of(world_size: int) -> FlatSplit:
    return flat_split(SHAPES, world_size, random.Random(world_size))


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("momentum", ["float32", "bfloat16", "int8", "sign"])
def test_equal_to_plain_torch(momentum: str, world_size: int) -> None:
    worlds = run_both(SHAPES, split_of(world_size), 3, device="cuda", momentum=momentum)
    check_equal(worlds, TOLERANCE[momentum])


@pytest.mark.parametrize(
    ("dtype", "grad_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float16),
    ],
)
def test_half_precision(dtype: torch.dtype, grad_dtype: torch.dtype) -> None:
    worlds = run_both(SHAPES, split_of(2), 3, device="cuda", dtype=dtype, grad_dtype=grad_dtype)
    check_equal(worlds, 1e-4)


def test_stochastic_rounding_takes_the_same_random_bits() -> None:
    options: dict[str, Any] = {"stochastic_rounding": True, "seed": 3, "dtype": torch.bfloat16}
    worlds = run_both(SHAPES, split_of(2), 1, device="cuda", **options)
    for wanted, found in zip(*worlds, strict=True):
        same = wanted.flat.nan_to_num() == found.flat.nan_to_num()
        # What is rounded differs in its last bit here and there, so one in 2^16 or so turns over.
        assert float(same.double().mean()) > 1 - 1e-3


@pytest.mark.parametrize("momentum", ["float32", "sign"])
def test_bias_correction(momentum: str) -> None:
    options: dict[str, Any] = {"momentum": momentum, "bias_correction": True}
    worlds = run_both(SHAPES, split_of(2), 3, device="cuda", **options)
    check_equal(worlds, TOLERANCE[momentum])


MODERATE = [(257, 1030), (1030, 40), (300,), (3, 50, 70)]


def check_reference(split: Any, num_steps: int, sigma: float | None, tolerance: float) -> None:
    shapes = MODERATE
    weights = random_grads(shapes, 1000, device="cuda")
    ranks = world(shapes, split, weights, {**OPTIONS, "kernel": "gpu"})
    wanted = [weight.double() for weight in weights]
    states = [reference_state(weight) for weight in wanted]
    for step in range(num_steps):
        grads = random_grads(shapes, step, device="cuda")
        if sigma is not None:
            grads = [1 + sigma * grad for grad in grads]
        simulate(ranks, grads)
        for weight, grad, state in zip(wanted, grads, states, strict=True):
            reference_step(weight, grad.double(), state, **{name: OPTIONS[name] for name in NAMES})
    for index, (weight, state) in enumerate(zip(wanted, states, strict=True)):
        if sigma is None:
            check_close(gather(ranks, "param", index), weight, tolerance, "param")
        for key, value in state.items():
            what = f"{shapes[index]} {key}"
            if key.endswith(("row", "col")):
                for rank in ranks:
                    check_close(statistics(rank, index)[key], value, tolerance, what)
            elif sigma is None:
                check_close(gather(ranks, key, index), value, tolerance, what)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_twenty_steps_equal_the_reference(world_size: int) -> None:
    check_reference(lambda shapes: flat_split(shapes, world_size, random.Random(0)), 20, None, 5e-6)
    if world_size > 1:
        numels = [
            Param("", shape).numel for shape in [(257, 1030), (1030, 40), (300,), (3, 50, 70)]
        ]
        check_reference(lambda _: EachSplit(tuple(numels), world_size), 20, None, 5e-6)


@pytest.mark.parametrize(("sigma", "tolerance"), [(1.0, 1e-5), (1e-2, 5e-4), (1e-4, 5e-2)])
def test_residual_sums_do_not_cancel(sigma: float, tolerance: float) -> None:
    check_reference(flat_split(MODERATE, 2, random.Random(0)), 50, sigma, tolerance)


@pytest.mark.parametrize("momentum", ["float32", "int8", "sign"])
@pytest.mark.parametrize("chunks", [None, 1, 32])
def test_every_run_is_the_same_bit_for_bit(
    momentum: str, chunks: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that reads what another one has not yet left would show here, now and then."""
    if chunks is not None:  # as many programs as there can be, and as few
        monkeypatch.setattr(launches.Tables, "_chunks", lambda self, numbers: chunks)
    split, kernels = split_of(1), ("gpu", "gpu")
    for _ in range(3):
        check_same_bits(
            run_both(SHAPES, split, 3, device="cuda", kernels=kernels, momentum=momentum)
        )


def test_scratch_memory_of_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "MAX_PARTS", 5000)
    check_equal(run_both(SHAPES, split_of(2), 2, device="cuda"), TOLERANCE["float32"])


@pytest.mark.parametrize("numbers", [1 << 12, 1 << 40])
def test_batches_of_any_size(numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "batch_numbers", lambda device: numbers)
    check_equal(run_both(SHAPES, split_of(1), 2, device="cuda"), TOLERANCE["float32"])


@pytest.mark.parametrize("size", [1e15, 1e-15])
def test_huge_and_tiny_gradients(size: float) -> None:
    def grads(step: int) -> list[Tensor]:
        return [size * grad for grad in random_grads(SHAPES, step, device="cuda")]

    check_equal(run_both(SHAPES, split_of(2), 2, grads=grads, device="cuda"), TOLERANCE["float32"])


@pytest.mark.parametrize("momentum", ["float32", "sign"])
def test_rows_without_gradient(momentum: str) -> None:
    def grads(step: int) -> list[Tensor]:
        found = [torch.zeros(shape, device="cuda") for shape in SHAPES]
        if step >= 2:  # nothing at all at first, then one row of each
            for grad in found:
                grad.view(-1)[: max(1, grad.shape[-1] if grad.dim() else 1)] = 1e-3
        return found

    worlds = run_both(SHAPES, split_of(2), 4, grads=grads, device="cuda", momentum=momentum)
    check_equal(worlds, TOLERANCE[momentum])


@pytest.mark.parametrize("momentum", ["float32", "int8"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_in_its_parameter(poison: float, momentum: str) -> None:
    """All other parameters are the same bit for bit."""
    worlds = []
    for bad in (False, True):

        def grads(step: int, bad: bool = bad) -> list[Tensor]:
            found = random_grads(SHAPES, step, device="cuda")
            if bad:
                found[1][700, 33] = poison
            return found

        options: dict[str, Any] = {"momentum": momentum, "kernels": ("gpu", "gpu")}
        worlds.append(run_both(SHAPES, split_of(2), 2, grads=grads, device="cuda", **options)[0])
    for index in range(len(SHAPES)):
        if index == 1:
            assert gather(worlds[1], "param", index).isnan().any()
            continue
        assert torch.equal(*(gather(ranks, "param", index) for ranks in worlds))
        good, other = (statistics(ranks[0], index) for ranks in worlds)
        assert all(torch.equal(other[key], value) for key, value in good.items())
