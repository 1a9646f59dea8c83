"""From an exception to the words, the JSON line and the exit code with which a process ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TextIO, TypeVar

from launch.local import STOPPED, Outcome
from trainers.errors import MemoryLimitError, PeerLostError, RunError, StorageError
from trainers.redact import redact_text

INTERRUPTED = 130  # 128 + SIGINT, as in a shell
UNEXPECTED = 1
READER_GONE = 141  # 128 + SIGPIPE, as a shell says of other programs

_P = ParamSpec("_P")
_R = TypeVar("_R")


def ends_with_reader(main: Callable[_P, _R]) -> Callable[_P, _R]:
    """The `main` of a command, which ends without words when nobody reads its stdout any more.

    What is left is written here: where Python itself does that, at its end, it cannot be caught.
    SIGPIPE stays ignored, because it would also end a process that loses a connection.
    """

    @wraps(main)
    def until_then(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            try:
                return main(*args, **kwargs)
            finally:
                print(end="", flush=True)
        except OSError as error:
            code = report(error, None, verbose=False)
            discard(sys.stdout)
            sys.exit(code)

    return until_then


def report(
    error: BaseException,
    rank: int | None,
    *,
    verbose: bool,
    words: bool = True,
    quiet: bool = True,
) -> int:
    """Tells stderr why this process ends, and returns its exit code.

    Args:
        rank: None in the launcher.
        verbose: with a traceback also where the message says enough.
        words: False where another rank says the same thing already.
        quiet: False for a run, which is to go on without a reader: that it does not is told.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if quiet and isinstance(error, BrokenPipeError) and _reader_is_gone():
        discard(sys.stdout)
        return READER_GONE
    last = record(error, rank)
    lines = []
    if explain(error) is None or verbose:
        lines += [line.rstrip("\n") for line in traceback.format_exception(error)]
    if words:
        _print([*lines, *_last_words(last)])
    return int(last["exit_code"])


def record(error: BaseException, rank: int | None) -> dict[str, Any]:
    """Why a process ends, as the last line of stderr has it; secrets are still in it."""
    known = explain(error)
    text = str(known) if known is not None else f"{type(error).__name__}: {error}"
    code = known.exit_code if known is not None else UNEXPECTED
    return {"reason": text, "rank": rank, "step": getattr(error, "step", None), "exit_code": code}


def report_outcome(outcome: Outcome) -> None:
    """Speaks for a rank that could not: one that a signal has ended."""
    if (last := outcome_record(outcome)) is not None:
        _print([last["reason"]] if outcome.rank is None else _last_words(last))


def outcome_record(outcome: Outcome) -> dict[str, Any] | None:
    """`record` of a run that a signal has ended; None if whoever ended had words of its own."""
    if outcome.signum is None or not outcome.exit_code:
        return None
    name = signal.Signals(outcome.signum).name
    if outcome.rank is None:
        text = f"stopped by {name}; the same command resumes from the last checkpoint"
    else:
        text = f"rank {outcome.rank} was killed by {name}"
        if outcome.signum == signal.SIGKILL:
            text += ", as a machine does that runs out of memory"
    return {"reason": text, "rank": outcome.rank, "step": None, "exit_code": outcome.exit_code}


def _last_words(last: dict[str, Any]) -> list[str]:
    kind = "" if last["exit_code"] in STOPPED else "error: "
    return [kind + last["reason"], json.dumps(last)]


def explain(error: BaseException) -> RunError | None:
    """`error` as one that a person can act on; None for a bug, whose traceback is the message."""
    if isinstance(error, RunError):
        return error
    text = str(error)
    if isinstance(error, MemoryError) or _names(error) & {"OutOfMemoryError"} or _no_memory(text):
        return MemoryLimitError(
            f"out of memory ({_first_line(text) or 'the machine has no more'}): "
            "set a smaller batch.micro_size, the global batch stays the same"
        )
    if _names(error) & {"DistError"} or _is_gloos(error):
        # gloo begins with a line of its source and ends with advice.
        words = re.sub(r"\[/\S+:\d+\] ", "", _first_line(text)).split(" This is typically")[0]
        return PeerLostError(f"another rank died or did not answer ({words})")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StorageError(f"cannot write: {error}")
    return None


def _names(error: BaseException) -> set[str]:
    """Names of its classes: torch's are recognised without an import of torch."""
    return {kind.__name__ for kind in type(error).__mro__}


def _is_gloos(error: BaseException) -> bool:
    """gloo's errors have no class of their own, but a line of its source."""
    return isinstance(error, RuntimeError) and bool(re.search(r"\bgloo\b", str(error), re.I))


def _no_memory(text: str) -> bool:
    return "can't allocate memory" in text or "CUDA out of memory" in text


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]


def _reader_is_gone() -> bool:
    """Whether stdout is a pipe that nobody reads: another one may have broken, as a worker's."""
    try:
        look = select.poll()
        look.register(sys.stdout.fileno(), 0)
        return bool(look.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def discard(stream: TextIO) -> None:
    """Point stdout or stderr at nothing, for what was not written would fail at each later flush.

    The last one is Python's own, at its end, and makes the exit code 120.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        place = stream.fileno()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, place)
        os.close(nothing)


def _print(lines: list[str]) -> None:
    try:
        # In one write, or the lines of several ranks get mixed.
        sys.stderr.write(redact_text("\n".join(lines)) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # stderr may be a pipe that nobody reads
        discard(sys.stderr)
