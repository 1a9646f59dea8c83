"""What a run folder tells of its run: whether it goes on, how far it is, why it ended.

    running         its owner holds the lock; or its metrics grow, where locks are not seen
    failed          the last start wrote down an error
    finished        its metrics have the last step
    never started   no rank has come so far as to describe itself
    stopped         all else: told to, or ended without a word

Files are only read, while others may be writing them: whatever is damaged is a note in the answer.
"""

import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from launch.local import STOPPED
from trainers.redact import redact_text
from trainers.regular import read_regular
from trainers.reports.runs import flat, has_results
from trainers.reports.series import Row
from trainers.run import ended, metrics
from trainers.run.console import duration
from trainers.run.folder import SETTINGS_FILE, read_starts
from trainers.run.lock import LOCK_FILE, is_owned, read_owner
from trainers.run.step_folders import MANIFEST_FILE, committed, step_of

_FRESH_SECONDS = 120.0  # since the last line of metrics, where nothing else tells
_SILENT_SECONDS = 600.0  # without a line, of a run that goes on
_RECENT = 10  # logs by which the time to go is told
_SILENT_LOGS = 10  # and as many times what it took from one line to the next
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a table of 100 runs within a second


@dataclass(frozen=True)
class RunState:
    """A run as its folder tells it; None for what is not known. Ages and times are in seconds."""

    folder: str
    state: str
    step: int | None = None
    steps: int | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None  # of a running one, evaluations and saves apart
    checkpoint_step: int | None = None
    checkpoint_age: float | None = None
    metrics_age: float | None = None
    host: str | None = None  # of the last start
    last_error: str | None = None
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_run(folder: Path, files: Collection[str]) -> bool:
    """Whether a folder is that of a run, even of one that never came to train."""
    if has_results(folder, files) or ended.FILE_NAME in files:
        return True
    return LOCK_FILE in files and "start" in read_owner(folder)


def read_state(folder: Path) -> RunState:
    """The state of the run in `folder`; never raises for what lies in it."""
    notes: list[str] = []
    steps, log_every = _settings(folder, notes)
    rows, metrics_age = _rows(folder, notes)
    last = ended.read(folder)
    owner = {key: value for key, value in read_owner(folder).items() if isinstance(value, str)}
    state = _state(folder, rows, steps, last, owner.get("host"), metrics_age, notes)
    step = rows[-1]["step"] if rows else None
    seconds = _recent(rows, "train/seconds")
    running = state == "running"
    patience = max(_SILENT_SECONDS, _SILENT_LOGS * log_every * (seconds or 0))
    if running and (metrics_age or 0) > patience:
        notes.append(f"no line of metrics for {duration(metrics_age or 0)}: does it hang?")
    checkpoint, checkpoint_age = _checkpoint(folder, notes)
    return RunState(
        folder=redact_text(str(folder)),
        state=state,
        step=step,
        steps=steps,
        tokens_per_second=_latest(rows, "train/tokens_per_second"),
        seconds_left=(steps - step) * seconds if running and steps and step and seconds else None,
        checkpoint_step=checkpoint,
        checkpoint_age=checkpoint_age,
        metrics_age=metrics_age,
        host=redact_text(owner["host"]) if "host" in owner else None,
        last_error=_last_error(last, state),
        notes=tuple(notes),
    )


def _state(
    folder: Path,
    rows: list[Row],
    steps: int | None,
    last: Mapping[str, Any],
    host: str | None,
    metrics_age: float | None,
    notes: list[str],
) -> str:
    owned = is_owned(folder)
    is_over = bool(rows) and steps is not None and rows[-1]["step"] >= steps
    has_ended = bool(last.get("is_last"))
    elsewhere = owned is None or host not in (None, socket.gethostname())
    grows = metrics_age is not None and metrics_age < _FRESH_SECONDS
    if not owned and elsewhere and grows and not is_over and not has_ended:
        notes.append(f"told by its metrics: the lock of {host} may not be seen from here")
        owned = True
    if owned:
        return "running"
    if has_ended and last.get("exit_code") not in STOPPED:
        return "failed"
    if is_over:
        return "finished"
    return "stopped" if rows or has_ended or read_starts(folder) else "never started"


def _last_error(last: Mapping[str, Any], state: str) -> str | None:
    """In one line; that of an earlier start as long as it may tell what goes wrong."""
    is_past = state == "finished" or last.get("exit_code") in STOPPED
    if not last or (is_past and not last["is_last"]):
        return None
    text = " ".join(redact_text(last["reason"]).split())
    return text if last["is_last"] else f"(of an earlier start) {text}"


def _settings(folder: Path, notes: list[str]) -> tuple[int | None, int]:
    """train.steps, None if it cannot be read, and train.log_every."""
    try:
        text = read_regular(folder / SETTINGS_FILE)
        found = flat(yaml.load(text, _Loader))  # noqa: S506 - a safe loader
    except FileNotFoundError:
        return None, 1
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        found = {}
    steps, every = found.get("train.steps"), found.get("train.log_every")
    if type(steps) is not int or steps < 1:
        notes.append(f"{SETTINGS_FILE} cannot be read")
        steps = None
    return steps, every if type(every) is int else 1


def _rows(folder: Path, notes: list[str]) -> tuple[list[Row], float | None]:
    """The last lines of the metrics, and the seconds since they were written."""
    path = folder / metrics.FILE_NAME
    try:
        status = path.stat()
        rows = metrics.read_last(path)
    except FileNotFoundError:
        return [], None
    except OSError as error:
        notes.append(f"{metrics.FILE_NAME} cannot be read: {error.strerror}")
        return [], None
    if status.st_size and not rows:
        notes.append(f"{metrics.FILE_NAME} has no line that can be read")
    return rows, max(0.0, time.time() - status.st_mtime)


def _latest(rows: list[Row], name: str) -> float | None:
    found = (row[name] for row in reversed(rows) if name in row)
    value = next(found, None)
    try:
        return float(value) if type(value) in (int, float) else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _recent(rows: list[Row], name: str) -> float | None:
    """The median of the last values: neither the start counts, nor one line that was disturbed."""
    found = [row[name] for row in rows if type(row.get(name)) in (int, float)]
    try:
        return float(median(found[-_RECENT:])) if found else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


def _checkpoint(folder: Path, notes: list[str]) -> tuple[int | None, float | None]:
    """Step and age of the newest commit; `came-checkpoint verify` tells whether it is whole."""
    try:
        for newest in committed(folder / "checkpoints"):
            try:
                made = (newest / MANIFEST_FILE).stat().st_mtime
            except FileNotFoundError:
                notes.append(f"{newest.name} has no manifest")
                continue
            return step_of(newest), max(0.0, time.time() - made)
    except OSError as error:
        notes.append(f"checkpoints cannot be read: {error.strerror}")
    return None, None
