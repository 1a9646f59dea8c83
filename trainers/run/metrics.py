"""The numbers of a run, from rank 0 to metrics.jsonl, the console and, if asked, a mirror.

metrics.jsonl is the record: one JSON object a line, `step` never falling, null for a number that is
not finite.  None of the three can stop a run: what cannot be written is dropped and told once.
"""

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers import durable
from trainers.regular import open_regular, read_regular
from trainers.run.console import Console
from trainers.run.mirrors import Mirror

if TYPE_CHECKING:
    from trainers.config import Config

logger = logging.getLogger(__name__)

FILE_NAME = "metrics.jsonl"


class Metrics:
    """Takes the numbers of a step and passes them on; does nothing on ranks other than 0."""

    def __init__(self, folder: Path, config: "Config", rank: int, *, resume_step: int = 0) -> None:
        """Lines beyond `resume_step` are removed: they are of a future that is trained again."""
        self._views: list[Any] = []
        self._mirror: Mirror | None = None
        self._last_step = resume_step
        if rank != 0:
            return
        self._views = [
            JsonLines(folder / FILE_NAME, resume_step),
            Console(config.train.steps, resume_step),
        ]
        self._mirror = _open_mirror(config, folder, resume_step)
        if self._mirror is not None:
            self._views.append(self._mirror)

    def log(self, values: Mapping[str, Any]) -> None:
        """Record `values`: the `step`, and numbers or 0-dim tensors by metric."""
        numbers = {name: number(value) for name, value in values.items()}
        step = numbers["step"]
        assert isinstance(step, int) and step >= self._last_step, f"{step} after {self._last_step}"
        self._last_step = step
        for view in self._views:
            view.log(numbers)

    def publish(self, report: Path) -> None:
        """The final report lies in this folder."""
        if self._mirror is not None:
            self._mirror.publish(report)

    def close(self) -> None:
        """Flush and end all views, in bounded time."""
        for view in self._views:
            view.close()
        self._views = []

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is not None and self._mirror is not None:
            self._mirror.hurry()
        self.close()


def _open_mirror(config: "Config", folder: Path, resume_step: int) -> Mirror | None:
    def history() -> Iterator[dict[str, Any]]:
        return read(folder / FILE_NAME)

    if config.logging.name == "wandb":
        from trainers.run.wandb_mirror import WandbMirror

        return WandbMirror(folder, config, resume_step, history)
    if config.logging.name == "tensorboard":
        from trainers.run.tensorboard_mirror import TensorBoardMirror

        return TensorBoardMirror(folder, resume_step, history)
    return None


class JsonLines:
    """An append-only file of JSON lines; a line that does not fit on the disk is dropped whole."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Cut what lies beyond `resume_step` and open the file."""
        self.dropped = 0
        self._was_told = False
        self._path = path
        self._file = -1
        try:
            _cut(path, resume_step)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            self._warn(error)

    def log(self, numbers: Mapping[str, float | int | None]) -> None:
        """Append one line; it is in the kernel's hands on return, a kill -9 cannot lose it."""
        line = (json.dumps(numbers, allow_nan=False) + "\n").encode()
        try:
            size = os.fstat(self._file).st_size
            written = os.write(self._file, line)
            if written < len(line):
                os.ftruncate(self._file, size)  # no half line for the next one to continue
                raise OSError(f"only {written} of {len(line)} bytes were written")
        except OSError as error:
            self.dropped += 1
            self._warn(error)

    def close(self) -> None:
        """Close the file, and say how many lines are missing from it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        if self.dropped:
            logger.warning("%s lacks %d lines that could not be written", self._path, self.dropped)

    def _warn(self, error: OSError) -> None:
        if self._was_told:
            return
        self._was_told = True
        logger.warning("%s cannot be written (%s); training goes on without it", self._path, error)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a metrics file in order; a line that is cut or garbled is left out."""
    try:
        text = read_regular(path, errors="replace")
    except FileNotFoundError:
        return
    yield from _rows(text)


def read_last(path: Path, num_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """The complete lines in the last `num_bytes` of a metrics file, in order.  Raises OSError."""
    with open_regular(path) as file:
        start = max(0, os.fstat(file.fileno()).st_size - num_bytes)
        file.seek(start)
        text = file.read(num_bytes).decode("utf-8", errors="replace")
    # A line that is cut at its start could still be read, if its end alone is a JSON object.
    return list(_rows(text.partition("\n")[2] if start else text))


def _rows(text: str) -> Iterator[dict[str, Any]]:
    for line in text.split("\n"):
        try:
            numbers = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(numbers, dict) and isinstance(numbers.get("step"), int):
            yield numbers


def _cut(path: Path, last_step: int) -> None:
    """Rewrite the file without lines after `last_step` and without a torn last line."""
    if not path.exists():
        return
    kept = [json.dumps(numbers) for numbers in read(path) if numbers["step"] <= last_step]
    durable.write_text(path, "".join(f"{line}\n" for line in kept))


def number(value: Any) -> float | int | None:
    """A JSON number; null for what is not finite, which JSON cannot say."""
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None
