"""Weights in bfloat16 without a float32 copy: stochastic rounding."""

import random

import torch
from torch import nn

from came import CAME
from came.kernels.rounding import round_stochastically
from tests.came.simulation import OPTIONS, SHAPES, flat_split, gather, simulate, world


def test_the_odds_are_the_distance() -> None:
    value = torch.tensor([1 + 2**-7 * 0.3, -3.0, -(2.0**-20) * 1.9, 0.0])  # 30 %, 0 %, ...
    rounded = torch.stack([round_stochastically(value, key, 5) for key in range(4000)]).double()
    assert rounded[:, 0].unique().tolist() == [1, 1 + 2**-7]
    assert (rounded[:, 1] == -3).all() and (rounded[:, 3] == 0).all()
    # n = 4000: the mean of a 30 % coin is known to 0.7 %, three standard errors are 2.2 %
    share = (rounded[:, 0] > 1).double().mean()
    assert abs(float(share) - 0.3) < 0.022
    assert abs(float(rounded[:, 2].mean()) / (-(2.0**-20) * 1.9) - 1) < 1e-3


def test_numbers_of_one_parameter_are_rounded_independently() -> None:
    value = torch.full((4096,), 1 + 2**-8)
    up = (round_stochastically(value, 7, 0) > 1).double()
    assert abs(float(up.mean()) - 0.5) < 0.025
    neighbours = ((up[1:] - 0.5) * (up[:-1] - 0.5)).mean() * 4
    assert abs(float(neighbours)) < 0.05
    other = (round_stochastically(value, 8, 0) > 1).double()
    assert abs(float(((up - 0.5) * (other - 0.5)).mean() * 4)) < 0.05
    # a piece of it is rounded as it is in the whole
    assert torch.equal(
        (round_stochastically(value[1000:1010], 7, 1000) > 1).double(), up[1000:1010]
    )


def test_infinity_and_nan_stay_what_they_are() -> None:
    value = torch.tensor([float("inf"), -float("inf"), float("nan"), 3.3e38])
    for key in range(50):
        rounded = round_stochastically(value, key, 0)
        assert rounded[0] == float("inf") and rounded[1] == -float("inf") and rounded[2].isnan()


def test_every_world_rounds_alike() -> None:
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(shape, generator=generator).bfloat16() for shape in SHAPES]
    options = {**OPTIONS, "stochastic_rounding": True, "seed": 3}
    worlds = [
        world(SHAPES, flat_split(SHAPES, size, random.Random(size)), weights, options)
        for size in (1, 2, 3)
    ]
    for _ in range(5):
        grads = [torch.randn(shape, generator=generator).bfloat16() for shape in SHAPES]
        for ranks in worlds:
            simulate(ranks, grads)
    total = differ = 0
    for index, shape in enumerate(SHAPES):
        wanted = gather(worlds[0], "param", index)
        for ranks in worlds[1:]:
            found = gather(ranks, "param", index)
            total, differ = total + found.numel(), differ + int((found != wanted).sum())
            assert (found - wanted).abs().max() <= 2**-7 * wanted.abs().max(), shape
    # the sums are rounded otherwise in the last bit of float32, which tips 1 number in thousands
    assert differ <= total / 500


def drifted(dtype: torch.dtype, stochastic_rounding: bool) -> float:
    """How far weights of one move down in 100 steps of at most a tenth of a bfloat16's distance."""
    param = nn.Parameter(torch.ones(64, 64, dtype=dtype))
    optimizer = CAME([param], lr=2e-5, stochastic_rounding=stochastic_rounding)
    for seed in range(100):
        noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
        param.grad = (1 + 0.5 * noise).bfloat16().to(dtype)
        optimizer.step()
    return 1 - float(param.detach().double().mean())


def test_small_updates_are_not_lost() -> None:
    moved = drifted(torch.float32, False)
    assert moved > 0.004
    assert drifted(torch.bfloat16, False) == 0  # rounded to nearest, nothing ever moves
    assert abs(drifted(torch.bfloat16, True) - moved) < 0.05 * moved
