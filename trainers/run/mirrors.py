"""Where else the numbers of a run may go: each mirror is never needed, never fatal, never waited.

metrics.jsonl is the record. A mirror is told what stands there already (`History`, of a run that
resumes), then each new row, and at the end where the report lies.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

History = Callable[[], Iterable[Mapping[str, Any]]]


class Mirror(Protocol):
    """Takes copies; swallows every failure of its own, with a word to the log."""

    def log(self, numbers: Mapping[str, float | int | None]) -> None:
        """Take one row; None is a number that was not finite."""

    def publish(self, report: Path) -> None:
        """Take the folder of the final report."""

    def hurry(self) -> None:
        """From now on `close` takes a second at most: an error waits to be told."""

    def close(self) -> None:
        """End, in bounded time."""
