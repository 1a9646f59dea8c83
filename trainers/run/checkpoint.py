"""Checkpoints that belong to the model: by parameter name, whatever number of ranks wrote them.

Nothing is pickled, so loading a file that somebody else wrote cannot run code.  Every rank learns
of every failure before it goes on: no collective is left waiting for a rank that has given up.
All waits are bounded, collectives by the timeout of the process group.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from came.pieces import Entry
from trainers.errors import CheckpointError
from trainers.run import commits
from trainers.run import manifest as manifests
from trainers.run.agreement import own_rank, together
from trainers.run.manifest import Manifest
from trainers.run.tensors import Files, misfits, read_entry

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What a resumed run starts from: `extra` is what the caller gave to `save` at `step`."""

    step: int
    extra: dict[str, Any]
    folder: Path


def load_latest(
    checkpoints: Path,
    entries: Sequence[Entry],
    *,
    identity: Mapping[str, Any],
    setting: Mapping[str, Any],
) -> Loaded | None:
    """Copy the newest good commit into the live state behind `entries`; None if there is none.

    Every rank must call it.  Rank 0 reads every byte against the manifest, and falls back to the
    next older commit, telling why.  Nothing is written to the state before names, shapes and types
    of all tensors are known to fit.  `came.state.after_load` remains to be called.
    Raises CheckpointError on every rank if there are commits but no good one, or if the newest good
    one is of another run.
    """
    choice = together(lambda: _choose(checkpoints) if own_rank() == 0 else None, CheckpointError)[0]
    if choice is None:
        return None
    folder = checkpoints / choice["folder"]
    manifest = Manifest.from_json(choice["manifest"])
    together(lambda: _check_run(folder, manifest, identity, entries), CheckpointError)
    if own_rank() == 0:
        for change in manifests.changes(manifest.setting, setting):
            logger.warning("resuming from %s with another setting: %s", folder.name, change)
    together(lambda: _read(folder, manifest, entries), CheckpointError)
    return Loaded(manifest.step, manifest.extra, folder)


def _choose(checkpoints: Path) -> dict[str, str] | None:
    """The newest good commit, for the other ranks; removes what interrupted saves left."""
    if not checkpoints.is_dir():
        if os.path.lexists(checkpoints):  # a link to a disk that is not there
            raise CheckpointError(
                f"{checkpoints} is there, but is no folder that can be read: mount what it leads "
                "to, or remove it to train from the first step."
            )
        return None
    commits.remove_leftovers(checkpoints, ".tmp-", ".trash-")
    found = commits.newest_good(checkpoints)
    return None if found is None else {"folder": found[0].name, "manifest": found[1].to_json()}


def _check_run(
    folder: Path, manifest: Manifest, identity: Mapping[str, Any], entries: Sequence[Entry]
) -> None:
    """Raise CheckpointError unless the commit is of this very run and model."""
    problems = manifests.changes(manifest.identity, identity)
    if not problems:
        with Files(folder, manifest) as files:
            problems = misfits(files, manifest, entries)
    if problems:
        shown = problems if len(problems) <= 10 else problems[:10]
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise CheckpointError(
            f"{folder} belongs to another run:\n  " + "\n  ".join([*shown, *more]) + "\n"
            "Set these back, or start a new run with another run.dir."
        )


def _read(folder: Path, manifest: Manifest, entries: Sequence[Entry]) -> None:
    with Files(folder, manifest) as files:
        for entry in entries:
            read_entry(files, entry)
