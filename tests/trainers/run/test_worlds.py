"""A checkpoint of one world in another: the same state, bit for bit, the same losses, and back."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from came import CAME
from came.pieces import Entry
from came.state import after_load, entries, gather
from tests.came.deepspeed_cases import CASES, LR, Case, param_groups
from tests.came.deepspeed_checks import (
    assert_equal,
    check_requantised,
    make_engine,
    snapshot,
)
from tests.came.fsdp2_cases import sharded_toy
from tests.came.toy import micro_grads
from tests.ranks import run_ranks
from tests.trainers.run.checkpoints import IDENTITY, SETTING, save_entries
from trainers.run.checkpoint import load_latest

MOMENTUM = ("int8", "sign")  # the parameters and factors beside them are in plain pieces
TOLERANCE = 1e-4  # of losses
STAGE = {stage: Case({"stage": stage}, num_micro=1) for stage in range(4)}


def load(folder: Path, engine: Any, case: Case | None = None) -> None:
    assert load_latest(folder, entries(engine), identity=IDENTITY, setting=SETTING) is not None
    if case is not None:
        after_load(engine)


def compare(engine: Any, path: Path, *, moves: int = 0) -> None:
    """Equal bit for bit; int8 after `moves` between worlds to as many times half a code."""
    if moves and "int8" in path.parts:
        check_requantised(snapshot(engine), load_file(path), moves)
    else:
        assert_equal(snapshot(engine), load_file(path))


def keep(engine: Any, path: Path) -> None:
    found = snapshot(engine)
    if dist.get_rank() == 0:
        save_file(found, path)
    dist.barrier()


def train(engine: Any, steps: range) -> list[float]:
    """The losses.  All ranks have the same rows: their mean is the same for any number of them."""
    losses = []
    for step in steps:
        loss = engine(micro_grads(step, 0, 0))
        losses.append(loss.item())
        engine.backward(loss)
        engine.step()
    return losses


def goes_on(engine: Any, path: Path) -> None:
    """What a whole run does next; its losses are far enough apart to show a step that differs."""
    wanted = json.loads((path / "losses.json").read_text())
    assert min(abs(one - other) for one, other in pairwise(wanted)) > 10 * TOLERANCE, wanted
    found = train(engine, range(3, 6))
    errors = [abs(one - other) for one, other in zip(found, wanted, strict=True)]
    assert max(errors) < TOLERANCE, (path.name, found, wanted)


class Sharded:
    """FSDP2 with the names that DeepSpeed's engine has."""

    def __init__(self, momentum: str) -> None:
        self.module = sharded_toy()
        self.optimizer = CAME(
            param_groups(self.module),
            lr=LR,
            momentum=momentum,  # type: ignore[arg-type]
            bias_correction=momentum == "sign",  # as in `make_engine`
        )
        self.basic_optimizer = self.optimizer

    def __call__(self, grads: Any) -> Any:
        self.optimizer.zero_grad()
        return self.module(grads)

    def backward(self, loss: Any) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()


def first_world(folder: str) -> None:
    """Two ranks, ZeRO 1: saved after three steps, and trained on."""
    for momentum in MOMENTUM:
        path = Path(folder) / momentum
        engine = make_engine(STAGE[1], momentum)
        train(engine, range(3))
        save_entries(path / "first", 3, entries(engine))
        keep(engine, path / "saved.safetensors")
        losses = train(engine, range(3, 6))
        if dist.get_rank() == 0:
            (path / "losses.json").write_text(json.dumps(losses))
        keep(engine, path / "end.safetensors")


def other_world(folder: str) -> None:
    """Any number of ranks, all stages, FSDP2: what was saved, saved again, and trained on."""
    world_size = dist.get_world_size()
    for momentum in MOMENTUM:
        path = Path(folder) / momentum
        for stage, case in STAGE.items():
            engine = make_engine(case, momentum)
            load(path / "first", engine, case)
            compare(engine, path / "saved.safetensors", moves=1)
            save_entries(path / f"{world_size}-{stage}", 3, entries(engine))
            goes_on(engine, path)
        own = Sharded(momentum)
        load(path / "first", own)
        compare(own, path / "saved.safetensors", moves=1)
        save_entries(path / f"{world_size}-fsdp2", 3, entries(own))
        goes_on(own, path)


