"""Adafactor, LAMB and SM3 inside DeepSpeed equal themselves on one process."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from came import LAMB, SM3, Adafactor, bind
from came.sharded_optimizer import ShardedOptimizer
from tests.came.deepspeed_cases import (
    BF16,
    FP32_GRADS,
    Case,
    compare,
    deepspeed_config,
    gathered,
    initialize,
    param_groups,
)
from tests.came.toy import INITIAL, Toy, mean_grads, micro_grads
from tests.ranks import run_ranks

STEPS = 20
OPTIMIZERS: dict[str, tuple[type[ShardedOptimizer], dict[str, Any]]] = {
    "adafactor": (Adafactor, {}),  # lr is None
    "adafactor-momentum": (Adafactor, {"lr": 1e-2, "relative_step": False, "beta1": 0.9}),
    "lamb": (LAMB, {"lr": 1e-2}),
    "sm3": (SM3, {"lr": 1e-2}),
}
MIXED = {"extra": BF16 | FP32_GRADS}
CASES = {
    2: [
        ("adafactor", Case({"stage": 1})),
        ("adafactor-momentum", Case({"stage": 3}, torch.bfloat16, **MIXED)),
        ("lamb", Case({"stage": 2})),
        ("sm3", Case({"stage": 3})),
    ],
    3: [
        ("adafactor-momentum", Case({"stage": 2})),
        ("lamb", Case({"stage": 1}, torch.bfloat16, **MIXED)),
        ("lamb", Case({"stage": 3, "sub_group_size": 100})),
        ("sm3", Case({"stage": 1})),
        ("sm3", Case({"stage": 2, "round_robin_gradients": True})),
    ],
}


@pytest.mark.parametrize("world_size", CASES)
def test_sharded_equals_one_process(world_size: int) -> None:
    run_ranks(check_cases, world_size)


def check_cases() -> None:
    for name, case in CASES[dist.get_world_size()]:
        try:
            check_case(name, case)
        except AssertionError as error:
            raise AssertionError(f"{name} at {case.zero}: {error}") from error


def check_case(name: str, case: Case) -> None:
    optimizer, options = OPTIMIZERS[name]
    model = Toy().to(case.dtype)
    engine = initialize(
        model=model,
        optimizer=optimizer(param_groups(model), **options),
        config=deepspeed_config(case),
    )
    bind(engine)
    for step in range(STEPS):
        for micro in range(case.num_micro):
            engine.backward(engine(micro_grads(step, dist.get_rank(), micro)))
            engine.step()
    compare(gathered(engine), alone(name, case))
    engine.destroy()


def alone(name: str, case: Case) -> dict[str, dict[str, Tensor]]:
    """The same steps on whole parameters in fp32, in this process alone."""
    optimizer, options = OPTIMIZERS[name]
    model = Toy()
    chosen = optimizer(param_groups(model), **options)
    for step in range(STEPS):
        grads = mean_grads(step, dist.get_world_size(), case.num_micro, case.same)
        for leaf, grad in grads.items():
            getattr(model, leaf).weight.grad = grad
        chosen.step()
    return {
        leaf: {"start": start, "param": (weight := getattr(model, leaf).weight).detach()}
        | chosen.state[weight]
        for leaf, start in INITIAL.items()
    }
