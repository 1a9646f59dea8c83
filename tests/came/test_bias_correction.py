"""Bias correction of the second moments: against the oracle, in every kernel, world and format."""

import copy
import random
from math import sqrt
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from came import CAME, telemetry
from came.kernels import table
from came.layout import EachSplit, Param
from came.reference import reference_state, reference_step
from tests.came.kernels.pairs import check_equal, random_grads, run_both
from tests.came.simulation import SHAPES, check_against_reference, flat_split, gather, world

WIDE = [(3, 1030), (129, 257), (2, 40, 130), (300, 1), (31,), (2050,)]
KERNELS = ("eager", "cpu")


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_sharded_equals_the_reference(world_size: int) -> None:
    """And a step is two sums, as without."""
    flat = flat_split(SHAPES, world_size, random.Random(world_size))
    each = EachSplit(tuple(Param("", shape).numel for shape in SHAPES), world_size)
    settings: dict[str, Any] = {"bias_correction": True, "num_steps": 20}
    check_against_reference(SHAPES, flat, torch.float64, 1e-12, **settings)
    check_against_reference(SHAPES, each, torch.float32, 3e-6, **settings)
    wide = flat_split(WIDE, world_size, random.Random(world_size))
    for shapes, split in ((SHAPES, flat), (SHAPES, each), (WIDE, wide)):
        check_against_reference(shapes, split, torch.float32, 3e-6, kernel="cpu", **settings)


