"""Adafactor, LAMB and SM3 over simulated ranks, each against somebody else's implementation.

Adafactor against `transformers`.  SM3 and LAMB against `pytorch_optimizer`, where that agrees with
the paper: its LAMB never divides the second moment by `1 - beta2^t`, adds eps to the norm of the
update and bounds the norm of the parameter by 10; and its SM3 only agrees with `beta=0`.  LAMB with
bias correction is put together here, from torch's Adam and the three lines of the trust ratio.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import pytorch_optimizer
import torch
import transformers.optimization
from torch import Tensor, nn

from came import tasks
from came.layout import EachSplit, FlatSplit, Param
from came.rules import adafactor, lamb, sm3
from tests.came.simulation import (
    SHAPES,
    SimulatedRank,
    assert_close,
    flat_split,
    gather,
    simulate,
    statistics,
    world,
)

ADAFACTOR = {
    "lr": None,
    "eps": (1e-30, 1e-3),
    "clip_threshold": 1.0,
    "decay_rate": -0.8,
    "beta1": None,
    "weight_decay": 0.0,
    "scale_parameter": True,
    "relative_step": True,
    "warmup_init": False,
}
LAMB = {
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "eps": 1e-6,
    "weight_decay": 0.1,
    "bias_correction": True,
    "always_adapt": False,
    "max_trust_ratio": float("inf"),
}
SM3 = {"lr": 0.1, "beta1": 0.9, "eps": 1e-30, "weight_decay": 0.0}


def published_lamb(params: list[nn.Parameter], options: dict[str, Any]) -> torch.optim.Optimizer:
    """Version 3 of the paper, without bias correction; an eps that does not count."""
    wanted = {**LAMB, "eps": 1e-30, "bias_correction": False, "always_adapt": True}
    assert options == {**wanted, "weight_decay": options["weight_decay"]}
    optimizer = pytorch_optimizer.Lamb(
        params,
        lr=options["lr"],
        betas=options["betas"],
        eps=options["eps"],
        weight_decay=options["weight_decay"],
        weight_decouple=False,
        adam_debias=True,
    )
    optimizer.clamp = float("inf")
    return optimizer


class AdamWithTrustRatio:
    """LAMB as in the paper: torch's Adam gives the direction and both moments."""

    def __init__(self, params: list[nn.Parameter], options: dict[str, Any]) -> None:
        self.params, self.options = params, options
        self.minus = [nn.Parameter(torch.zeros_like(param)) for param in params]
        self.adam = torch.optim.Adam(self.minus, 1.0, options["betas"], options["eps"])

    @property
    def state(self) -> dict[Tensor, Any]:
        return {p: self.adam.state[m] for p, m in zip(self.params, self.minus, strict=True)}

    @torch.no_grad()
    def step(self) -> None:
        for param, minus in zip(self.params, self.minus, strict=True):
            minus.zero_()
            minus.grad = param.grad
        self.adam.step()
        decay = self.options["weight_decay"]
        for param, minus in zip(self.params, self.minus, strict=True):
            update, ratio = decay * param - minus, 1.0
            if (decay or self.options["always_adapt"]) and param.norm() > 0 and update.norm() > 0:
                ratio = min(param.norm() / update.norm(), self.options["max_trust_ratio"])
            param.sub_(self.options["lr"] * ratio * update)


class DecayedSM3:
    """The package's SM3 has no weight decay; the decay does not change its update."""

    def __init__(self, params: list[nn.Parameter], options: dict[str, Any]) -> None:
        self.params, self.decay = params, options["lr"] * options["weight_decay"]
        self.sm3 = pytorch_optimizer.SM3(
            params, lr=options["lr"], momentum=options["beta1"], eps=options["eps"]
        )
        self.state = self.sm3.state

    @torch.no_grad()
    def step(self) -> None:
        for param in self.params:
            param.sub_(param * self.decay)
        self.sm3.step()


