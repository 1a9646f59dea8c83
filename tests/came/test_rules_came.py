"""The step of CAME over simulated ranks, in plain torch."""

import random

import pytest
import torch

from came.layout import EachSplit, FlatSplit, Param
from came.reference import reference_state, reference_step
from tests.came.simulation import (
    OPTIONS,
    SHAPES,
    check_against_reference,
    flat_split,
    gather,
    simulate,
    statistics,
    world,
)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["flat", "each"])
def test_sharded_equals_the_reference(kind: str, world_size: int) -> None:
    numels = tuple(Param("", shape).numel for shape in SHAPES)
    split: FlatSplit | EachSplit = EachSplit(numels, world_size)
    if kind == "flat":
        split = flat_split(SHAPES, world_size, random.Random(world_size))
    # In fp64 the algebra itself is tested; in fp32 its rounding.
    check_against_reference(SHAPES, split, torch.float64, 1e-12)
    check_against_reference(SHAPES, split, torch.float32, 3e-6)


@pytest.mark.parametrize("seed", range(30))
def test_random_shapes_and_worlds(seed: int) -> None:
    rng = random.Random(seed)
    shapes = [
        tuple(rng.randint(1, 12) for _ in range(rng.choice([1, 2, 2, 2, 3])))
        for _ in range(rng.randint(1, 5))
    ]
    split = flat_split(shapes, rng.randint(1, 6), rng)
    check_against_reference(shapes, split, torch.float64, 1e-10)


@pytest.mark.parametrize(
    ("sigma", "tolerance"), [(1.0, 1e-5), (1e-2, 5e-4), (1e-4, 5e-2), (0.0, None)]
)
def test_residual_sums_do_not_cancel(sigma: float, tolerance: float | None) -> None:
    """A gradient of a constant and a little noise: the residual is a small difference.

    Expanded about a clip factor of zero the row sums of the residual come out wrong by a factor of
    70, and negative, at sigma = 1e-4.
    """
    generator = torch.Generator().manual_seed(0)
    shape, split = (48, 80), FlatSplit((3840,), (0,), 1920, 2)
    weight = torch.randn(shape, generator=generator)
    ranks = world([shape], split, [weight])
    wanted, state = weight.double(), reference_state(weight.double())
    names = ("lr", "betas", "eps", "clip_threshold", "weight_decay")
    for _ in range(100):
        grad = 1 + sigma * torch.randn(shape, generator=generator)
        simulate(ranks, [grad])
        reference_step(wanted, grad.double(), state, **{name: OPTIONS[name] for name in names})
    found = statistics(ranks[0], 0)["exp_avg_res_row"].double()
    assert found.isfinite().all() and (found > 0).all()
    assert gather(ranks, "param", 0).isfinite().all()
    if tolerance is not None:
        wanted_row = state["exp_avg_res_row"]
        assert ((found - wanted_row).abs() / wanted_row).max() < tolerance


@pytest.mark.parametrize("size", [1e-3, 1e12])
def test_rows_without_gradient_stay_finite(size: float) -> None:
    """Among gradients of 1e5 and more, `eps / mean(r)` was 0 in float32, and its root infinite."""
    ranks = world([(10, 4)], FlatSplit((40,), (0,), 20, 2), [torch.ones(10, 4)])
    grad = torch.zeros(10, 4)
    for _ in range(3):
        simulate(ranks, [grad])  # nothing at all
    grad[3] = size
    for _ in range(3):
        simulate(ranks, [grad])  # one row of ten
    assert gather(ranks, "param", 0).isfinite().all()
    assert gather(ranks, "exp_avg", 0).isfinite().all()
    assert (gather(ranks, "exp_avg", 0)[4:] == 0).all()


def test_a_convolution_as_one_matrix_is_the_flattened_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    conv, flat = (4, 3, 3, 2), (4, 18)
    weight = torch.randn(conv, generator=generator, dtype=torch.float64)
    split = FlatSplit((72,), (0,), 24, 3)
    first = world([conv], split, [weight], {**OPTIONS, "matricize": "first"})
    second = world([flat], split, [weight.view(flat)])
    for _ in range(5):
        grad = torch.randn(conv, generator=generator, dtype=torch.float64)
        simulate(first, [grad])
        simulate(second, [grad.view(flat)])
    assert torch.equal(gather(first, "param", 0).view(flat), gather(second, "param", 0))
    assert statistics(first[0], 0)["exp_avg_res_col"].shape == (3, 3, 2)


def test_every_rank_ends_with_the_same_statistics_bit_for_bit() -> None:
    """The owner of a whole matrix goes ahead, the others follow its sums."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(20, 30), (40, 10), (8,), (15, 40), (30, 30)]
    split = flat_split(shapes, 3, random.Random(0))
    ranks = world(shapes, split, [torch.randn(shape, generator=generator) for shape in shapes])
    assert {len(rank.plan.alone) for rank in ranks} != {0}
    for _ in range(5):
        simulate(ranks, [torch.randn(shape, generator=generator) for shape in shapes])
    for index in range(len(shapes)):
        for key, value in statistics(ranks[0], index).items():
            for rank in ranks[1:]:
                assert torch.equal(statistics(rank, index)[key], value), (shapes[index], key)
