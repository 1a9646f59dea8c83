"""TensorBoard as a mirror of metrics.jsonl: event files in the run folder, one for each start."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.redact import redact_text
from trainers.run.mirrors import History

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"


class TensorBoardMirror:
    """Scalars under the names of metrics.jsonl; after the first failure it says so and stays off.

    A start that resumes says so in its file: TensorBoard then hides what earlier files have of
    later steps.
    """

    def __init__(self, folder: Path, resume_step: int, history: History) -> None:
        self._writer: Any = None
        try:
            self._start(folder / FOLDER, resume_step, history)
        except Exception as error:  # whatever a mirror throws, the run goes on
            self._fail(error)

    def log(self, numbers: Mapping[str, float | int | None]) -> None:
        """Write one step; it is in the kernel's hands on return, as a line of metrics.jsonl is."""
        if self._writer is None:
            return
        try:
            self._add(numbers)
            self._writer.flush()
        except Exception as error:
            self._fail(error)

    def publish(self, report: Path) -> None:
        """The report lies in the run folder, beside the event files."""

    def hurry(self) -> None:
        """Nothing is ever far behind."""

    def close(self) -> None:
        """End the file."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                writer.close()
        except Exception as error:
            self._fail(error)

    def _start(self, folder: Path, resume_step: int, history: History) -> None:
        from torch.utils.tensorboard import SummaryWriter

        is_new = not folder.is_dir() or not any(folder.iterdir())
        purge = None if is_new else resume_step + 1
        self._writer = SummaryWriter(str(folder), purge_step=purge)
        if is_new:  # the starts before had another logger
            for row in history():
                self._add(row)
            self._writer.flush()

    def _add(self, numbers: Mapping[str, float | int | None]) -> None:
        for name, value in numbers.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, numbers["step"])

    def _fail(self, error: Exception) -> None:
        logger.warning("TensorBoard gets no numbers any more: %s", redact_text(str(error)))
        self._writer = None