@dataclass(frozen=True)
class Case:
    """A rule with options, and who else computes it."""

    rule: Any
    options: dict[str, Any]
    oracle: Callable[[list[nn.Parameter], dict[str, Any]], Any]
    num_reductions: int

    def world(self, split: Any, weights: list[Tensor], **settings: Any) -> list[SimulatedRank]:
        options = {**self.options, "matricize": "last"}
        shapes = [tuple(weight.shape) for weight in weights]
        return world(shapes, split, weights, options, rule=self.rule, **settings)


def adafactor_case(**options: Any) -> Case:
    def oracle(params: list[nn.Parameter], options: dict[str, Any]) -> torch.optim.Optimizer:
        return transformers.optimization.Adafactor(params, **options)

    return Case(adafactor, {**ADAFACTOR, **options}, oracle, 2)


MANUAL = {"lr": 1e-2, "relative_step": False}
UNCORRECTED = {"eps": 1e-30, "bias_correction": False, "always_adapt": True}
CASES = {
    "adafactor": adafactor_case(),
    "adafactor-warmup": adafactor_case(warmup_init=True, clip_threshold=0.5, decay_rate=-0.5),
    "adafactor-manual": adafactor_case(**MANUAL, scale_parameter=False, weight_decay=0.1),
    "adafactor-momentum": adafactor_case(**MANUAL, beta1=0.9, weight_decay=0.1),
    "lamb": Case(lamb, LAMB, AdamWithTrustRatio, 1),
    "lamb-clamped": Case(lamb, {**LAMB, "max_trust_ratio": 0.9}, AdamWithTrustRatio, 1),
    "lamb-no-decay": Case(lamb, {**LAMB, "weight_decay": 0.0}, AdamWithTrustRatio, 1),
    "lamb-always": Case(
        lamb, {**LAMB, "weight_decay": 0.0, "always_adapt": True}, AdamWithTrustRatio, 1
    ),
    "lamb-uncorrected": Case(lamb, {**LAMB, **UNCORRECTED}, published_lamb, 1),
    "sm3": Case(sm3, SM3, DecayedSM3, 1),
    "sm3-no-momentum": Case(sm3, {**SM3, "beta1": 0.0, "weight_decay": 0.1}, DecayedSM3, 1),
}
MAIN = ("adafactor-momentum", "lamb", "sm3")


def split_of(kind: str, world_size: int) -> FlatSplit | EachSplit:
    if kind == "flat":
        return flat_split(SHAPES, world_size, random.Random(world_size))
    return EachSplit(tuple(Param("", shape).numel for shape in SHAPES), world_size)


def published_state(oracle: Any, param: Tensor) -> dict[str, Tensor]:
    """The state of a parameter under our names and in our shapes."""
    found = {}
    for key, value in oracle.state[param].items():
        if key.startswith("accumulator_"):
            vector = param.dim() < 2
            found["accumulator" if vector else key] = value if vector else value.flatten()
        elif key.startswith("exp_avg") or key == "momentum_buffer":
            found["exp_avg" if key == "momentum_buffer" else key] = value
    return found


def run(
    case: Case, split: Any, dtype: torch.dtype, num_steps: int = 20
) -> tuple[list[SimulatedRank], list[nn.Parameter], Any]:
    """The same steps with random gradients by simulated ranks, and by the oracle in float64."""
    generator = torch.Generator().manual_seed(split.world_size)
    weights = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    weights[2].zero_()  # a bias: it has no norm at first
    ranks = case.world(split, weights)
    wanted = [nn.Parameter(weight.double()) for weight in weights]
    oracle = case.oracle(wanted, case.options)
    for _ in range(num_steps):
        grads = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
        grads[0][5:9] = 0  # rows without a gradient, as in an embedding
        assert simulate(ranks, grads) == case.num_reductions
        for param, grad in zip(wanted, grads, strict=True):
            param.grad = grad.double()
        oracle.step()
        for param in wanted:
            param.data = param.data.to(dtype).double() if dtype.itemsize == 2 else param.data
    return ranks, wanted, oracle


