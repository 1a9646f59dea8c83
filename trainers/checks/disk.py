"""Whether what a run writes fits on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trainers.checks.page import Check, bullets, size
from trainers.config import Config
from trainers.errors import StorageError
from trainers.planner.plan import RunPlan

TITLE = "Disk space"
_FLOAT32 = 4


@dataclass(frozen=True)
class Place:
    """A folder that a run writes to, which need not exist yet; bytes."""

    key: str  # of the configuration
    folder: str
    writable: bool
    device: int  # of the file system: places on the same one share `free`
    free: int
    needed: int


def check_disk(config: Config, plan: RunPlan, unprepared: int) -> Check:
    """Red if the checkpoints do not fit beside the data, or a folder cannot be written.

    Args:
        unprepared: bytes of text that has to be prepared first.
    """
    one = checkpoint_bytes(plan)
    count = _checkpoints(config)
    there = _bytes_below(Path(config.run.dir) / "checkpoints")
    run = _place("run.dir", config.run.dir, max(0, count * one - there))
    # While it is prepared, text is kept once more, uncompressed; tokens are smaller.
    cache = _place("data.cache_dir", config.data.cache_dir, 2 * unprepared)
    problems = list(_problems([run, cache]))
    lines = [
        f"{count} checkpoints of {size(one)}: {config.checkpoint.keep} kept"
        f"{', the best one' * bool(config.checkpoint.best)}, one being written"
        + (f"; {size(there)} of them are there" if there else ""),
        *(
            f"{place.key} {place.folder}: {size(place.free)} are free"
            f"{f', {size(place.needed)} needed' if place.needed else ''}"
            for place in (run, cache)
        ),
        *problems,
    ]
    details = {
        "checkpoint_bytes": one,
        "checkpoints": count,
        "places": [asdict(run), asdict(cache)],
    }
    return Check(TITLE, not problems, bullets(lines), details, StorageError.exit_code)


def checkpoint_bytes(plan: RunPlan) -> int:
    """Bytes of one checkpoint: the parameters in float32, and the optimizer's whole state."""
    return _FLOAT32 * plan.num_params + plan.rows[plan.config.optimizer.name].state_bytes


def _checkpoints(config: Config) -> int:
    """How many are on the disk at a time, at most."""
    return config.checkpoint.keep + bool(config.checkpoint.best) + 1


def _place(key: str, folder: str, needed: int) -> Place:
    path = Path(folder).resolve()
    exists = next(parent for parent in (path, *path.parents) if parent.exists())
    writable = exists.is_dir() and os.access(exists, os.W_OK)
    free = shutil.disk_usage(exists).free
    return Place(key, str(path), writable, exists.stat().st_dev, free, needed)


def _problems(places: list[Place]) -> Iterator[str]:
    for place in places:
        if not place.writable:
            yield f"{place.key}={place.folder} cannot be written: choose another folder"
    for device in dict.fromkeys(place.device for place in places):
        shared = [place for place in places if place.device == device]
        needed, free = sum(place.needed for place in shared), shared[0].free
        if needed > free:
            keys = " and ".join(place.key for place in shared if place.needed)
            yield (
                f"{keys}: {size(needed)} are needed and {size(free)} free: free "
                f"{size(needed - free)}, choose another folder, or set a smaller checkpoint.keep"
            )


def _bytes_below(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
