"""When a run saves, what its checkpoints are called and must agree on, and what a failed one means.

No random state is saved, because none is carried from step to step: the order of the data, masks
and pairs are hashes of (seed, sample), and dropout is seeded anew at each step by (seed, step,
rank).  The position in the data and in the schedule follow from the step.
"""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from came.state import after_load, entries
from trainers.config import Config
from trainers.data.splits import Splits
from trainers.errors import ConfigError, StorageError
from trainers.run.agreement import together
from trainers.run.checkpoint import load_latest
from trainers.run.commits import Best
from trainers.run.console import short, tell
from trainers.run.distributed import World
from trainers.run.folder import RunFolder
from trainers.run.identity import identity, setting
from trainers.run.step_folders import committed, step_of
from trainers.run.wandb_mirror import ID_FILE, kept_id
from trainers.run.writer import Writer

# That a run gives to a save of before when one rank fails: launchers do not wait for the others.
_GRACE_SECONDS = 2.0


@dataclass(frozen=True)
class Progress:
    """What the steps so far have read, over all ranks and starts; padding left out."""

    samples: int
    tokens: int


class Saver:
    """Checkpoints of one run.  Every rank must make the same calls.

    Inside `with` they may be written in the background: its end waits for the last one.
    """

    def __init__(self, config: Config, data: Splits, folder: RunFolder, world: World) -> None:
        self._config, self._folder, self._world = config.checkpoint, folder, world
        self.checkpoints = folder.checkpoints
        self.tokens = 0  # that were read before this start
        self._identity = identity(
            config, data=data.fingerprint, tokenizer=data.tokenizer_fingerprint
        )
        self._setting = setting(config, world_size=world.world_size)
        self._best = Best(config.checkpoint.best) if config.checkpoint.best else None
        self._best_value: float | None = None
        # Half the timeout of collectives: the rank that waits for a disk is not called lost.
        self._limit = config.runtime.timeout_seconds / 2
        self._writer = Writer(
            folder.checkpoints,
            keep=self._config.keep,
            best=self._best,
            limit_seconds=self._limit,
            on_commit=_tell_commit,
        )
        self._failures: list[StorageError] = []  # in a row
        self._last_save = time.monotonic()

    def resume(self, engine: Any) -> int:
        """Load the newest good checkpoint; returns its step, 0 if there is none."""
        loaded = load_latest(
            self.checkpoints,
            entries(engine),
            identity=self._identity,
            setting=self._setting,
        )
        if loaded is None:
            return 0
        self._writer.resumed_from(loaded.step)
        after_load(engine)
        self.tokens = loaded.extra.get("tokens", 0)  # older checkpoints do not tell
        engine.skipped_steps = loaded.extra.get("skipped_steps", 0)
        kept_id = loaded.extra.get("wandb_id")
        if isinstance(kept_id, str) and not (self._folder.path / ID_FILE).exists():
            self._folder.write(ID_FILE, kept_id + "\n")
        self._best_value = together(self._find_best, StorageError)[0]
        return loaded.step

    def expect(self, names: Sequence[str]) -> None:
        """Raise ConfigError unless the best checkpoint is told by one of these metrics."""
        if self._best and self._best.metric not in names:
            raise ConfigError(f"checkpoint.best={self._best.text} is none of {', '.join(names)}")

    def is_due(self, step: int, *, waits: bool) -> bool:
        """Whether the state after `step` is to be saved.

        By minutes that is so when the clock of rank 0 says it, asked only at a step that `waits`
        for all ranks anyway.
        """
        every, minutes = self._config.every, self._config.every_minutes
        if every > 0 and step % every == 0:
            return True
        if not (minutes > 0 and waits):
            return False
        is_late = time.monotonic() - self._last_save >= 60 * minutes
        vote = torch.tensor(float(is_late and self._world.rank == 0))
        return self._world.sum(vote).item() > 0

    def is_better(self, values: Mapping[str, Any]) -> bool:
        """Whether these metrics, the same on all ranks, are of an evaluation better than any."""
        if self._best is None or self._best.metric not in values:
            return False
        return self._best.better(values[self._best.metric], self._best_value)

    def save(self, engine: Any, step: int, done: Progress, values: Mapping[str, Any]) -> None:
        """Commit the state after `step`, in the background if so configured.

        It must not change until `copied` has returned.
        `values` are the metrics of the step, those of an evaluation among them if there was one.

        Raises StorageError if too many saves in a row have failed.
        """
        self.settle()
        metrics = {name: value for name, value in values.items() if name.startswith("eval/")}
        if self.is_better(values) and self._best:
            self._best_value = values[self._best.metric]
        extra = {
            **asdict(done),
            "metrics": {name: value for name, value in metrics.items() if math.isfinite(value)},
            "skipped_steps": engine.skipped_steps,
            "wandb_id": self._wandb_id(),
        }
        self._writer.start(
            step, entries(engine), identity=self._identity, setting=self._setting, extra=extra
        )
        self._last_save = time.monotonic()
        if not self._config.background:
            self.settle()

    def copied(self) -> None:
        """Wait until the state that is being saved may change: before each update."""
        self._writer.copied()

    def settle(self) -> None:
        """Wait for the save that is being written, and count it if it failed.  A collective."""
        try:
            if self._writer.settle():
                self._failures = []
        except StorageError as error:
            self._failures.append(error)
            self._best_value = together(self._find_best, StorageError)[0]
            if len(self._failures) >= self._config.max_failed_saves:
                raise self._failed() from None

    def is_durable(self) -> bool:
        """Wait for the save that is being written; whether it succeeded.  A collective."""
        self.settle()
        return not self._failures

    def _failed(self) -> StorageError:
        number = len(self._failures)
        which = f"the last {number} checkpoints" if number > 1 else "the last checkpoint"
        failure = StorageError(
            f"{which} could not be saved: {self._failures[-1]}. Those from before are untouched; "
            "where that is put right, the same command goes on from them."
        )
        failure.everywhere = True
        return failure

    def _wandb_id(self) -> str | None:
        return kept_id(self._folder.path) if self._world.rank == 0 else None

    def _find_best(self) -> float | None:
        if self._world.rank != 0 or self._best is None:
            return None
        found = self._best.find(
            [path for path in committed(self.checkpoints) if path.name not in self._writer.refused]
        )
        return None if found is None else found[1]

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if getattr(error, "everywhere", False):  # all ranks are here, none is waited for
            self._writer.leave(self._limit)
            return
        if kind is not None:
            self._writer.wait(_GRACE_SECONDS)
            return
        self.settle()
        if self._failures:
            raise self._failed()


def _tell_commit(folder: Path, num_bytes: int) -> None:
    """One line, also while the steps go on; the path as it can be typed from here."""
    step = step_of(folder)
    with contextlib.suppress(OSError, ValueError):  # no place to stand in any more; not below it
        folder = folder.relative_to(Path.cwd())
    tell(f"saved step {step}: {folder}, {short(num_bytes)}B")
