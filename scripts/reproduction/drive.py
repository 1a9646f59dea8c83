"""Runs a plan: a few `came-train` at a time, each in a folder of its own, until nothing is next.

<out>/<task>/<contestant>/lr<rate>_seed<n>/    a run folder; words.json, outcome.json at its end
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from launch.local import ECHO
from scripts.reproduction import outcome
from scripts.reproduction.order import Results, Run, next_runs
from scripts.reproduction.plan import Plan, Task
from trainers.errors import NonFiniteError, StoppedError
from trainers.run import metrics

LOG = "run.log"
FOLDER = re.compile(r"lr([+-]\d+)_seed(\d+)")
POLL = 0.2  # seconds
TRAIN = (sys.executable, "-m", "trainers.pretrain")
FINAL_CODES = (0, NonFiniteError.exit_code)  # done, or diverged


def drive(plan: Plan, out: Path, minutes: float = 0.0) -> bool:
    """Run what is next until all is done; True then, False if `minutes` were over before.

    Raises RuntimeError with the log's place if a run fails in any way but divergence, ValueError
    if one that was run or begun before had other words.
    """
    limit = time.monotonic() + 60 * minutes if minutes else float("inf")
    running: dict[Run, subprocess.Popen[bytes]] = {}
    results = dict(read_results(plan, out))
    try:
        while True:
            results |= _reap(plan, out, running)
            waiting = list(next_runs(plan, results))
            if not waiting and not running:
                return True
            if time.monotonic() > limit:
                return False
            for run in [run for run in waiting if run not in running][: plan.jobs - len(running)]:
                print(f"start  {_name(run)}", flush=True)
                running[run] = _start(plan, out, run)
            time.sleep(POLL)
    finally:
        _stop(plan, out, running)


def folder_of(out: Path, run: Run) -> Path:
    return out / run.task / run.contestant / f"lr{run.rate:+d}_seed{run.seed}"


def words_of(plan: Plan, run: Run, out: Path) -> list[str]:
    """The words for `came-train`."""
    task = next(task for task in plan.tasks if task.name == run.task)
    contestant = next(c for c in task.contestants if c.name == run.contestant)
    return [
        *plan.words,
        *task.words,
        *contestant.words,
        *plan.overrides,
        f"optimizer.lr={contestant.lr * plan.factor**run.rate:.4g}",
        f"run.seed={run.seed}",
        f"run.dir={folder_of(out, run)}",
    ]


def read_results(plan: Plan, out: Path) -> Results:
    """What the finished runs reached.

    Raises ValueError for one that was given other words, or has not the metric of its task at its
    last step.
    """
    return _read(plan, out, lambda task: task.metric_name)


def read_beside(plan: Plan, out: Path) -> Results:
    """What is told `beside` of the runs of the tasks that have such a metric. Raises ValueError."""
    return _read(plan, out, lambda task: task.beside)


def _read(plan: Plan, out: Path, metric_of: Callable[[Task], str]) -> Results:
    found: dict[Run, float | None] = {}
    for task in plan.tasks:
        if not (metric := metric_of(task)):
            continue
        for contestant in task.contestants:
            runs = (out / task.name / contestant.name).glob(f"lr*/{outcome.FILE_NAME}")
            for folder in sorted(path.parent for path in runs):
                if not (told := FOLDER.fullmatch(folder.name)):
                    raise ValueError(f"{folder} has no name of a run: move it elsewhere")
                run = Run(task.name, contestant.name, *map(int, told.groups()))
                if run in found:
                    raise ValueError(f"{folder} is there twice")
                found[run] = _reached(metric, folder, words_of(plan, run, out))
    return found


def _reached(metric: str, folder: Path, words: list[str]) -> float | None:
    if outcome.read(folder, words):
        return None
    rows = list(metrics.read(folder / metrics.FILE_NAME))
    measured = [row for row in rows if metric in row]
    if not measured:
        raise ValueError(f"{folder} has no {metric}: is it a metric of this task?")
    steps, last = _steps(folder), measured[-1]["step"]
    if steps is not None and last != steps:
        raise ValueError(
            f"{folder / metrics.FILE_NAME} ends at step {last} of {steps}: what the run reached is "
            "lost; remove the folder, and it is run again"
        )
    return measured[-1][metric]  # type: ignore[no-any-return]  # None, if not a number


def _steps(folder: Path) -> int | None:
    """The steps of the run, as its settings have them; None where these are not kept."""
    file = folder / "config.yaml"
    if not file.is_file():
        return None
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))["train"]["steps"]  # type: ignore[no-any-return]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} does not tell train.steps: {error}") from error


def _start(plan: Plan, out: Path, run: Run) -> subprocess.Popen[bytes]:
    folder = folder_of(out, run)
    folder.mkdir(parents=True, exist_ok=True)
    words = words_of(plan, run, out)
    outcome.begin(folder, words)
    command = [*TRAIN, *words]
    with (folder / LOG).open("ab") as log:
        # A session of its own: Ctrl-C reaches it through us alone, once.
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def _reap(plan: Plan, out: Path, running: dict[Run, subprocess.Popen[bytes]]) -> Results:
    """What those reached that have ended since."""
    reached: dict[Run, float | None] = {}
    for run, process in list(running.items()):
        if (code := process.poll()) is None:
            continue
        del running[run]
        if code not in FINAL_CODES:
            raise RuntimeError(f"{_name(run)} ended with {code}: read {folder_of(out, run) / LOG}")
        reached[run] = _finish(plan, out, run, code)
    return reached


def _finish(plan: Plan, out: Path, run: Run, code: int) -> float | None:
    folder, words = folder_of(out, run), words_of(plan, run, out)
    outcome.write(folder, code, words)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a hundred runs fill a disk
    task = next(task for task in plan.tasks if task.name == run.task)
    reached = _reached(task.metric_name, folder, words)
    print(f"done   {_name(run)}  {'diverged' if reached is None else f'{reached:.4f}'}")
    return reached


def _stop(plan: Plan, out: Path, running: dict[Run, subprocess.Popen[bytes]]) -> None:
    """Ask the runs to save and to leave: the same command goes on with them.

    Who asks again while they save, and not at once, ends them: they go on from the checkpoint
    before.
    """
    since = time.monotonic()
    asked: set[Run] = set()
    while True:
        try:
            alive = [run for run, process in running.items() if process.poll() is None]
            if not alive:
                break
            for run in alive:
                if run not in asked:
                    running[run].send_signal(signal.SIGTERM)
                    asked.add(run)
            time.sleep(POLL)
        except KeyboardInterrupt:
            if time.monotonic() - since <= ECHO:  # the same request, from a shell or make too
                continue
            for process in running.values():
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
            raise
    for run, process in running.items():
        try:
            _tell_stopped(plan, out, run, process.returncode)
        except (OSError, ValueError) as error:
            print(f"{_name(run)}: {error}", file=sys.stderr)


def _tell_stopped(plan: Plan, out: Path, run: Run, code: int) -> None:
    if code in FINAL_CODES:  # it was at its end
        _finish(plan, out, run, code)
    elif code == StoppedError.exit_code:
        print(f"saved  {_name(run)}")
    else:
        print(f"{_name(run)} ended with {code}", file=sys.stderr)


def _name(run: Run) -> str:
    return f"{run.task}  {run.contestant}  rate {run.rate:+d}  seed {run.seed}"
