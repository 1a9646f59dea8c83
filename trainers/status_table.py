"""The states of runs for people: a table on a terminal, one plain line a run elsewhere."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from trainers.run.console import duration, short
from trainers.run_state import RunState

_STYLES = {"running": "green", "failed": "red", "stopped": "yellow", "never started": "dim"}
_HEADS = ("run", "state", "step", "tokens/s", "to go", "checkpoint", "last error")
_NUMBERS = frozenset(("step", "tokens/s", "to go", "checkpoint"))
# What a terminal narrower than so many columns does without.
_DROPPED = ((90, "checkpoint"), (70, "tokens/s"), (60, "to go"))


def show(names: Sequence[str], states: Sequence[RunState], console: Console) -> None:
    """Print a table as wide as the terminal; long names and errors go on in the next line."""
    dropped = {head for width, head in _DROPPED if console.width < width}
    table = Table(pad_edge=False)
    for head in _HEADS:
        if head not in dropped:
            right = "right" if head in _NUMBERS else "left"
            table.add_column(head, justify=right, overflow="fold", no_wrap=head in _NUMBERS)
    for name, state in zip(names, states, strict=True):
        cells = zip(_HEADS, _cells(name, state), strict=True)
        # As Text: what stands in a run folder is no markup.
        table.add_row(
            *(
                Text(cell, _STYLES.get(cell, "") if head == "state" else "")
                for head, cell in cells
                if head not in dropped
            )
        )
    console.print(table)


def plain(names: Sequence[str], states: Sequence[RunState]) -> str:
    """Lines with aligned columns, of any length, for a file or a pipe."""
    rows = [_HEADS, *(_cells(name, state) for name, state in zip(names, states, strict=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_aligned(row, widths) for row in rows)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = zip(_HEADS, row, widths, strict=True)
    padded = (cell.rjust(w) if head in _NUMBERS else cell.ljust(w) for head, cell, w in cells)
    return "  ".join(padded).rstrip()


def _cells(name: str, state: RunState) -> tuple[str, ...]:
    step = "-" if state.step is None else f"{state.step:,}"
    commit = "-"
    if state.checkpoint_step is not None and state.checkpoint_age is not None:
        commit = f"{state.checkpoint_step:,}, {duration(state.checkpoint_age)} ago"
    words = [word for word in (state.last_error, *state.notes) if word]
    return (
        _printable(name),
        state.state,
        step if state.steps is None else f"{step}/{state.steps:,}",
        "-" if state.tokens_per_second is None else short(state.tokens_per_second),
        "-" if state.seconds_left is None else duration(state.seconds_left),
        commit,
        _printable("; ".join(words)),
    )


def _printable(text: str) -> str:
    """Without what would move the cursor of a terminal or tear the line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
