"""Progress of a preparation on stderr: a moving line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.status import Status


class Step:
    """One step of the work, and how much of it is done."""

    def __init__(self, title: str, unit: str, status: Status) -> None:
        self._title, self._unit, self._status = title, unit, status
        self._seconds = 0.1 if sys.stderr.isatty() else 10.0  # between two looks at the count
        self._started = self._shown = time.monotonic()
        self._count = 0

    def advance(self, count: int = 1) -> None:
        """Add to the count; it is shown now and then only, so call this as often as you like."""
        self._count += count
        if time.monotonic() - self._shown > self._seconds:
            self._shown = time.monotonic()
            if sys.stderr.isatty():
                self._status.update(str(self))
            else:
                say(str(self))

    def finish(self) -> None:
        say(f"{self} ({time.monotonic() - self._started:.1f} s)")

    def __str__(self) -> str:
        return f"{self._title}: {self._count:,} {self._unit}" if self._count else self._title


@contextmanager
def step(title: str, unit: str = "") -> Iterator[Step]:
    """Show a step while it runs, and one line with its count and seconds when it has gone well."""
    with Console(stderr=True).status(title) as status:
        current = Step(title, unit, status)
        yield current
    current.finish()


def say(text: str) -> None:
    """Print a line about the data; a reader of stderr who has gone away is no reason to stop."""
    with suppress(OSError):
        print(f"data: {text}", file=sys.stderr, flush=True)
