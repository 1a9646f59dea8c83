"""Checkpoints of several ranks: written in pieces, told of failures alike, read by any number."""

import resource
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import run_ranks
from tests.trainers.run.checkpoints import (
    IDENTITY,
    SETTING,
    begin_entries,
    cut,
    load,
    names,
    random_state,
    same_bits,
    save_entries,
)
from trainers.errors import CheckpointError, StorageError
from trainers.run import checkpoint, commits
from trainers.run.snapshot import Snapshot
from trainers.run.writer import Writer


def zeros_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def rank_saves_and_loads(folder: str) -> None:
    rank, world_size, path = dist.get_rank(), dist.get_world_size(), Path(folder)
    shared: dict[str, Any] = {"identity": IDENTITY, "setting": SETTING}
    mine = cut(random_state(7), rank, world_size)
    save_entries(path, 5, mine)
    live = zeros_like(random_state(7))
    live_entries = cut(live, rank, world_size)
    loaded = checkpoint.load_latest(path, live_entries, **shared)
    assert loaded is not None and loaded.extra == {"samples": 80}
    for entry, expected in zip(live_entries, mine, strict=True):
        for piece, wanted in zip(entry.pieces, expected.pieces, strict=True):
            assert torch.equal(piece.view, wanted.view)

    # The disk is full on rank 1 alone: all ranks are told, nothing is left, the next save works.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    with pytest.raises(StorageError, match="File too large"):
        save_entries(path, 6, mine)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if rank == 0:  # alone, because it makes the next folder while the other rank would look
        assert names(path) == ["step-00000005"]
    save_entries(path, 6, mine)

    # The copy fails on rank 1 alone, before there is a folder: told at once, with the cause.
    failing = Writer(path, keep=2, limit_seconds=20.0)
    copy = Snapshot.copy
    Snapshot.copy = lambda *args: 1 // 0 if rank else (time.sleep(1), copy(*args))[1]  # type: ignore
    begin = time.monotonic()
    begin_entries(failing, 7, mine)
    with pytest.raises(StorageError, match="rank 1: .*ZeroDivisionError"):
        failing.settle()
    assert time.monotonic() - begin < 10
    Snapshot.copy = copy  # type: ignore[method-assign]
    dist.barrier()

    # A rank that is stuck is named, and what it does later commits nothing.
    stuck = Writer(path, keep=2, limit_seconds=1.0)
    write = Snapshot.write
    if rank == 1:
        Snapshot.write = lambda *args: (time.sleep(3), write(*args))[1]  # type: ignore[method-assign]
    begin_entries(stuck, 7, mine)
    with pytest.raises(StorageError, match="rank 1"):
        stuck.settle()
    Snapshot.write = write  # type: ignore[method-assign]
    time.sleep(3)
    dist.barrier()
    assert [p.name for p in commits.committed(path)] == ["step-00000006", "step-00000005"]

    # Ranks that disagree about the run are all told.
    other = IDENTITY | {"model.hidden": 9 if rank == 1 else 8}
    with pytest.raises(CheckpointError, match="8 when saved, 9 now"):
        checkpoint.load_latest(path, live_entries, identity=other, setting=SETTING)


def test_two_ranks_save_load_and_fail_together_and_one_can_read_it(tmp_path: Path) -> None:
    run_ranks(rank_saves_and_loads, 2, str(tmp_path), timeout=100)
    assert names(tmp_path / "step-00000006") == [
        "manifest.json",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]
    live = zeros_like(random_state(7))
    loaded = load(tmp_path, live)
    assert loaded is not None and loaded.step == 6
    assert same_bits(live, random_state(7))