@pytest.mark.parametrize("momentum", ["float32", "bfloat16", "int8", "sign"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_formats_are_those_of_plain_torch(momentum: str, world_size: int) -> None:
    split = flat_split(WIDE, world_size, random.Random(world_size))
    tolerance = {"float32": 3e-6, "bfloat16": 1e-4, "int8": 1e-3, "sign": 1e-3}[momentum]
    options: dict[str, Any] = {"momentum": momentum, "bias_correction": True, "kernels": KERNELS}
    check_equal(run_both(WIDE, split, 3, **options), tolerance)


@pytest.mark.parametrize("momentum", ["bfloat16", "int8", "sign"])
def test_formats_sharded_are_those_unsharded(momentum: str) -> None:
    """In float64, where no code tips; blocks of int8 that a border cuts would differ, so rows are
    whole blocks and each rank has whole rows."""
    shapes = [(12, 256), (6, 512), (24, 128)]
    options: dict[str, Any] = {"momentum": momentum, "bias_correction": True, "weight_decay": 0.0}
    found = []
    for world_size in (1, 3):
        split = EachSplit(tuple(Param("", shape).numel for shape in shapes), world_size)
        kernels = ("eager", "eager")
        ranks, _ = run_both(shapes, split, 4, dtype=torch.float64, kernels=kernels, **options)
        found.append([gather(ranks, "param", index) for index in range(len(shapes))])
    for whole, sharded in zip(*found, strict=True):
        torch.testing.assert_close(sharded, whole, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_of_one_size_are_updates_of_one(kernel: str) -> None:
    """What correction is for: `v` is right from the first step on, and so is `u = g / sqrt(v)`."""
    shapes = [(6, 20), (9,)]
    for corrects in (True, False):
        params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        optimizer = CAME(params, bias_correction=corrects, kernel=kernel)
        for step in range(1, 6):
            for param, sign in zip(params, random_grads(shapes, step), strict=True):
                param.grad = 0.01 * sign.sign()
            optimizer.step()
            wanted = 1.0 if corrects else 1 / sqrt(1 - 0.999**step)
            assert telemetry(optimizer)[0].update_rms == pytest.approx(wanted, rel=1e-4)


def test_the_first_step_is_a_ninth_of_the_rate_and_not_eleven_times() -> None:
    """At the end both are as large: only the start is another."""
    sizes = {}
    for corrects in (True, False):
        weight = torch.zeros(40, 60, dtype=torch.float64)
        state, generator = reference_state(weight), torch.Generator().manual_seed(0)
        for step in range(1, 3 + 1):
            before = weight.clone()
            grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64).sign()
            at = step if corrects else None
            reference_step(weight, grad, state, lr=1.0, corrected_at=at)
            sizes[corrects, step] = float((weight - before).square().mean().sqrt())
    assert sizes[True, 1] == pytest.approx(1 / 9) and sizes[False, 1] == pytest.approx(100 / 9)
    assert sizes[True, 3] < 0.3 and sizes[False, 3] > 5


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_parameter_counts_its_own_steps(kernel: str) -> None:
    """One that gets its first gradient late begins there."""
    shapes = [(5, 8), (7,)]

    def optimizer_of(params: list[nn.Parameter]) -> CAME:
        return CAME(params, lr=1e-2, bias_correction=True, kernel=kernel)

    late, early, fresh = (
        [nn.Parameter(weight) for weight in random_grads(shapes, 1)] for _ in range(3)
    )
    together, alone = optimizer_of([*late, *early]), optimizer_of(fresh)
    for step in range(6):
        for first, second, third, grad in zip(
            late, early, fresh, random_grads(shapes, step), strict=True
        ):
            second.grad = grad
            if step >= 3:
                first.grad, third.grad = grad.clone(), grad.clone()
        together.step()
        alone.step()
    for first, second, third in zip(late, early, fresh, strict=True):
        assert torch.equal(first, third) and not torch.equal(first, second)


@pytest.mark.parametrize("momentum", ["float32", "int8", "sign"])
def test_resumed_runs_go_on_bit_for_bit(momentum: str) -> None:
    """Also in an optimizer that was built without: options come with the state."""
    shapes = [(6, 272), (9, 7), (13,)]
    params = [nn.Parameter(weight) for weight in random_grads(shapes, 5)]
    optimizer = CAME(params, lr=1e-2, bias_correction=True, momentum=momentum)
    steps(optimizer, params, range(3))
    resumed = [nn.Parameter(param.detach().clone()) for param in params]
    again = CAME(resumed, lr=1e-3)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for chosen, own in ((optimizer, params), (again, resumed)):
        steps(chosen, own, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(params, resumed, strict=True))
    for mine, other in zip(params, resumed, strict=True):
        for key, value in optimizer.state[mine].items():
            assert torch.equal(again.state[other][key], value), key


@pytest.mark.parametrize("kernel", KERNELS)
def test_it_may_be_switched_while_a_run_goes_on(kernel: str) -> None:
    """A table that kept the last corrections would go on with them."""
    shapes, turns = [(5, 8), (7,)], [True, True, False, True, False, False]
    params = [nn.Parameter(weight) for weight in random_grads(shapes, 1)]
    optimizer = CAME(params, lr=1e-2, betas=(0.9, 0.99, 0.999), kernel=kernel)
    wanted = [param.detach().double() for param in params]
    states = [reference_state(weight) for weight in wanted]
    for step, corrects in enumerate(turns, start=1):
        optimizer.param_groups[0]["bias_correction"] = corrects
        steps(optimizer, params, range(step, step + 1))
        for weight, param, state in zip(wanted, params, states, strict=True):
            at = step if corrects else None
            reference_step(
                weight, grad_of(param), state, lr=1e-2, betas=(0.9, 0.99, 0.999), corrected_at=at
            )
    for weight, param in zip(wanted, params, strict=True):
        torch.testing.assert_close(param.detach().double(), weight, rtol=2e-6, atol=2e-6)


def test_without_it_nobody_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options are written once, and not at every step."""
    ranks = world([(4, 5), (3,)], flat_split([(4, 5), (3,)], 1, random.Random(0)), [*two()])
    rows = ranks[0].plan.table.matrices
    ranks[0].plan.refresh([ranks[0].grad])
    monkeypatch.setattr(table, "corrections", None)
    rows.option[:, -2:] = 7  # would be written over
    ranks[0].plan.refresh([ranks[0].grad])
    assert (rows.option[:, -2:] == 7).all()


def test_what_is_neither_true_nor_false_is_refused() -> None:
    with pytest.raises(ValueError, match="bias_correction is 'no'; it must be True or False"):
        CAME(two(), bias_correction="no")  # type: ignore[arg-type]


def test_state_of_a_version_that_did_not_have_it() -> None:
    params = [nn.Parameter(weight) for weight in two()]
    optimizer = CAME(params)
    steps(optimizer, params, range(1))
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["bias_correction"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["bias_correction"] is False


def test_a_momentum_is_needed() -> None:
    """Without one `1 / sqrt(S)` was `1 / sqrt(eps2)`: steps of a hundred million times the rate."""
    with pytest.raises(ValueError, match=r"the first must be > 0.*Adafactor keeps no momentum"):
        CAME(two(), betas=(0.0, 0.999, 0.9999))


def two() -> list[Tensor]:
    return random_grads([(4, 5), (3,)], 2)


def steps(optimizer: CAME, params: list[nn.Parameter], which: range) -> None:
    for step in which:
        grads = random_grads([tuple(param.shape) for param in params], step)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()


def grad_of(param: nn.Parameter) -> Tensor:
    assert param.grad is not None
    return param.grad.double()