def check_state(
    ranks: list[SimulatedRank], wanted: list[nn.Parameter], oracle: Any, tolerance: float
) -> None:
    """Every state tensor of every parameter, and on every rank what every rank holds."""
    for index, param in enumerate(wanted):
        tensors = published_state(oracle, param)
        kept = {field.key: field for field in ranks[0].fields[index]}
        if ranks[0].rule is sm3 and not ranks[0].options["beta1"]:
            tensors.pop("exp_avg", None)  # the package keeps a buffer that it does not use
        assert kept.keys() == tensors.keys(), SHAPES[index]
        for key, tensor in tensors.items():
            what = f"{SHAPES[index]} {key}"
            limit = tolerance if tensor.numel() > 1 else 10 * tolerance  # one sum may cancel
            if kept[key].shape is None:
                assert_close(gather(ranks, key, index), tensor, limit, what)
            else:
                for rank in ranks:
                    assert_close(statistics(rank, index)[key], tensor, limit, what)


def check(case: Case, split: Any, dtype: torch.dtype, tolerance: float) -> None:
    ranks, wanted, oracle = run(case, split, dtype)
    for index, param in enumerate(wanted):
        assert_close(gather(ranks, "param", index), param, tolerance, f"{SHAPES[index]} param")
    check_state(ranks, wanted, oracle, tolerance)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", ["flat", "each"])
@pytest.mark.parametrize("name", MAIN)
def test_sharded_equals_the_published(name: str, kind: str, world_size: int) -> None:
    check(CASES[name], split_of(kind, world_size), torch.float64, 1e-12)
    check(CASES[name], split_of(kind, world_size), torch.float32, 3e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name not in MAIN])
def test_every_option_equals_the_published(name: str) -> None:
    check(CASES[name], split_of("flat", 3), torch.float64, 1e-12)
    check(CASES[name], split_of("each", 1), torch.float32, 3e-6)


@pytest.mark.parametrize("name", MAIN)
def test_blocks_may_be_cut_anywhere(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is larger than a cache is worked through in runs of rows; here nearly everything is."""
    monkeypatch.setattr(tasks, "PIECE", 16)
    check(CASES[name], split_of("flat", 2), torch.float64, 1e-12)


@pytest.mark.parametrize("name", MAIN)
def test_bfloat16_parameters_are_computed_in_float32(name: str) -> None:
    """Rounded once a step: equal to the published in float64 but for a rare last bit."""
    ranks, wanted, oracle = run(CASES[name], split_of("flat", 3), torch.bfloat16)
    off = total = 0
    for index, param in enumerate(wanted):
        found = gather(ranks, "param", index)
        torch.testing.assert_close(found, param.data, rtol=2**-7, atol=0)
        off, total = off + int((found != param).sum()), total + param.numel()
    assert off <= 0.002 * total
    check_state(ranks, wanted, oracle, 1e-4)
    for rank in ranks:
        assert {value.dtype for value in rank.state.values()} == {torch.float32}


@pytest.mark.parametrize("name", CASES)
def test_without_gradient_nothing_breaks(name: str) -> None:
    case = CASES[name]
    ranks = case.world(FlatSplit((40,), (0,), 20, 2), [torch.ones(10, 4)])
    grad = torch.zeros(10, 4)
    for _ in range(3):
        simulate(ranks, [grad])  # nothing at all
    if not case.options["weight_decay"]:
        assert (gather(ranks, "param", 0) == 1).all()
    grad[3] = 1e-3
    for _ in range(3):
        simulate(ranks, [grad])  # one row of ten
    found = gather(ranks, "param", 0)
    assert found.isfinite().all() and (found[3] < found[4]).all()


@pytest.mark.parametrize("name", MAIN)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_in_its_parameter(name: str, bad: float) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads = [torch.randn(shape, generator=generator) for shape in SHAPES]
    clean = CASES[name].world(split_of("flat", 3), weights)
    dirty = CASES[name].world(split_of("flat", 3), weights)
    simulate(clean, grads)
    grads[0][17, 3] = bad
    simulate(dirty, grads)
    for index in range(1, len(SHAPES)):
        assert torch.equal(gather(clean, "param", index), gather(dirty, "param", index))
    assert not gather(dirty, "param", 0).isfinite().all()
