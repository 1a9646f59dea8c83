"""ended.json in a run folder: why a start of the run ended before its last step, for `came-status`.

    {"reason": ..., "rank": ..., "step": ..., "exit_code": ..., "time": ..., "start": ...}

The first four are the last line of stderr; `start` is that of the owner in .lock, which tells
whether a later start has begun since.  Whoever was killed with all its launchers leaves no word.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launch.local import PEER_LOST, Outcome
from trainers import durable
from trainers.errors import FolderInUseError
from trainers.failures import outcome_record, record
from trainers.redact import redact
from trainers.regular import read_regular
from trainers.run.lock import read_owner

FILE_NAME = "ended.json"


@contextlib.contextmanager
def recorded(run_dir: str | Path, rank: int | None) -> Iterator[None]:
    """An error that leaves the block is also written into the run folder, as far as possible."""
    try:
        yield
    except FolderInUseError:  # it is the folder of another, which goes on
        raise
    except Exception as error:
        _write(Path(run_dir), record(error, rank))
        raise


def note_outcome(run_dir: str | Path, outcome: Outcome) -> None:
    """The same for a run whose ranks a signal has ended without a word."""
    last = outcome_record(outcome)
    if last is not None:
        _write(Path(run_dir), last)


def read(run_dir: Path) -> dict[str, Any]:
    """The record, with `is_last` if no start has begun since; empty if there is none to be read."""
    try:
        found = json.loads(read_regular(run_dir / FILE_NAME))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict) or not isinstance(found.get("reason"), str):
        return {}
    if type(found.get("exit_code")) is not int:
        return {}
    return found | {"is_last": found.get("start") == read_owner(run_dir).get("start")}


def _write(run_dir: Path, last: Mapping[str, Any]) -> None:
    before = read(run_dir)
    if before.get("is_last") and before.get("exit_code") != PEER_LOST:
        return  # the first says what happened, others only that they have lost it
    told = {
        **redact(last),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "start": read_owner(run_dir).get("start"),
    }
    with contextlib.suppress(OSError):  # the disk may be what failed
        durable.write_text(run_dir / FILE_NAME, json.dumps(told, indent=1) + "\n")
