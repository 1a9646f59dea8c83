"""What a check has found, and how it is shown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.text import Text

from trainers.errors import RunError


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    title: str
    is_green: bool
    text: str  # Markdown, without the title
    details: dict[str, Any] = field(default_factory=dict)  # for --json
    exit_code: int = 0  # if it is red


def checked(title: str, look: Callable[[], Check]) -> Check:
    """What `look` finds; an error that a person can act on is red, with its own exit code."""
    try:
        return look()
    except RunError as error:
        return Check(title, False, str(error), {}, error.exit_code)


def bullets(lines: Sequence[str]) -> str:
    """Markdown of one line for each."""
    return "\n".join(f"* {line}" for line in lines)


def size(num_bytes: float) -> str:
    """Bytes for a person: 1e9 of them are a GB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1e3:.1f} kB"


def show(check: Check) -> None:
    """Print a check; the verdict is coloured on a terminal that has colours."""
    verdict = Text("OK", "green") if check.is_green else Text("REFUSED", "bold red")
    # Not rich's own wrapping: a file or a pipe gets the lines as they are.
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)
    console.print(Text(f"## {check.title}: ") + verdict)
    console.print(f"\n{check.text}\n", markup=False)


def verdict(checks: Sequence[Check]) -> str:
    """The last line: which of them are red."""
    red = [check.title for check in checks if not check.is_green]
    return f"Refused: {', '.join(red)}." if red else f"{len(checks)} checks, all OK."
