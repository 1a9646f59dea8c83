"""A job -> what starts it -> started, or shown."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from launch import deepspeed, kubernetes, slurm, torchrun
from launch.local import LAUNCHER
from launch.spec import Job, Start

RENDER: Mapping[str, Callable[[Job], Start]] = {
    "torchrun": torchrun.render,
    "deepspeed": deepspeed.render,
    "slurm": slurm.render,
    "kubernetes": kubernetes.render,
}
QUEUED = frozenset({"slurm", "kubernetes"})  # they run elsewhere, later


def start_of(job: Job) -> Start:
    """What would start `job` as launch.name says; "local" has no command, see launch.local."""
    return RENDER[job.launch.name](job)


def is_dry(job: Job) -> bool:
    """Whether it is printed alone; what is queued is submitted only when asked for."""
    launch = job.launch
    return launch.dry_run or (launch.name in QUEUED and not launch.submit)


def write_files(start: Start) -> None:
    """What the command will read. Raises OSError."""
    for path, text in start.files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")


def hand_over(start: Start, *, queued: bool) -> int:
    """Runs the command; the exit code.

    What is not `queued` takes the place of this process: signals reach it and nobody else.

    Raises:
        FileNotFoundError: the program is not on this machine.
    """
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environ = {**os.environ, **start.environ, "PATH": programs}
    environ.pop(LAUNCHER, None)  # of a sweep: what is started here is not its child
    sys.stdout.flush()
    if not queued:
        os.execvpe(start.command[0], start.command, environ)
    return subprocess.run(start.command, env=environ, check=False).returncode
