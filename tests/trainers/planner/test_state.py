"""The bytes of the plan are those that real optimizers allocate."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from came.fields import allocate
from came.layout import Param, ShardLayout
from trainers.build import build_optimizer
from trainers.compose import compose
from trainers.config import Config
from trainers.planner.optimizers import Group, Kept, compared, kept
from trainers.planner.plan import meta_module
from trainers.planner.sharding import (
    MASTER,
    slice_numel,
    split,
    state_bytes,
    state_bytes_per_rank,
    touched_numel,
)

ROOT = Path(__file__).parents[3]
SMALL = ("model.hidden=48", "model.intermediate=100", "model.heads=2", "model.layers=2")
NAMES = [
    *("came", "came_bfloat16", "came_int8", "came_sign", "adamw"),
    *("adafactor", "adafactor_no_momentum", "lamb", "sm3"),
]


def bytes_of(state: dict[str, Tensor]) -> int:
    return sum(value.nbytes for key, value in state.items() if key != "step")


def planned(config: Config, name: str) -> Kept:
    return kept(compared(config)[name], config.runtime, meta_module(config, 1000))


def test_every_optimizer_has_a_row() -> None:
    assert sorted(compared(compose(["optimizer=came"], 1))) == sorted(NAMES)


def test_the_chosen_one_is_as_configured() -> None:
    rows = compared(compose(["optimizer.momentum=int8"], 1))
    assert rows["came"].momentum == "int8"
    assert {"came_float32", "came_bfloat16", "came_sign"} <= rows.keys()
    assert "came_int8" not in rows
    rows = compared(compose(["optimizer=adafactor", "optimizer.betas=[]"], 1))
    assert rows["adafactor"].betas == () and rows["adafactor_momentum"].betas == (0.9,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "experiment", ["quickstart", "quickstart_gpt2", "quickstart_llama", "quickstart_t5"]
)
def test_a_real_step_allocates_what_is_planned(experiment: str, name: str) -> None:
    words = [*SMALL, "model.kv_heads=1"] if "llama" in experiment else list(SMALL)
    config = compose([f"experiment={experiment}", *words], 1)
    module = meta_module(config, 300).to_empty(device="cpu")
    with torch.no_grad():
        for param in module.parameters():
            param.fill_(0.01)
            param.grad = torch.full_like(param, 0.01)
    optimizer = build_optimizer(compared(config)[name], config.runtime, module)
    optimizer.step()
    found = sum(map(bytes_of, optimizer.state.values()))
    assert found == state_bytes(kept(compared(config)[name], config.runtime, module))


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "adamw"])
def test_the_fullest_rank_allocates_what_is_planned(name: str, stage: int) -> None:
    config = compose(["model=bert_mini"], 1)
    keeps, world_size = planned(config, name), 5
    held = []
    for rank in range(world_size):
        layouts = (
            ShardLayout(group.params, split(group.params, stage, world_size), rank)
            for group in keeps.groups
        )
        states = (
            allocate(torch.empty(0, dtype=MASTER, device="meta"), layout, list(group.fields))
            for layout, group in zip(layouts, keeps.groups, strict=True)
        )
        held.append(sum(map(bytes_of, states)))
    # Where int8 blocks are cut a rank has a few scales more than rank 0.
    assert state_bytes_per_rank(keeps, stage, world_size) == pytest.approx(max(held), rel=1e-4)


def test_slices_are_even_and_cover_all_numbers() -> None:
    keeps = planned(compose(["model=bert_mini"], 1), "adamw")
    for group in keeps.groups:
        for stage in (1, 2, 3):
            part = slice_numel(group.params, stage, 6)
            padding = 2 * 6 if stage < 3 else 5 * len(group.params)
            assert group.numel <= 6 * part <= group.numel + padding
        # AdamW keeps two numbers for each of the slice, the padding included.
        assert slice_numel(group.params, 0, 6) == group.numel


def test_a_parameter_that_is_cut_counts_on_both_sides() -> None:
    params = (Param("a", (8,)), Param("b", (2,)), Param("c", (2,)))
    keeps = Kept((Group(params, ((), (), ())),), lambda params: ())
    assert touched_numel(keeps, 1) == 12
    assert touched_numel(keeps, 2) == 8 + 2 + 2  # slices of 6: rank 0 has a piece of a alone
    assert touched_numel(keeps, 3) == 8  # of 4: rank 2 has b and c


def test_bert_large_as_published() -> None:
    """The arithmetic of the paper: GB of state with 336 M parameters."""
    config = compose(["model=bert_large"], 1)
    module = meta_module(config, 30522)
    sizes = {
        name: state_bytes(kept(row, config.runtime, module)) / 1e9
        for name, row in compared(config).items()
    }
    assert sizes["adamw"] == sizes["lamb"] == pytest.approx(2.69, abs=0.01)
    assert sizes["came"] == pytest.approx(1.35, abs=0.01)
    assert sizes["came_bfloat16"] == pytest.approx(0.68, abs=0.01)
    assert sizes["came_int8"] == pytest.approx(0.35, abs=0.01)
    assert sizes["adafactor_no_momentum"] < 0.005


def test_bert_large_as_allocated() -> None:
    """The benchmark's BERT-Large has 336,226,108 parameters, the planner's 6,150 more."""
    config = compose(["model=bert_large"], 1)
    module = meta_module(config, 30522)
    rows = compared(config)
    measured = json.loads((ROOT / "docs" / "benchmarks" / "cpu.json").read_text())["contestants"]
    allocated = {told["name"]: told["state_bytes"] for told in measured}
    for row, name in (
        ("adamw", "torch AdamW fused"),
        ("came", "CAME cpu float32"),
        ("came_bfloat16", "CAME cpu bfloat16"),
        ("came_int8", "CAME cpu int8"),
        ("came_sign", "CAME cpu sign"),
        ("adafactor_no_momentum", "torch Adafactor"),
    ):
        planned = state_bytes(kept(rows[row], config.runtime, module))
        assert planned == pytest.approx(allocated[name], rel=5e-4), row
