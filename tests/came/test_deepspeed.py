"""CAME inside DeepSpeed equals the authors' package on one process."""

import subprocess
import sys

import pytest

from came.sharding import deepspeed
from tests.came import deepspeed_cases, deepspeed_checks
from tests.ranks import run_ranks


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_every_sharding_computes_came(world_size: int) -> None:
    run_ranks(deepspeed_cases.check_cases, world_size, tuple(deepspeed_cases.CASES))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_distributed_data_parallel_computes_came(world_size: int) -> None:
    run_ranks(deepspeed_cases.check_ddp, world_size)


def test_the_contract_with_deepspeed() -> None:
    run_ranks(deepspeed_checks.check_all, 2)


def test_state_moves_between_shardings() -> None:
    run_ranks(deepspeed_checks.check_state_moves, 3)


def test_a_wrapper_that_is_not_known_is_named() -> None:
    class NewZeroOptimizer:
        optimizer = None

    with pytest.raises(RuntimeError, match="NewZeroOptimizer"):
        deepspeed.read(NewZeroOptimizer(), {})


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"swap_optimizer": True}, "NVMe"),
        ({"params_in_nvme_and_cpu": True}, "NVMe"),
        ({"subgroup_to_device": {0: "cpu", 1: "cuda"}}, "ratio"),
        ({"groups": [{"moe": True}]}, "experts"),
        ({"has_moe_layers": True}, "experts"),
    ],
)
def test_features_that_are_not_supported_are_named(attributes: dict, words: str) -> None:
    groups = attributes.pop("groups", [])
    inner = type("Inner", (), {"param_groups": groups})()
    wrapper = type("DeepSpeedZeroOptimizer_Stage3", (), {"optimizer": inner, **attributes})()
    with pytest.raises(RuntimeError, match=words):
        deepspeed.read(wrapper, {})


def test_came_neither_needs_nor_imports_deepspeed() -> None:
    program = """
import sys, torch, came
sys.modules["deepspeed"] = None  # importing it is an error from here on
param = torch.nn.Parameter(torch.ones(3, 3))
param.grad = torch.ones(3, 3)
optimizer = came.CAME([param])
optimizer.step()
print(came.bind(optimizer).state_bytes)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == f"{4 * (9 + 2 * 6 + 1)}\n", done.stderr