def back(folder: str) -> None:
    """Two ranks again, from every other world; at ZeRO 1 it goes on as if it had never left."""
    other_world(folder)
    for momentum in MOMENTUM:
        path = Path(folder) / momentum
        worlds = sorted(path.glob("[1-4]-*"))
        assert len(worlds) == 4 * 5
        for saved in worlds:
            engine = make_engine(STAGE[1], momentum)
            load(saved, engine, STAGE[1])
            compare(engine, path / "saved.safetensors", moves=2)
            goes_on(engine, path)
            if momentum != "int8":
                compare(engine, path / "end.safetensors")


def test_two_ranks_to_one_three_and_four_and_back(tmp_path: Path) -> None:
    for momentum in MOMENTUM:
        (tmp_path / momentum).mkdir()
    run_ranks(first_world, 2, str(tmp_path))
    for world_size in (1, 3, 4):
        run_ranks(other_world, world_size, str(tmp_path))
    run_ranks(back, 2, str(tmp_path))


WRAPPERS = ("zero0-bf16", "zero1-bf16", "zero3-bf16", "zero2-offload", "zero3-offload-all")
OPTIMIZERS = ("bfloat16", "adamw")  # CAME by its momentum


def trained(engine: Any) -> list[Entry]:
    """Without the frozen weight, of which half precision has no float32 master: that is refused."""
    return [entry for entry in entries(engine) if entry.name != "frozen.weight"]


def moved(engine: Any, saved: Path) -> dict[str, Tensor]:
    """The state of an engine that has loaded `saved`, whole."""
    loaded = load_latest(saved, trained(engine), identity=IDENTITY, setting=SETTING)
    assert loaded is not None
    after_load(engine)
    return {f"{entry.key}/{entry.name}": gather(entry) for entry in trained(engine)}


def unwrapped(folder: str) -> None:
    """Two ranks, ZeRO 1 in float32."""
    for optimizer in OPTIMIZERS:
        path = Path(folder) / optimizer
        engine = make_engine(STAGE[1], optimizer)
        train(engine, range(3))
        save_entries(path / "first", 3, trained(engine))
        whole = {f"{entry.key}/{entry.name}": gather(entry) for entry in trained(engine)}
        if dist.get_rank() == 0:
            save_file(whole, path / "saved.safetensors")


def wrapped(folder: str) -> None:
    """Any number of ranks: half precision with float32 masters, state on the host; saved again."""
    for optimizer in OPTIMIZERS:
        path = Path(folder) / optimizer
        for name in WRAPPERS:
            engine = make_engine(CASES[name], optimizer)
            found = moved(engine, path / "first")
            assert_equal(found, load_file(path / "saved.safetensors"))
            save_entries(path / f"{dist.get_world_size()}-{name}", 3, trained(engine))


def unwrapped_again(folder: str) -> None:
    for optimizer in OPTIMIZERS:
        path = Path(folder) / optimizer
        saved = sorted(path.glob("[1-4]-*"))
        assert len(saved) == 2 * len(WRAPPERS)
        for one in saved:
            found = moved(make_engine(STAGE[1], optimizer), one)
            assert_equal(found, load_file(path / "saved.safetensors"))


@pytest.mark.slow
def test_into_half_precision_and_offload_and_back(tmp_path: Path) -> None:
    for optimizer in OPTIMIZERS:
        (tmp_path / optimizer).mkdir()
    run_ranks(unwrapped, 2, str(tmp_path))
    for world_size in (1, 3):
        run_ranks(wrapped, world_size, str(tmp_path))
    run_ranks(unwrapped_again, 2, str(tmp_path))
