"""What a person sees of a run: a progress bar on a terminal, one line per log elsewhere."""

import contextlib
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trainers.failures import discard

_PIPE_COLUMNS = 200
_MARKS = 11  # the last logs whose times tell how much is left
Numbers = Mapping[str, float | int | None]

# metric -> words on the screen; what is not listed stays in the file
_PARTS: dict[str, Callable[[float], str]] = {
    "train/loss": lambda value: f"loss {value:.4f}",
    "train/lr": lambda value: f"lr {value:.2e}",
    "train/tokens_per_second": lambda value: f"{short(value)} tokens/s",
    "eval/loss": lambda value: f"held out {value:.4f}",
    "eval/perplexity": lambda value: f"perplexity {short(value)}",
    **{
        f"eval/{task}_accuracy": lambda value: f"accuracy {value:.1%}"
        for task in ("mlm", "lm", "span")
    },
    "eval/commonest_token_accuracy": lambda value: f"(commonest token {value:.1%})",
    "eval/nsp_accuracy": lambda value: f"nsp {value:.1%}",
}


class Console:
    """Writes to stdout; falls silent for good if nobody reads it any more."""

    def __init__(self, total_steps: int, resume_step: int) -> None:
        self._total_steps = total_steps
        self._marks = deque([(time.monotonic(), resume_step)], maxlen=_MARKS)
        self._is_first = True
        self._bar: Progress | None = None
        self._silent = False
        self._guard(lambda: self._start_bar(resume_step))

    def log(self, numbers: Numbers) -> None:
        """Show one step."""
        left = self._remaining(int(numbers["step"] or 0), time.monotonic())
        show = self._show_bar if self._bar else self._print_line
        self._guard(lambda: show(numbers, left))

    def close(self) -> None:
        """Leave the terminal as it was found."""
        if self._bar:
            self._guard(self._bar.stop)

    def _start_bar(self, resume_step: int) -> None:
        if not sys.stdout.isatty():
            return
        self._bar = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[words]}"),
            console=RichConsole(file=sys.stdout),
            expand=True,
        )
        self._bar.add_task("train", total=self._total_steps, completed=resume_step, words="")
        self._bar.start()

    def _show_bar(self, numbers: Numbers, left: str) -> None:
        """Held-out results stay above the bar, the rest is replaced in it."""
        assert self._bar is not None
        task = self._bar.task_ids[0]
        training = _words({k: v for k, v in numbers.items() if k.startswith("train/")})
        if training:
            self._bar.update(task, completed=numbers["step"], words=training + left)
        held_out = _words({k: v for k, v in numbers.items() if k.startswith("eval/")})
        if held_out:
            self._bar.console.print(f"step {numbers['step']}  {held_out}", highlight=False)

    def _print_line(self, numbers: Numbers, left: str) -> None:
        width = len(str(self._total_steps))
        _print(f"step {numbers['step']:>{width}}/{self._total_steps}  {_words(numbers)}{left}")

    def _remaining(self, step: int, now: float) -> str:
        """By the last logs, with the evaluations and saves between them; `now` never goes back."""
        self._marks.append((now, step))
        since, first = self._marks[0]
        if self._is_first:  # the first step is slow: nothing after it is measured with it
            self._marks.popleft()
            self._is_first = False
        if step <= first:
            return ""
        return f"  {duration((now - since) / (step - first) * (self._total_steps - step))} left"

    def _guard(self, show: Callable[[], None]) -> None:
        if self._silent:
            return
        try:
            show()
        except (OSError, ValueError):  # a reader that went away, a full disk, a closed stream
            self._silent = True
            discard(sys.stdout)


def table_console() -> RichConsole:
    """Where tables go: as wide as the terminal; a pipe is as wide as they need, if nobody says.

    What the encoding lacks is replaced.
    """
    _replace_unknown()
    nobody_says = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return RichConsole(width=_PIPE_COLUMNS if nobody_says else None)


def tell(*lines: str) -> None:
    """Print lines to stdout; nobody may be reading it any more.

    What the encoding lacks is replaced.
    """
    _replace_unknown()
    try:
        _print("\n".join(lines))
    except (OSError, ValueError):
        discard(sys.stdout)


def _replace_unknown() -> None:
    with contextlib.suppress(AttributeError, ValueError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]


def _print(text: str) -> None:
    """In one write, its end too: a thread may be telling of a checkpoint."""
    print(f"{text}\n", end="", flush=True)


def _words(numbers: Numbers) -> str:
    """Numbers in the order and words of `_PARTS`; a null is a number that was not finite."""
    parts = []
    for name, words in _PARTS.items():
        if name in numbers:
            value = numbers[name]
            parts.append(words(float("nan") if value is None else value))
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """3723.4 -> "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def short(value: float) -> str:
    """1234567 -> "1.2M", 41234 -> "41.2k"."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"
