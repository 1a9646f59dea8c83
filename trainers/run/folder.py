"""The run folder: one path for all ranks, one owner at a time, and where the run came from.

    <run.dir>/
      .lock              held by rank 0 of the run that writes here; names its host, pid and start
      config.yaml        the resolved configuration
      provenance.json    for each start: versions, commit, device, world size, command line
      tokenizer.json     the vocabulary
      model.json         the architecture, as transformers spells it
      ledger.json        what the optimizer keeps for each parameter
      ended.json         why the last start that ended badly did
      metrics.jsonl, checkpoints/, report/, wandb/, tensorboard/   written by their own modules

Torch is not imported here: the launcher checks the folder before any rank exists.
"""

import contextlib
import json
import os
import platform
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainers import durable
from trainers.errors import StorageError
from trainers.redact import redact, redact_text
from trainers.regular import read_regular
from trainers.run.lock import take_lock

if TYPE_CHECKING:
    from trainers.config import Config

SETTINGS_FILE, TOKENIZER_FILE, MODEL_FILE = "config.yaml", "tokenizer.json", "model.json"
GENERATION_FILE = "generation_config.json"  # of the folder that was the start
PROVENANCE_FILE, LEDGER_FILE = "provenance.json", "ledger.json"

_PROBE = ".probe-"
_MINUTE = 60.0

_PACKAGES = (
    *("came-pretraining", "torch", "deepspeed", "transformers", "tokenizers", "datasets"),
    *("safetensors", "numpy", "hydra-core", "wandb"),
)


class RunFolder:
    """An open run folder. Only rank 0 holds the lock and writes; for other ranks it is a path."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: str | Path, rank: int) -> "RunFolder":
        """On rank 0 make the folder, prove that it can be written, and own it.

        It is owned until `close` or the end of the process, however that ends.
        Raises StorageError if it cannot be written, FolderInUseError if a live process owns it.
        """
        resolved = Path(path).resolve()
        if rank != 0:
            return cls(resolved, None)
        _prove_writable(resolved)
        lock = take_lock(resolved)
        _remove_leftovers(resolved, now=os.fstat(lock).st_mtime)
        return cls(resolved, lock)

    @property
    def checkpoints(self) -> Path:
        """The folder of the step folders."""
        return self.path / "checkpoints"

    def write(self, name: str, text: str) -> None:
        """Replace a file of the folder on rank 0; nothing on other ranks. Raises StorageError."""
        if self._lock is None:
            return
        try:
            durable.write_text(self.path / name, text)
        except OSError as error:
            raise StorageError(f"{self.path / name} cannot be written: {error}") from error

    def describe(self, config: "Config", *, device: str, world_size: int) -> None:
        """Write config.yaml, and add this start to provenance.json."""
        settings = redact(asdict(config))
        self.write(SETTINGS_FILE, yaml.safe_dump(settings, sort_keys=False))
        start = provenance(sys.argv, device=device, world_size=world_size)
        starts = [*read_starts(self.path), start]
        self.write(PROVENANCE_FILE, json.dumps({"starts": starts}, indent=1) + "\n")

    def close(self) -> None:
        """Give the folder up; the lock file stays, because removing it would let two runs in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def check(path: str | Path) -> None:
    """For the launcher: raise what `RunFolder.open` would, before any rank starts."""
    RunFolder.open(path, rank=0).close()


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The starts in a run folder's provenance.json, oldest first; none if it cannot be read."""
    try:
        starts = json.loads(read_regular(path / PROVENANCE_FILE))["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return (
        [start for start in starts if isinstance(start, dict)] if isinstance(starts, list) else []
    )


def provenance(command: Sequence[str], *, device: str, world_size: int) -> dict[str, Any]:
    """Where a start of the run came from, without secrets."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": redact_text(shlex.join(command)),
        "host": socket.gethostname(),
        "world_size": world_size,
        "device": device,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        **git_state(),
    }


def versions() -> dict[str, str]:
    """The installed versions of the packages that decide what is computed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any]:
    """Commit of the checkout that this code runs from, and whether files differ; else empty."""
    here = Path(__file__).parent
    # An installed copy may lie inside the checkout of something else: only a tracked file counts.
    if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return {}
    changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _git(here, "rev-parse", "HEAD"), "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _prove_writable(path: Path) -> None:
    """Do once what a checkpoint does, so that missing rights are seen now, not after an hour."""
    probe = path / f"{_PROBE}{secrets.token_hex(6)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        durable.write_text(probe, "probe\n")
        probe.unlink()
    except OSError as error:
        raise StorageError(
            f"run.dir {path} cannot be written: {error}. Choose another one with run.dir=..."
        ) from error


def _remove_leftovers(path: Path, now: float) -> None:
    """Remove what killed runs were writing beside its place; `now` by the clock of the disk.

    Not what is of this minute: another start may be proving that the folder can be written.
    """
    for pattern in (f"{_PROBE}*", ".*.tmp-*"):
        for found in path.glob(pattern):
            with contextlib.suppress(OSError):
                if found.lstat().st_mtime < now - _MINUTE:
                    found.unlink()
