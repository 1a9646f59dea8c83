"""Progress of a preparation on stderr: a moving line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from trainers.failures import discard

_BAR_WIDTH = 30  # characters


class Step:
    """One step of the work, and how much of it is done."""

    def __init__(self, title: str, unit: str, total: int, status: Status) -> None:
        self._title, self._unit, self._status = title, unit, status
        self._total, self._done = total, 0
        self._seconds = 0.1 if sys.stderr.isatty() else 10.0  # between two looks at the count
        self._started = self._shown = time.monotonic()
        self._count = 0

    def advance(self, count: int, done: int) -> None:
        """Add to the count, with `done` pieces of the work behind; shown now and then only."""
        self._count += count
        self._done = done
        if time.monotonic() - self._shown > self._seconds:
            self._shown = time.monotonic()
            if sys.stderr.isatty():
                self._status.update(f"{self} {self._bar()}")
            else:
                say(f"{self} {self._bar()}".rstrip())

    def finish(self) -> None:
        say(f"{self} ({time.monotonic() - self._started:.1f} s)")

    def _bar(self) -> str:
        """How much of the work is done, and how long the rest will take."""
        if self._total < 2 or not self._done:
            return ""
        share = self._done / self._total
        left = (time.monotonic() - self._started) * (1 - share) / share
        filled = round(_BAR_WIDTH * share)
        bar = "=" * filled + " " * (_BAR_WIDTH - filled)
        return f"\\[{bar}] {self._done}/{self._total}, {left / 60:.0f} min left"

    def __str__(self) -> str:
        return f"{self._title}: {self._count:,} {self._unit}" if self._count else self._title


@contextmanager
def step(title: str, unit: str = "", total: int = 0) -> Iterator[Step]:
    """Show a step while it runs, and one line with its count and seconds when it has gone well."""
    with Console(stderr=True).status(title) as status:
        current = Step(title, unit, total, status)
        yield current
    current.finish()


def say(text: str) -> None:
    """Print a line about the data; a reader of stderr who has gone away is no reason to stop."""
    try:
        print(f"data: {text}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stderr)  # or rich, which flushes it too, ends the process
    except OSError:
        pass  # a full disk, under a log: a later line may find room
