"""A checkpoint of one world in another: the same state, bit for bit, and back again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from safetensors.torch import load_file, save_file

from came import CAME
from came.state import after_load, entries
from tests.came.deepspeed_cases import LR, Case, param_groups
from tests.came.deepspeed_checks import (
    assert_equal,
    check_requantised,
    make_engine,
    snapshot,
    train,
)
from tests.came.fsdp2_cases import sharded_toy
from tests.ranks import run_ranks
from tests.trainers.run.checkpoints import IDENTITY, SETTING, save_entries
from trainers.run.checkpoint import load_latest

MOMENTUM = ("int8", "sign")  # the parameters and factors beside them are in plain pieces
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


def first_world(folder: str) -> None:
    """Two ranks, ZeRO 1: saved after three steps, and trained on."""
    for momentum in MOMENTUM:
        path = Path(folder) / momentum
        engine = make_engine(STAGE[1], momentum)
        train(engine, STAGE[1], range(3))
        save_entries(path / "first", 3, entries(engine))
        keep(engine, path / "saved.safetensors")
        train(engine, STAGE[1], range(3, 6))
        keep(engine, path / "end.safetensors")


def other_world(folder: str) -> None:
    """Any number of ranks, all stages: what was saved, and saved again as what it then is."""
    world_size = dist.get_world_size()
    for momentum in MOMENTUM:
        path = Path(folder) / momentum
        for stage in (0, 2, 3) if world_size == 3 else (3,):
            case = STAGE[stage]
            engine = make_engine(case, momentum)
            load(path / "first", engine, case)
            compare(engine, path / "saved.safetensors", moves=1)
            save_entries(path / f"{world_size}-{stage}", 3, entries(engine))


def back(folder: str) -> None:
    """Two ranks again, from every other world; at ZeRO 1 it goes on as if it had never left."""
    for momentum in MOMENTUM:
        path = Path(folder) / momentum
        for saved in sorted(path.glob("[0-9]-[0-9]")):
            engine = make_engine(STAGE[1], momentum)
            load(saved, engine, STAGE[1])
            compare(engine, path / "saved.safetensors", moves=2)
        if momentum != "int8":
            train(engine, STAGE[1], range(3, 6))
            compare(engine, path / "end.safetensors")
    check_fsdp2(Path(folder))


def check_fsdp2(folder: Path) -> None:
    """From ZeRO 1 into FSDP2, whose rows are cut elsewhere, and back."""
    for momentum in MOMENTUM:
        path = folder / momentum
        model = sharded_toy()
        optimizer = CAME(param_groups(model), lr=LR, momentum=momentum)  # type: ignore[arg-type]
        own = SimpleNamespace(module=model, basic_optimizer=optimizer, optimizer=optimizer)
        load(path / "first", own)
        compare(own, path / "saved.safetensors", moves=1)
        save_entries(path / "fsdp2", 3, entries(own))
        engine = make_engine(STAGE[1], momentum)
        load(path / "fsdp2", engine, STAGE[1])
        compare(engine, path / "saved.safetensors", moves=2)


def test_two_ranks_to_one_three_and_four_and_back(tmp_path: Path) -> None:
    for momentum in MOMENTUM:
        (tmp_path / momentum).mkdir()
    run_ranks(first_world, 2, str(tmp_path))
    for world_size in (1, 3, 4):
        run_ranks(other_world, world_size, str(tmp_path))
    run_ranks(back, 2, str(tmp_path))
