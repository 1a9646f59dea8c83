"""Checkpoints: what comes back is bit for bit what was saved, or nothing does."""

import contextlib
import gc
import json
import logging
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from came.state import Entry, Piece
from tests.ranks import run_ranks
from trainers.errors import CheckpointError, StorageError
from trainers.run import checkpoint, manifest

ROOT = Path(__file__).parents[3]
IDENTITY = {"model.hidden": 8, "optimizer.betas": (0.9, 0.999, 0.9999), "data": "f00d"}
SETTING = {"zero.stage": 1, "world_size": 1}
SHAPES = {"param/emb": (7, 5), "exp_avg/emb": (7, 5), "exp_avg_sq_row/emb": (7,), "step/emb": ()}


def random_state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    state["param/emb"][0, 0] = -0.0  # a sum over ranks would turn it into 0.0
    state["param/half"] = torch.randn(3, 2, generator=generator).to(torch.bfloat16)
    return state


def entries_of(state: dict[str, Tensor]) -> list[Entry]:
    """Every rank holds the whole."""
    return [
        Entry(
            name=name.split("/")[1],
            key=name.split("/")[0],
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            sharded=False,
            pieces=(Piece(0, tensor.view(-1)),),
            group=None,
        )
        for name, tensor in state.items()
    ]


def save(folder: Path, step: int, state: dict[str, Tensor], **changed: Any) -> Path:
    arguments: dict[str, Any] = {
        "identity": IDENTITY,
        "setting": SETTING,
        "extra": {"samples": step * 16},
        "keep": 2,
    }
    return checkpoint.save(folder, step, entries_of(state), **(arguments | changed))


def load(folder: Path, state: dict[str, Tensor], **changed: Any) -> checkpoint.Loaded | None:
    arguments = {"identity": IDENTITY, "setting": SETTING} | changed
    return checkpoint.load_latest(folder, entries_of(state), **arguments)


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> bytes:
        return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())

    return left.keys() == right.keys() and all(bits(left[n]) == bits(right[n]) for n in left)


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """What somebody does who edits a checkpoint and knows how the digest is made."""
    path = folder / manifest.FILE_NAME
    body = json.loads(path.read_text())
    body.pop("digest")
    for name in list(body["files"]):
        if (folder / name).exists():
            digest, size = manifest.sha256_of(folder / name), (folder / name).stat().st_size
            body["files"][name] = {"sha256": digest, "bytes": size}
    change(body)
    body["digest"] = manifest._digest(body)
    path.write_text(json.dumps(body))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Saved and loaded ------------------------------------------------------------------------------


def test_load_gives_back_every_bit_and_the_extra(tmp_path: Path) -> None:
    saved, live = random_state(1), random_state(2)
    folder = save(tmp_path, 100, saved)
    loaded = load(tmp_path, live)
    assert loaded == checkpoint.Loaded(100, {"samples": 1600}, folder)
    assert same_bits(live, random_state(1))


def test_no_checkpoints_is_no_error(tmp_path: Path) -> None:
    assert load(tmp_path / "checkpoints", random_state(1)) is None
    (tmp_path / "checkpoints").mkdir()
    assert load(tmp_path / "checkpoints", random_state(1)) is None


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step, random_state(step % 7))
    os.utime(tmp_path / "step-100000000", (0, 0))
    loaded = load(tmp_path, random_state(0))
    assert loaded is not None and loaded.step == 100_000_000


def test_prune_keeps_the_newest_commits(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, random_state(step), keep=3)
    assert names(tmp_path) == ["step-00000020", "step-00000030", "step-00000040"]


def test_a_refused_newer_commit_does_not_count_as_kept_and_is_replaced(tmp_path: Path) -> None:
    for step in (10, 20, 40):
        save(tmp_path, step, random_state(step), keep=3)
    (tmp_path / "step-00000040" / "rank-00000.safetensors").unlink()
    save(tmp_path, 30, random_state(30))
    assert names(tmp_path) == ["step-00000020", "step-00000030", "step-00000040"]
    save(tmp_path, 40, random_state(41))
    live = random_state(0)
    load(tmp_path, live)
    assert same_bits(live, random_state(41))
    assert names(tmp_path) == ["step-00000030", "step-00000040"]


def test_keeping_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep = 1"):
        save(tmp_path, 1, random_state(1), keep=1)


def test_old_commits_that_cannot_be_removed_do_not_fail_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> Path:
        raise PermissionError("not yours")

    monkeypatch.setattr(checkpoint, "_trash", refuse)
    for step in (1, 2, 3):
        save(tmp_path, step, random_state(step))
    assert "not yours" in caplog.text
    assert len(checkpoint.committed(tmp_path)) == 3


# Damage ----------------------------------------------------------------------------------------

DATA = "rank-00000.safetensors"


def edit_bytes(folder: Path, change: Callable[[bytearray], Any], name: str = DATA) -> None:
    content = bytearray((folder / name).read_bytes())
    change(content)
    (folder / name).write_bytes(content)


