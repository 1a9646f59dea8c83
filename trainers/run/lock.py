"""The lock of a folder that one process writes at a time; it names its owner: host, pid and start.

Torch is not imported here: the launcher looks at locks before any rank exists.
"""

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trainers.errors import FolderInUseError, StorageError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_LOOK_SECONDS = 0.3  # who only looks whether there is an owner (`is_owned`) is away again


def take_lock(path: Path, key: str = "run.dir", name: str = LOCK_FILE) -> int:
    """Lock the folder for this process; the kernel frees it when the process ends.

    Args:
        key: the setting that named the folder, for the words of a refusal.
        name: of the lock file. `LOCK_FILE` is that of a run, by which `came-status` knows one.

    Returns a descriptor that gives the folder up when it is closed.
    Raises FolderInUseError if a live process has the lock, StorageError if it cannot be written.
    """
    try:
        lock = os.open(path / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{path / name} cannot be opened: {error}") from error
    try:
        _lock_within(lock, _LOOK_SECONDS)
    except BlockingIOError as error:
        owner = _in_words(read_owner(path, name))
        os.close(lock)
        raise FolderInUseError(
            f"{key} {path} is in use by {owner}. "
            f"Wait for it, or choose another folder with {key}=..."
        ) from error
    except OSError as error:  # some network file systems have no locks
        logger.warning("%s cannot be locked (%s): two runs in it would not be noticed", path, error)
    _write_owner(lock, path / name)
    return lock


def _lock_within(lock: int, seconds: float) -> None:
    limit = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > limit:
                raise
            time.sleep(_LOOK_SECONDS / 10)


def is_owned(path: Path) -> bool | None:
    """Whether a live process owns the run folder; None where the file system does not tell.

    Nothing is written.  The look takes a shared lock for an instant, so no start is refused by it.
    """
    try:
        lock = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(lock)
    return False


def read_owner(path: Path, name: str = LOCK_FILE) -> dict[str, Any]:
    """The last owner's `host`, `pid` and `start`, as far as they can be read; it may have ended."""
    try:
        with open(path / name, "rb", opener=_no_waiting) as file:
            owner = json.loads(file.read(4096))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _no_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _write_owner(lock: int, file: Path) -> None:
    # Fine enough that no two starts have the same: `ended` tells them apart by it.
    started = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "start": started}
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(owner).encode(), 0)
    except OSError as error:
        os.close(lock)
        raise StorageError(f"{file} cannot be written: {error}") from error


def _in_words(owner: Mapping[str, Any]) -> str:
    try:
        return f"process {owner['pid']} on {owner['host']}, started {owner['start']}"
    except KeyError:
        return "another process"
