"""Faults on demand: what a test asks of a run to suffer, at a named point, rank and step.

    CAME_FAULT="kill@backward:rank1:step5,sleep=3@save" CAME_FAULT_TEST=1 came-train ...

Each fault is MODE[=VALUE]@POINT[:rankN][:stepN]; POINT may hold the shell's `*`.  Points:

    init              before a rank meets the others
    engine            it has met them, and DeepSpeed is about to deal out the model
    step              a step begins
    data              its samples are fetched
    loss              VALUE takes the place of the factor 1 of the loss of a micro batch
    backward          gradients of a micro batch are there (and, of the last one, summed)
    optimizer         parameters are updated
    micro N           the Nth micro batch of the step is done, on this rank
    save              a checkpoint begins
    copy              its state is about to be copied, while the next step computes
    write PATH        a file is about to be replaced; of the path the last folder and the name
    part PATH         the first piece of a rank's part of a checkpoint is in its file
    sync PATH         a file or folder has been written and is about to be forced to the disk;
                      at "sync */checkpoints" the rename has been done that commits
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trainers.errors import ConfigError

VARIABLE, ALLOWED = "CAME_FAULT", "CAME_FAULT_TEST"
_GRAMMAR = re.compile(r"(\w+)(?:=([^@]+))?@([^:]+)(?::rank(\d+))?(?::step(\d+))?")
_SIGNALS = ("kill", "stop", "abrt", "term", "int", "usr1")
_MODES = (*_SIGNALS, "exception", "memory", "enospc", "exit", "sleep", "times")
POINTS = (
    *("init", "engine", "step", "data", "loss", "backward", "optimizer", "micro *", "save", "copy"),
    *("write *", "part *", "sync *"),
)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong; None matches every rank and step."""

    mode: str
    value: float
    point: str
    rank: int | None
    step: int | None

    def matches(self, point: str, rank: int, step: int | None) -> bool:
        here = self.rank in (None, rank) and self.step in (None, step)
        return here and fnmatchcase(point, self.point)

    def happen(self) -> None:
        """Do it to this process, and say when; "times" is done by who asked."""
        if self.mode != "times":
            sys.stderr.write(f"fault: {self.mode} at {self.point} at {time.monotonic():.3f} s\n")
            sys.stderr.flush()
        if self.mode in _SIGNALS:
            os.kill(os.getpid(), getattr(signal, f"SIG{self.mode.upper()}"))
        elif self.mode == "exit":
            os._exit(int(self.value))
        elif self.mode == "sleep":
            time.sleep(self.value)
        elif self.mode == "memory":
            raise MemoryError(f"injected at {self.point}")
        elif self.mode == "enospc":
            raise OSError(errno.ENOSPC, "No space left on device", self.point)
        elif self.mode == "exception":
            raise RuntimeError(f"injected at {self.point}")


def parse(environ: Mapping[str, str]) -> tuple[Fault, ...]:
    """The faults that the environment asks for.

    Raises ConfigError if one is not understood, or if nobody said that this is a test.
    """
    text = environ.get(VARIABLE, "")
    if text and environ.get(ALLOWED) != "1":
        raise ConfigError(f"{VARIABLE}={text} breaks a run on purpose, for tests: unset it")
    return tuple(_parse(word) for word in text.split(",") if word)


def _parse(word: str) -> Fault:
    found = _GRAMMAR.fullmatch(word)
    mode, value, point, rank, step = found.groups() if found else (None,) * 5
    known = point and any(fnmatchcase(point, name) for name in POINTS)
    if mode not in _MODES or not point or not known:
        raise ConfigError(f"{VARIABLE}: {word!r} is no fault, see trainers/faults.py")
    try:
        number = float(value or 0)
    except ValueError as error:
        raise ConfigError(f"{VARIABLE}: {word!r} has no number after =") from error
    return Fault(mode, number, point, _whole(rank), _whole(step))


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)


class _Plan:
    """What this process is to suffer, read once; a point without a step is in the last begun."""

    def __init__(self) -> None:
        self.faults: tuple[Fault, ...] | None = None if VARIABLE in os.environ else ()
        self.step: int | None = None

    def now(self, point: str, step: int | None) -> list[Fault]:
        if self.faults is None:
            self.faults = parse(os.environ)
        if point == "step":
            self.step = step
        step = self.step if step is None else step
        rank = int(os.environ.get("RANK", "-1"))  # the launcher is none
        return [fault for fault in self.faults if fault.matches(point, rank, step)]


_plan = _Plan()


def fault(point: str, step: int | None = None) -> None:
    """Suffer here what was asked for; nothing otherwise, at the price of a comparison."""
    if _plan.faults != ():
        for found in _plan.now(point, step):
            found.happen()


def factor(point: str, step: int | None = None) -> float:
    """The factor that a value is spoiled by here (nan, inf, 1e4); 1 if nobody asked."""
    if _plan.faults == ():
        return 1.0
    return next((f.value for f in _plan.now(point, step) if f.mode == "times"), 1.0)
