"""Saves in the background: whole or not at all, told, and never waited for without a bound."""

import contextlib
import gc
import os
import random
import signal
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.run.checkpoints import begin, load, names, random_state, same_bits, save
from trainers import durable
from trainers.errors import StorageError
from trainers.run import commits
from trainers.run.snapshot import Snapshot
from trainers.run.writer import Writer

# Whole or not at all ---------------------------------------------------------------------------


def forked(action: Any) -> int:
    """Run `action` in a copy of this process; returns the signal that ended it, 0 for none."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            action()
        os._exit(0)
    for _ in range(3000):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise TimeoutError("the copy of this process hangs")


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("point", ["write", "sync", "write_text", "rename", "folder", "prune"])
def test_a_kill_during_a_save_leaves_whole_commits(point: str, tmp_path: Path) -> None:
    """Before, in the middle of and after the file; around the manifest, the rename, the prune."""
    for step in (1, 2):
        save(tmp_path, step, random_state(step))

    def save_and_die() -> None:
        places: dict[str, tuple[Any, str]] = {
            "write": (Snapshot, "write"),
            "sync": (os, "fsync"),
            "write_text": (commits.durable, "write_text"),
            "rename": (os, "rename"),
            "folder": (commits.durable, "sync"),
            "prune": (commits, "prune"),
        }
        setattr(*places[point], die)
        save(tmp_path, 3, random_state(3))

    assert forked(save_and_die) == signal.SIGKILL
    found = 3 if point == "prune" else 2
    assert len(names(tmp_path)) == 3, "the interrupted save left a folder, or prune did not come"
    check_newest(tmp_path, found)
    assert all(name.startswith("step-0000000") and len(name) == 13 for name in names(tmp_path))


def check_newest(folder: Path, step: int) -> None:
    live = random_state(0)
    loaded = load(folder, live)
    assert loaded is not None and loaded.step == step
    assert same_bits(live, random_state(step))


def test_a_kill_at_any_instant_leaves_whole_commits(tmp_path: Path) -> None:
    chance = random.Random(0)
    save(tmp_path, 1, random_state(1))
    reached = 1
    for _ in range(25):
        delay = chance.uniform(0, 0.03)

        def save_on(first: int = reached, delay: float = delay) -> None:
            threading.Timer(delay, die).start()
            for step in range(first + 1, first + 1000):
                save(tmp_path, step, random_state(step))

        assert forked(save_on) == signal.SIGKILL
        live = random_state(0)
        loaded = load(tmp_path, live)
        assert loaded is not None and loaded.step >= reached
        assert same_bits(live, random_state(loaded.step))
        assert len(names(tmp_path)) == len(commits.committed(tmp_path)), "leftovers are removed"
        reached = loaded.step
    save(tmp_path, reached + 1, random_state(1))  # whom a kill kept from pruning, the next prunes
    assert len(commits.committed(tmp_path)) == 2


# In the background -----------------------------------------------------------------------------


class Gate:
    """Holds a save back until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, write = threading.Event(), Snapshot.write
        monkeypatch.setattr(Snapshot, "write", lambda *a: (self.open.wait(30), write(*a))[1])


def test_nothing_is_published_or_removed_before_the_bytes_are_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        save(tmp_path, step, random_state(step))
    reached, go = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        reached.set()
        go.wait(30)
        fsync(descriptor)

    writer = Writer(tmp_path, keep=2)
    monkeypatch.setattr(os, "fsync", slow)
    begin(writer, 3, random_state(3))
    assert reached.wait(30)
    assert [path.name for path in commits.committed(tmp_path)] == ["step-00000002", "step-00000001"]
    go.set()
    writer.settle()
    assert names(tmp_path) == ["step-00000002", "step-00000003"]


def test_the_buffer_is_used_again(tmp_path: Path) -> None:
    writer, places = Writer(tmp_path, keep=2), set()
    for step in (1, 2, 3):
        begin(writer, step, random_state(step))
        writer.settle()
        places.add(writer._snapshot._buffer.data_ptr())
    assert len(places) == 1
    check_newest(tmp_path, 3)


