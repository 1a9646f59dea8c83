"""The folder of the checkpoints: what is committed, how it becomes so, and what is removed.

<run>/checkpoints/
  step-00000100/                  a commit: whole, because it appears by a rename
    rank-00000.safetensors        what rank 0 held, see `tensors`
    rank-00001.safetensors
    manifest.json                 sizes, sha256, tensors, what the run must agree on
  step-00000200.tmp-5f0c.../      an interrupted save: removed at the next start
  step-00000050.trash-5f0c.../    an interrupted prune: likewise
  step-00000100.refused-5f0c.../  could not be loaded, and the run went on without it: stays
  latest                          the name of a commit: a hint that there was one, never followed
"""

import contextlib
import logging
import os
import secrets
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from trainers import durable
from trainers.errors import CheckpointError
from trainers.run import manifest as manifests
from trainers.run import tensors
from trainers.run.manifest import Manifest, RefusedError
from trainers.run.step_folders import committed, step_of

logger = logging.getLogger(__name__)

HINT = "latest"
_UNREAD = object()
MIN_KEEP = 2  # one commit to resume from while the next one is being proven


def staging(target: Path, token: str) -> Path:
    """The folder that ranks write into before it is committed as `target`."""
    return target.with_name(f"{target.name}.tmp-{token}")


def complete(folder: Path, manifest: Manifest) -> None:
    """Add the manifest to the files in a staging folder, durably.  Raises OSError."""
    durable.write_text(folder / manifests.FILE_NAME, manifest.to_json())


def publish(folder: Path, target: Path) -> None:
    """Make a complete staging folder the commit `target`, by a rename.  Raises OSError."""
    if target.exists():  # refused at load, or else this run would have gone on from it
        os.rename(target, _beside(target, "refused"))
    os.rename(folder, target)


def make_durable(target: Path) -> bool:
    """Force the name of a commit to the disk, and leave the hint; returns whether a power cut can
    no longer undo the commit.

    The commit is there, whatever fails now: that is only told.
    """
    is_durable = True
    try:
        durable.sync(target.parent)
    except OSError as error:
        is_durable = False
        logger.warning("%s is committed, a power cut may undo that: %s", target.name, error)
    try:
        durable.write_text(target.with_name(HINT), target.name + "\n")
    except OSError as error:  # it is only a hint
        logger.warning("%s of %s could not be written: %s", HINT, target.name, error)
    return is_durable


def discard(folder: Path) -> None:
    """Remove a staging folder, as far as that is possible."""
    shutil.rmtree(folder, ignore_errors=True)


def prune(
    checkpoints: Path,
    step: int,
    keep: int,
    best: "Best | None" = None,
    refused: Collection[str] = (),
) -> None:
    """Remove commits older than the newest `keep` up to `step`; a failure costs only space.

    Those `refused` at load, by name, never count as kept: up to `step` they are renamed, newer ones
    wait until the run comes by.  They are not removed: it may have been the disk that could not be
    read, or the program that was too old.  Of the others the best one stays.
    """
    try:
        reached = [path for path in committed(checkpoints) if _step(path) <= step]
        usable = [path for path in reached if path.name not in refused]
        kept = {*usable[:keep], *(best.spared(usable) if best else ())}
        for path in reached:
            if path.name in refused:
                os.rename(path, _beside(path, "refused"))
            elif path not in kept:  # no half-deleted folder carries a committed name
                os.rename(path, _beside(path, "trash"))
        remove_leftovers(checkpoints, ".trash-")
    except OSError as error:
        logger.warning("old checkpoints could not be removed: %s", error)


def newer_than(checkpoints: Path, step: int) -> set[str]:
    """Names of the commits beyond `step`."""
    return {path.name for path in committed(checkpoints) if _step(path) > step}


def remove_leftovers(checkpoints: Path, *marks: str) -> None:
    """Remove step folders, and hints that were being written, whose names have one of `marks`."""
    for path in checkpoints.iterdir():
        if any(mark in path.name for mark in marks):
            if path.name.startswith("step-"):
                shutil.rmtree(path, ignore_errors=True)
            elif path.name.startswith(f".{HINT}."):
                with contextlib.suppress(OSError):
                    path.unlink()


def newest_good(checkpoints: Path) -> tuple[Path, Manifest] | None:
    """The newest commit whose every byte is as it was saved; None if there never was one.

    Raises CheckpointError if there are some and none is good, or if they are gone.
    """
    reasons = []
    for folder in committed(checkpoints):
        try:
            manifest, unlisted = tensors.verify(folder)
        except RefusedError as reason:
            reasons.append(f"{folder.name}: {reason}")
            logger.warning("checkpoint refused, trying the next older: %s", reasons[-1])
            continue
        if unlisted:
            logger.warning("%s holds files that it does not list: %s", folder.name, unlisted)
        return folder, manifest
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {checkpoints} can be loaded: {'; '.join(reasons)}. "
            "Restore one of them, or start again with another run.dir."
        )
    if os.path.lexists(checkpoints / HINT):  # also as a link that leads nowhere
        raise CheckpointError(
            f"{checkpoints} has no step folder any more, but {HINT} there says that it had: "
            f"restore one, or remove {HINT} to train again from the first step."
        )
    return None


@dataclass(frozen=True)
class Best:
    """Which commit is best: by a metric of the evaluation at its step, which its manifest keeps.

    `text` is the metric's name, of which less is better, or "max:" and the name.
    """

    text: str

    @property
    def metric(self) -> str:
        return self.text.removeprefix("min:").removeprefix("max:")

    def better(self, value: float, than: float | None) -> bool:
        """Whether a value beats another; what is not a number never does."""
        if value != value:
            return False
        if than is None:
            return True
        return value > than if self.text.startswith("max:") else value < than

    def find(self, folders: list[Path]) -> tuple[Path, float] | None:
        """The best of these commits and its value; the older one of equals."""
        found: tuple[Path, float] | None = None
        for folder in sorted(folders):
            value = self._value(folder)
            if isinstance(value, int | float) and self.better(value, found and found[1]):
                found = folder, float(value)
        return found

    def spared(self, folders: list[Path]) -> list[Path]:
        """Those that no prune may take: the best one, and any that cannot be read now."""
        unread = [folder for folder in folders if self._value(folder) is _UNREAD]
        found = self.find(folders)
        return unread if found is None else [*unread, found[0]]

    def _value(self, folder: Path) -> object:
        try:
            return manifests.read(folder).extra.get("metrics", {}).get(self.metric)
        except (RefusedError, AttributeError):
            return _UNREAD


def _step(path: Path) -> int:
    return step_of(path) or 0


def _beside(path: Path, mark: str) -> Path:
    return path.with_name(f"{path.name}.{mark}-{secrets.token_hex(6)}")
