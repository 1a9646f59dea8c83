"""Saving in the background: a step computes on while the state is copied, threads do the rest.

    training  forward, backward | update | forward, backward | update | ...
    rank 0    copy              | check, write, fsync | wait for all parts | manifest, rename, prune
    rank 1    copy              | check, write, fsync, part
              ^ nothing changes the state before the update, which waits for the copy (`copied`)

`settle`, before the next save, tells all ranks the outcome.  Threads of ranks meet in the staging
folder, where each leaves a small file of what it has written or why it could not: a collective of
theirs would mix with those of the training.  Rank 0 alone commits, when every byte is on the disk,
and never after it has told that a save has failed.
"""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from came.pieces import Entry
from trainers.errors import RunError, StorageError
from trainers.faults import fault
from trainers.run import commits
from trainers.run.agreement import own_rank, together, world_size
from trainers.run.commits import MIN_KEEP, Best
from trainers.run.folder import versions
from trainers.run.manifest import FileRecord, Manifest
from trainers.run.parts import file_name, leave_part, take_part
from trainers.run.snapshot import Snapshot
from trainers.run.step_folders import folder_name
from trainers.run.tensors import own_parts, record_of, tensor_name

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05  # between two looks for what other ranks have done
_RENAME_SECONDS = 1.0  # that a rename may take when nobody waits any longer


@dataclass
class _Save:
    """One save of this rank.  Under `lock` it is either renamed or given up."""

    target: Path
    staging: Path
    snapshot: Snapshot
    entries: Sequence[Entry]
    manifest: Manifest  # of rank 0; `tensors` and `files` are filled in when those are written
    copied: threading.Event = field(default_factory=threading.Event)  # or failed to be
    lock: threading.Lock = field(default_factory=threading.Lock)
    thread: threading.Thread | None = None
    doing: str = "copying"
    error: str | None = None
    committed: bool = False
    given_up: bool = False


