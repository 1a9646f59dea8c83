"""The copy of a save, which is made beside a step: the update waits for it, with a bound."""

import threading
from pathlib import Path

import pytest

from tests.trainers.run.checkpoints import begin, names, random_state, same_bits
from tests.trainers.run.test_writer import Gate, check_newest
from trainers.errors import StorageError
from trainers.run import commits
from trainers.run.snapshot import Snapshot
from trainers.run.writer import Writer


def test_what_is_saved_is_the_state_when_it_was_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start waits for nothing, the update for the copy, the next save for the write."""
    may_copy, copy = threading.Event(), Snapshot.copy
    monkeypatch.setattr(Snapshot, "copy", lambda self: (may_copy.wait(30), copy(self)))
    gate, writer, live = Gate(monkeypatch), Writer(tmp_path, keep=2), random_state(4)
    begin(writer, 4, live)
    zero = lambda: [tensor.zero_() for tensor in live.values()]  # noqa: E731
    update = threading.Thread(target=lambda: (writer.copied(), zero()))
    update.start()
    update.join(0.2)
    assert update.is_alive() and same_bits(live, random_state(4))
    may_copy.set()
    update.join(30)
    assert not update.is_alive() and not same_bits(live, random_state(4))
    assert commits.committed(tmp_path) == []
    gate.open.set()
    assert writer.settle() and not writer.settle()
    check_newest(tmp_path, 4)


def test_a_copy_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(Snapshot, "copy", lambda _: go.wait(30))
    writer = Writer(tmp_path, keep=2, limit_seconds=0.2)
    begin(writer, 1, random_state(1))
    with pytest.raises(StorageError, match=r"rank 0 has not copied its state for step-00000001"):
        writer.copied()
    assert "rank 0 is still copying" in str(writer.wait(0.2))
    go.set()


def test_a_copy_that_fails_is_told_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Writer(tmp_path, keep=2)
    monkeypatch.setattr(Snapshot, "copy", lambda _: 1 // 0)
    begin(writer, 1, random_state(1))
    writer.copied()
    with pytest.raises(StorageError, match="ZeroDivisionError"):
        writer.settle()
    assert names(tmp_path) == []