def test_a_failed_save_is_told_and_the_next_one_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    save(tmp_path, 1, random_state(1))
    writer = Writer(tmp_path, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        begin(writer, 2, random_state(2))
        with pytest.raises(StorageError, match="No space left") as failure:
            writer.settle()
    assert failure.value.everywhere
    assert "step-00000002 could not be saved: rank 0: [Errno 28]" in caplog.text
    assert names(tmp_path) == ["step-00000001"]
    begin(writer, 3, random_state(3))
    writer.settle()
    check_newest(tmp_path, 3)


def test_a_bug_in_the_thread_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Snapshot, "write", lambda *_: 1 // 0)
    with pytest.raises(StorageError, match="ZeroDivisionError"):
        save(tmp_path, 1, random_state(1))


def test_a_disk_that_hangs_is_given_up_and_never_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, writer = Gate(monkeypatch), Writer(tmp_path, keep=2, limit_seconds=0.2)
    begin(writer, 1, random_state(1))
    assert writer._save is not None
    thread = writer._save.thread
    with pytest.raises(StorageError, match="rank 0 is still writing"):
        writer.settle()
    writer._limit = 30.0
    begin(writer, 2, random_state(2))  # into another buffer
    gate.open.set()
    writer.settle()
    assert thread is not None
    thread.join(30)
    assert names(tmp_path) == ["step-00000002"]
    check_newest(tmp_path, 2)


@pytest.mark.parametrize("where", ["manifest", "rename"])
def test_a_disk_that_hangs_in_the_commit_is_given_up_too(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, write, rename = threading.Event(), durable.replace, os.rename

    def slow_write(path: Path, content: bytes) -> None:
        assert path.name != "manifest.json" or go.wait(10)
        write(path, content)

    def slow_rename(source: Path, target: Path) -> None:
        assert go.wait(10)
        rename(source, target)

    writer = Writer(tmp_path, keep=2, limit_seconds=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace", slow_write) if where == "manifest" else patch.setattr(
            os, "rename", slow_rename
        )
        begin(writer, 1, random_state(1))
        thread, before = writer._save and writer._save.thread, time.monotonic()
        words = {"manifest": "still writing the manifest", "rename": "and may yet commit it"}
        with pytest.raises(StorageError, match=words[where]):
            writer.settle()
        assert time.monotonic() - before < 5
        go.set()
        assert thread is not None
        thread.join(30)
    assert names(tmp_path) == ([] if where == "manifest" else ["step-00000001"])
    writer._limit = 30.0
    begin(writer, 2, random_state(2))
    writer.settle()
    check_newest(tmp_path, 2)


def test_other_ranks_stay_until_rank_0_has_committed(tmp_path: Path) -> None:
    """On an error of all ranks: the launcher ends rank 0 soon after the first rank has ended."""
    writer = Writer(tmp_path, keep=2)
    writer._rank = 1
    begin(writer, 1, random_state(1))
    staging = commits.staging(tmp_path / "step-00000001", writer._token)
    begun = time.monotonic()
    threading.Timer(0.5, lambda: staging.rename(tmp_path / "step-00000001")).start()
    writer.leave(20)
    assert 0.4 < time.monotonic() - begun < 10
    begin(writer, 2, random_state(2))
    writer.leave(0.3)  # nobody commits that one, and it does not wait for ever
    assert commits.staging(tmp_path / "step-00000002", writer._token).exists()


def test_a_failed_save_keeps_nothing_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback and a frame that held each other kept the process group alive.

    Until the interpreter ended, which then aborted now and then; and a copy of the whole state.
    """
    held: list[weakref.ref[Snapshot]] = []

    def full(snapshot: Snapshot, path: Path) -> None:
        held.append(weakref.ref(snapshot))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Snapshot, "write", full)
    gc.disable()
    try:
        with contextlib.suppress(StorageError):
            save(tmp_path, 1, random_state(1))
        assert held and all(snapshot() is None for snapshot in held)
    finally:
        gc.enable()
