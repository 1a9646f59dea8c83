"""A folder that is built once and appears whole: by lock, temporary folder and one rename."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.data.progress import say
from trainers.durable import sync
from trainers.errors import DataError, DataInterruptedError, StoppedError, StorageError

_POLL_SECONDS = 0.2


def build_once(
    folder: Path,
    build: Callable[[Path], None],
    is_whole: Callable[[Path], bool],
    timeout_seconds: float,
) -> None:
    """Make sure that `folder` is whole, building it if need be, whoever else tries meanwhile.

    `build` fills a folder beside it, `<name>.part`, which then takes its name by a rename. Where
    the builder is killed or interrupted, that folder stays as it is, nobody reads it, and the next
    `build` is given it to go on from; when `build` fails it is removed. Others wait for the builder
    for at most `timeout_seconds`. Raises DataError when that time is over, StorageError when the
    disk refuses, and what `build` raises.
    """
    if is_whole(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock"), timeout_seconds):
            if not is_whole(folder):
                _build_and_publish(folder, build)
    except OSError as error:
        raise StorageError(
            f"data.cache_dir={folder.parent}: cannot prepare the data there: {error}; "
            "free space or set data.cache_dir to a folder that can be written"
        ) from error


def _build_and_publish(folder: Path, build: Callable[[Path], None]) -> None:
    if folder.exists():
        say(f"{folder} is damaged and is built again")
        shutil.rmtree(folder)
    # Only the holder of the lock makes, fills or removes this.
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    try:
        build(part)
        _sync_tree(part)
        part.rename(folder)
        sync(folder.parent)
    except (DataInterruptedError, StoppedError):
        raise
    except Exception:
        shutil.rmtree(part, ignore_errors=True)
        raise


@contextmanager
def _lock(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold a lock that the kernel releases when its owner dies, however it dies."""
    with open(path, "a+") as file:
        _acquire(file.fileno(), path, timeout_seconds)
        file.truncate(0)
        file.write(f"{os.getpid()}")
        file.flush()
        yield


def _acquire(descriptor: int, path: Path, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    waiting = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        owner = path.read_text() or "?"
        if time.monotonic() >= deadline:
            raise DataError(
                f"{path}: process {owner} has been preparing the data for over "
                f"{timeout_seconds:.0f} s; wait for it or end it, and start again"
            )
        if not waiting:
            say(f"waiting for process {owner}, which prepares {path.stem}")
            waiting = True
        time.sleep(_POLL_SECONDS)


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))