class Writer:
    """Commits the state of a run, one save at a time.  Every rank must make the same calls."""

    def __init__(
        self,
        checkpoints: Path,
        *,
        keep: int,
        best: Best | None = None,
        limit_seconds: float = 300,
        on_commit: Callable[[Path, int], None] = lambda folder, num_bytes: None,
    ) -> None:
        """Args:
        keep: the newest commits that stay, and of `best` the best one.
        limit_seconds: the longest that anybody waits for a save; less than the timeout of the
            process group, or that would be told in place of the cause.
        on_commit: is told of each commit on rank 0, in its thread.
        """
        if keep < MIN_KEEP:
            raise ValueError(f"keep = {keep}: at least {MIN_KEEP} checkpoints must be kept")
        self._checkpoints, self._keep, self._best = checkpoints, keep, best
        self._limit, self._on_commit = limit_seconds, on_commit
        self._rank, self._num_ranks = own_rank(), world_size()
        self._versions = versions() if self._rank == 0 else {}
        # All ranks write into folders of one name, which no other start of the run has.
        token = secrets.token_hex(6) if self._rank == 0 else None
        self._token = together(lambda: token, StorageError)[0]
        self._snapshot = Snapshot()
        self._save: _Save | None = None
        self.refused: set[str] = set()  # commits, by name, that could not be loaded; of rank 0

    def resumed_from(self, step: int) -> None:
        """The commits beyond `step`, from which this run goes on, were refused."""
        self.refused = commits.newer_than(self._checkpoints, step) if self._rank == 0 else set()

    def start(
        self,
        step: int,
        entries: Sequence[Entry],
        *,
        identity: Mapping[str, Any],
        setting: Mapping[str, Any],
        extra: Mapping[str, Any],
    ) -> Path:
        """Begin to copy and write the state behind `entries`; returns the folder to be.

        It must not change until `copied` has returned.  No collective.  The save before must be
        settled.  `identity`, `setting` and `extra` are JSON, see `Manifest`.
        """
        assert self._save is None, "settle the save before"
        self._snapshot.begin(own_parts(entries, self._rank, self._num_ranks))
        target = self._checkpoints / folder_name(step)
        manifest = Manifest(
            step=step,
            files={},
            tensors={},
            identity=dict(identity),
            setting=dict(setting),
            versions=self._versions,
            extra=dict(extra),
        )
        staging = commits.staging(target, self._token)
        save = _Save(target, staging, self._snapshot, entries, manifest)
        save.thread = threading.Thread(target=self._run, args=(save,), daemon=True)
        self._save = save
        save.thread.start()
        return target

    def copied(self) -> None:
        """Wait until the state may change.  No collective.

        Raises StorageError if that takes too long: nothing can be learned then.
        """
        if self._save is not None and not self._save.copied.wait(self._limit):
            self._save.given_up = True
            raise StorageError(
                f"rank {self._rank} has not copied its state for {self._save.target.name} within "
                f"{self._limit:.0f} s: is its memory being swapped, or its GPU hung?"
            )

    def settle(self) -> bool:
        """Wait for the save that was started; returns whether there was one.  A collective if so.

        Raises StorageError on every rank if it failed on any: nothing is committed then, and older
        commits are untouched.
        """
        if self._save is None:
            return False
        save = self._save
        error = self.wait(self._limit)
        outcomes = together(lambda: {"error": error, "committed": save.committed}, StorageError)
        errors = [outcome["error"] for outcome in outcomes if outcome["error"]]
        if not outcomes[0]["committed"]:
            raise _of_all(errors[0] if errors else "the checkpoint was not committed")
        return True

    @property
    def num_bytes(self) -> int:
        """Of this rank's part of the last save."""
        return self._snapshot.num_bytes

    def is_writing(self) -> bool:
        """Whether this rank's thread is at work."""
        return (
            self._save is not None
            and self._save.thread is not None
            and self._save.thread.is_alive()
        )

    def wait(self, seconds: float) -> str | None:
        """Wait for this rank's own thread, and give the save up if that takes too long.

        No collective.  Returns why the save failed, None if it did not.
        """
        save = self._save
        if save is None or save.thread is None:
            return None
        save.thread.join(seconds)
        # The thread holds the lock for a rename alone, but a disk may hang in that as well.
        if is_ours := save.lock.acquire(timeout=_RENAME_SECONDS):
            save.given_up = not save.committed
            save.lock.release()
        else:
            save.given_up = True
        if save.thread.is_alive() and not save.committed:
            # It may go on reading: the next copy must lie elsewhere.
            self._snapshot = Snapshot()
            unknown = "" if is_ours else ", and may yet commit it"
            save.error = f"rank {self._rank} is still {save.doing} after {seconds:.0f} s{unknown}"
            logger.warning("the checkpoint %s is given up: %s", save.target.name, save.error)
        self._save = None
        return save.error

    def leave(self, seconds: float) -> None:
        """For an error that all ranks raise: as `wait`, and wait for rank 0, which commits.

        No collective.  Where a rank ends, launchers soon end the others: rank 0 is to be first.
        """
        save, deadline = self._save, time.monotonic() + seconds
        self.wait(seconds)
        while save and self._rank != 0 and save.staging.exists() and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    # In the thread -----------------------------------------------------------------------------

    def _run(self, save: _Save) -> None:
        try:
            try:
                fault("copy", save.manifest.step)
                save.snapshot.copy()
            finally:
                save.copied.set()
            save.doing = "writing"
            part = self._write(save)
        except Exception as error:  # whatever it is, a thread can but tell
            save.error = _words(error)
            part = {"error": save.error}
        if self._rank != 0:
            leave_part(save.staging, self._rank, part)
            return
        try:
            self._finish(save, part)
        except Exception as error:
            save.error = save.error or _words(error)
        if not save.committed:
            logger.warning("the checkpoint %s could not be saved: %s", save.target.name, save.error)
            commits.discard(save.staging)
        elif save.error:
            logger.warning("%s is committed, but after it: %s", save.target.name, save.error)

    def _write(self, save: _Save) -> dict[str, Any]:
        save.staging.mkdir(parents=True, exist_ok=True)
        record = save.snapshot.write(save.staging / file_name(self._rank))
        return {"record": asdict(record)}

    def _finish(self, save: _Save, own: dict[str, Any]) -> None:
        """Rank 0: commit what all have written."""
        parts = [own, *self._others_parts(save)]
        errors = {rank: part["error"] for rank, part in enumerate(parts) if "error" in part}
        if errors:
            save.error = "; ".join(f"rank {rank}: {error}" for rank, error in errors.items())
            return
        for entry in save.entries:
            save.manifest.tensors[tensor_name(entry)] = record_of(entry)
        for rank, part in enumerate(parts):
            save.manifest.files[file_name(rank)] = FileRecord(**part["record"])
        save.doing = "writing the manifest"
        commits.complete(save.staging, save.manifest)
        with save.lock:
            if save.given_up:
                return
            save.doing = "renaming the folder"
            commits.publish(save.staging, save.target)
            save.committed = True
        is_durable = commits.make_durable(save.target)
        self.refused.discard(save.target.name)
        if is_durable and not save.given_up:  # or else the next save may be at it
            step = save.manifest.step
            commits.prune(self._checkpoints, step, self._keep, self._best, self.refused)
        self._on_commit(save.target, sum(file.bytes for file in save.manifest.files.values()))

    def _others_parts(self, save: _Save) -> list[dict[str, Any]]:
        deadline = time.monotonic() + self._limit
        parts: list[dict[str, Any]] = []
        for rank in range(1, self._num_ranks):
            save.doing = f"waiting for rank {rank}"
            while (part := take_part(save.staging, rank)) is None:
                if time.monotonic() > deadline or save.given_up:
                    part = {"error": f"it has not written its part within {self._limit:.0f} s"}
                    break
                time.sleep(_LOOK_SECONDS)
            parts.append(part)
        return parts


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | RunError) else repr(error)


def _of_all(text: str) -> StorageError:
    error = StorageError(text)  # no local of the frame that raises it: they would keep each other
    error.everywhere = True
    return error