def set_byte(content: bytearray, place: int) -> None:
    content[place] ^= 1


def link_file(folder: Path) -> None:
    shutil.move(folder / DATA, folder.parent.parent / "elsewhere")
    (folder / DATA).symlink_to(folder.parent.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    shutil.move(folder, folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def name_outside(folder: Path) -> None:
    shutil.copy(folder / DATA, folder.parent / "outside")

    def change(body: dict[str, Any]) -> None:
        body["files"]["../outside"] = body["files"].pop(DATA)

    rewrite_manifest(folder, change)


def plant_nan(folder: Path) -> None:
    edit_bytes(folder, lambda content: content.__setitem__(slice(-4, None), b"\xff" * 4))
    rewrite_manifest(folder, lambda body: None)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half": (lambda f: edit_bytes(f, lambda c: c.__delitem__(slice(len(c) // 2, None))), "bytes"),
    "short": (lambda f: edit_bytes(f, lambda c: c.__delitem__(slice(-100, None))), "bytes instead"),
    "empty": (lambda f: edit_bytes(f, lambda c: c.clear()), "0 bytes instead"),
    "one bit": (lambda f: edit_bytes(f, lambda c: set_byte(c, -1)), "sha256"),
    "zeroed": (
        lambda f: edit_bytes(f, lambda c: c.__setitem__(slice(-300, None), bytes(300))),
        "sha256",
    ),
    "missing": (lambda f: (f / DATA).unlink(), "missing"),
    "folder": (lambda f: ((f / DATA).unlink(), (f / DATA).mkdir()), "not a regular file"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "missing"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "not a manifest"),
    "garbled": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe{"), "not text"),
    "list": (lambda f: (f / "manifest.json").write_text("[1]"), "not a manifest"),
    "deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "not a manifest"),
    "future": (lambda f: rewrite_manifest(f, lambda b: b.update(schema=2)), "schema 2"),
    "edited": (
        lambda f: edit_bytes(f, lambda c: set_byte(c, c.index(b"600")), "manifest.json"),
        "digest",
    ),
    "renamed": (lambda f: f.rename(f.with_name("step-00000300")), "is of step 100"),
    "linked file": (link_file, "not a regular file"),
    "linked folder": (link_folder, "symbolic link"),
    "path": (name_outside, "not a plain file name"),
    "lost tensor": (
        lambda f: rewrite_manifest(
            f, lambda b: b["tensors"].update({"param/x": b["tensors"]["param/emb"]})
        ),
        "in no file",
    ),
    "other shape": (
        lambda f: rewrite_manifest(f, lambda b: b["tensors"]["param/emb"].update(shape=[5, 7])),
        "not what manifest.json lists",
    ),
    "lost field": (lambda f: rewrite_manifest(f, lambda b: b.pop("extra")), "lacks a field"),
    "wrong type": (lambda f: rewrite_manifest(f, lambda b: b.update(identity=3)), "not a table"),
    "nan": (plant_nan, "not finite"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_commit_is_refused_in_words_and_the_older_one_loaded(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, words = DAMAGE[kind]
    folder = tmp_path / "checkpoints"
    save(folder, 50, random_state(50))
    damage(save(folder, 100, random_state(100)))
    live = random_state(0)
    loaded = load(folder, live)
    assert loaded is not None and loaded.step == 50
    assert same_bits(live, random_state(50))
    (record,) = caplog.records
    assert words in record.getMessage()


def test_when_no_commit_is_good_nothing_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2):
        edit_bytes(save(tmp_path, step, random_state(step)), lambda c: set_byte(c, -1))
    live = random_state(0)
    with pytest.raises(CheckpointError, match="step-00000002.*sha256.*step-00000001.*run.dir"):
        load(tmp_path, live)
    assert same_bits(live, random_state(0))


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """Never a third outcome: 300 random edits of single files of a commit."""
    whole = save(tmp_path / "whole", 1, random_state(1))
    chance = random.Random(0)
    outcomes = {"refused": 0, "loaded": 0}
    for trial in range(300):
        folder = tmp_path / str(trial) / whole.name
        shutil.copytree(whole, folder)
        name = chance.choice([DATA, manifest.FILE_NAME])
        content = bytearray((folder / name).read_bytes())
        place = chance.randrange(len(content))
        if chance.random() < 0.7:
            content[place] = chance.randrange(256)
        else:
            del content[place : place + chance.randrange(1, 40)]
        (folder / name).write_bytes(content)
        live = random_state(0)
        try:
            load(folder.parent, live)
            outcomes["loaded"] += 1
            assert same_bits(live, random_state(1))
        except CheckpointError:
            outcomes["refused"] += 1
            assert same_bits(live, random_state(0))
    assert outcomes["refused"] > 250


def test_a_file_that_is_not_listed_is_only_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (save(tmp_path, 1, random_state(1)) / "notes.txt").write_text("mine")
    assert load(tmp_path, random_state(0)) is not None
    assert "notes.txt" in caplog.text


class Touch:
    """Unpickling it makes a file: the code that a stranger's checkpoint would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_in_place_of_the_tensors_is_not_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints", 1, random_state(1))
    (folder / DATA).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    rewrite_manifest(folder, lambda body: None)
    with pytest.raises(CheckpointError):
        load(tmp_path / "checkpoints", random_state(0))
    assert not (tmp_path / "ran").exists()


# Another run -----------------------------------------------------------------------------------


def test_another_run_is_refused_with_old_and_new_value(tmp_path: Path) -> None:
    save(tmp_path, 1, random_state(1))
    live = random_state(0)
    other = IDENTITY | {"model.hidden": 16, "run.seed": 3}
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, live, identity=other)
    assert "model.hidden: 8 when saved, 16 now" in str(error.value)
    assert "run.seed: absent when saved, 3 now" in str(error.value)
    assert "betas" not in str(error.value)
    assert same_bits(live, random_state(0))


def test_another_setting_is_told_and_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, random_state(1))
    assert load(tmp_path, random_state(0), setting=SETTING | {"zero.stage": 3}) is not None
    assert "zero.stage: 1 when saved, 3 now" in caplog.text


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("param/emb", torch.zeros(5, 7), "param/emb: .*7, 5.* when saved, .*5, 7"),
        ("param/emb", torch.zeros(7, 5).double(), "float32.*float64"),
        ("param/more", torch.zeros(1), "param/more is not in the checkpoint"),
    ],
)
def test_tensors_that_do_not_fit_leave_the_state_untouched(
    name: str, tensor: Tensor, words: str, tmp_path: Path
) -> None:
    save(tmp_path, 1, random_state(1))
    live = random_state(0) | {name: tensor}
    before = {key: value.clone() for key, value in live.items()}
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path, live)
    assert same_bits(live, before)


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, random_state(1) | {"param/more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="param/more is not in the model"):
        load(tmp_path, random_state(0))


# Interruptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["_write_tensors", "_commit", "os.rename"])
def test_a_kill_during_a_save_leaves_the_previous_commit(point: str, tmp_path: Path) -> None:
    save(tmp_path, 1, random_state(1))
    script = f"""
        import os, signal
        from pathlib import Path
        from tests.trainers.run.test_checkpoint import random_state, save
        from trainers.run import checkpoint
        checkpoint.{point} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        save(Path({str(tmp_path)!r}), 2, random_state(2))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 2, "the interrupted save left a partial folder"
    live = random_state(0)
    loaded = load(tmp_path, live)
    assert loaded is not None and loaded.step == 1
    assert same_bits(live, random_state(1))
    assert names(tmp_path) == ["step-00000001"]


# Ranks -----------------------------------------------------------------------------------------


def cut(state: dict[str, Tensor], rank: int, world_size: int) -> list[Entry]:
    """Matrices are cut in the middle of a row, and the last rank holds nothing of "exp_avg"."""
    group = dist.group.WORLD
    entries = []
    for entry in entries_of(state):
        holders = world_size if entry.key == "param" else max(1, world_size - 1)
        flat = entry.pieces[0].view
        size = -(-flat.numel() // holders)
        if len(entry.shape) == 2:
            part = flat[rank * size : (rank + 1) * size]
            pieces = (Piece(rank * size, part),) if part.numel() else ()
            entry = Entry(entry.name, entry.key, entry.shape, entry.dtype, True, pieces, group)
        entries.append(entry)
    return entries


def zeros_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def rank_saves_and_loads(folder: str) -> None:
    rank, world_size, path = dist.get_rank(), dist.get_world_size(), Path(folder)
    shared: dict[str, Any] = {"identity": IDENTITY, "setting": SETTING}
    mine = cut(random_state(7), rank, world_size)
    checkpoint.save(path, 5, mine, **shared, extra={"samples": 80}, keep=2)
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
        checkpoint.save(path, 6, mine, **shared, extra={}, keep=2)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if rank == 0:  # alone, because it makes the next folder while the other rank would look
        assert names(path) == ["step-00000005"]
    checkpoint.save(path, 6, mine, **shared, extra={}, keep=2)

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


def test_a_failed_save_keeps_nothing_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback and a frame that held each other kept the process group alive.

    Until the interpreter ended, which then aborted now and then; and a copy of the whole state.
    """
    held: list[weakref.ref[Tensor]] = []

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        held.extend(weakref.ref(tensor) for tensor in tensors.values())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    gc.disable()
    try:
        with contextlib.suppress(StorageError):
            save(tmp_path, 1, random_state(1))
        assert held and all(tensor() is None for tensor in held)
    finally:
        gc.enable()


def test_a_full_disk_is_a_storage_error_without_ranks_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, random_state(1))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.durable, "sync", full)
        with pytest.raises(StorageError, match="No space left"):
            save(tmp_path, 2, random_state(2))
    assert names(tmp_path) == ["step-00000001"]
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, random_state(0)) is not None
    assert not caplog.records
