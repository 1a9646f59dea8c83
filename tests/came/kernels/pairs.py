"""The same steps by plain torch and by the GPU kernels, compared to the last tensor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.came.simulation import OPTIONS, SimulatedRank, simulate, world

Worlds = tuple[list[SimulatedRank], list[SimulatedRank]]


def random_grads(
    shapes: list[tuple[int, ...]],
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> list[Tensor]:
    """Normal numbers, on every device the same."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]


def run_both(
    shapes: list[tuple[int, ...]],
    split: Any,
    num_steps: int,
    *,
    grads: Callable[[int], list[Tensor]] | None = None,
    dtype: torch.dtype = torch.float32,
    grad_dtype: torch.dtype | None = None,
    device: str = "cpu",
    kernels: tuple[str, str] = ("eager", "gpu"),
    **options: Any,
) -> Worlds:
    """Two worlds that take the same steps with two kernels."""
    grads = grads or (lambda step: random_grads(shapes, step, grad_dtype or dtype, device))
    weights = random_grads(shapes, 1000, dtype, device)
    found = []
    for kernel in kernels:
        settings = {**OPTIONS, **options, "kernel": kernel}
        ranks = world(shapes, split, weights, settings, grad_dtype=grad_dtype)
        for step in range(num_steps):
            simulate(ranks, grads(step))
        found.append(ranks)
    return found[0], found[1]


def check_close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """The norm of the error is at most `tolerance` of that of the tensor, which may be zero."""
    error, size = (found.double() - wanted.double()).norm(), wanted.double().norm()
    assert found.shape == wanted.shape and error <= tolerance * size, f"{what}: {error} of {size}"


def check_equal(worlds: Worlds, tolerance: float) -> None:
    """Parameters, root mean squares of updates and every tensor of the state, rank by rank."""
    for wanted, found in zip(*worlds, strict=True):
        inside = ~wanted.flat.isnan()
        check_close(found.flat[inside], wanted.flat[inside], tolerance, "parameters")
        check_close(found.plan.table.rms, wanted.plan.table.rms, tolerance, "rms")
        assert found.state.keys() == wanted.state.keys()
        for key, value in wanted.state.items():
            if key.endswith(("_int8", "_sign")):  # a hair's breadth may turn one of them over
                same = float((found.state[key] == value).double().mean()) if value.numel() else 1
                assert same >= 1 - 5e-3, f"{key}: {1 - same:.1e} differ"
            else:
                # The sums of the momentum's squares that signs need cancel a little.
                slack = 30 if key in ("exp_avg_row", "exp_avg_col") else 1
                check_close(found.state[key], value, slack * tolerance, key)


def check_same_bits(worlds: Worlds) -> None:
    """Everything of two worlds is the same, bit for bit."""
    for first, second in zip(*worlds, strict=True):
        assert torch.equal(first.flat.nan_to_num(), second.flat.nan_to_num())
        for key, value in first.state.items():
            assert torch.equal(second.state[key], value), key
