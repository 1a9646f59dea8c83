"""Checkpoints that belong to the model: safetensors by parameter name, committed by one rename.

    <run>/checkpoints/
      step-00000100/                  a commit: whole, because it appears by a rename
        rank-00000.safetensors        tensor i is written by rank i % world, as "<key>/<name>"
        rank-00001.safetensors
        manifest.json                 sizes, sha256, tensors, what the run must agree on
      step-00000200.tmp-5f0c.../      an interrupted save: removed at the next start
      step-00000050.trash-5f0c.../    an interrupted prune: likewise

Nothing is pickled, so loading a file that somebody else wrote cannot run code.  Every rank learns
of every failure before it goes on: no collective is left waiting for a rank that has given up.
All waits are collectives, and as such bounded by the timeout of the process group.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from came.state import Entry, gather, scatter
from trainers import durable
from trainers.errors import CheckpointError, StorageError
from trainers.run import manifest as manifests
from trainers.run.agreement import own_rank, together, world_size
from trainers.run.folder import versions
from trainers.run.manifest import FileRecord, Manifest, RefusedError, TensorRecord

logger = logging.getLogger(__name__)

MIN_KEEP = 2  # one commit to resume from while the next one is being proven


@dataclass(frozen=True)
class Loaded:
    """What a resumed run starts from: `extra` is what the caller gave to `save` at `step`."""

    step: int
    extra: dict[str, Any]
    folder: Path


def save(
    checkpoints: Path,
    step: int,
    entries: Sequence[Entry],
    *,
    identity: Mapping[str, Any],
    setting: Mapping[str, Any],
    extra: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write the state behind `entries` as one commit, then drop all but the newest `keep`.

    Every rank must call it.  `identity`, `setting` and `extra` are JSON, see `Manifest`.  Returns
    the committed folder.  If any rank cannot write, raises StorageError on every rank; nothing is
    committed then, and older commits are untouched.
    """
    if keep < MIN_KEEP:
        raise ValueError(f"keep = {keep}: at least {MIN_KEEP} checkpoints must be kept")
    rank, num_ranks = own_rank(), world_size()
    target = checkpoints / manifests.folder_name(step)
    staging = Path(together(lambda: _begin(target) if rank == 0 else None, StorageError)[0])
    mine = _collect(entries, rank, num_ranks)
    try:
        written = together(lambda: _write_tensors(staging, rank, mine), StorageError)
        manifest = _describe(step, written, identity, setting, extra)
        together(lambda: _commit(staging, target, manifest) if rank == 0 else None, StorageError)
    except StorageError:
        if rank == 0:
            shutil.rmtree(staging, ignore_errors=True)
        raise
    if rank == 0:
        _prune(checkpoints, step, keep)
    return target


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
    together(lambda: _read_tensors(folder, manifest, entries), CheckpointError)
    return Loaded(manifest.step, manifest.extra, folder)


def committed(checkpoints: Path) -> list[Path]:
    """The committed step folders, newest first: by the number in the name, clocks do not count."""
    if not checkpoints.is_dir():
        return []
    steps = [(manifests.step_of(path), path) for path in checkpoints.iterdir()]
    found = [(step, path) for step, path in steps if step is not None]
    return [path for _, path in sorted(found, reverse=True)]


# Saving ----------------------------------------------------------------------------------------


def _begin(target: Path) -> str:
    """Make the folder that all ranks write into; returns its path, which no other save has."""
    staging = target.with_name(f"{target.name}.tmp-{secrets.token_hex(6)}")
    staging.mkdir(parents=True)
    return str(staging)


def _collect(entries: Sequence[Entry], rank: int, num_ranks: int) -> dict[str, torch.Tensor]:
    """The whole tensors that this rank writes; any other is dropped as soon as it is gathered."""
    mine: dict[str, torch.Tensor] = {}
    for index, entry in enumerate(entries):
        is_writer = index % num_ranks == rank
        if entry.sharded or is_writer:
            whole = gather(entry)
            if is_writer:
                mine[_tensor_name(entry)] = whole.detach().contiguous()
    return mine


def _write_tensors(staging: Path, rank: int, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write this rank's file and force it to the disk; returns its records as JSON."""
    path = staging / f"rank-{rank:05d}.safetensors"
    save_file(tensors, path)
    durable.sync(path)
    record = FileRecord(manifests.sha256_of(path), path.stat().st_size)
    listed = {name: asdict(manifests.record_of(path.name, t)) for name, t in tensors.items()}
    return {"file": path.name, "record": asdict(record), "tensors": listed}


def _describe(
    step: int,
    written: Sequence[Mapping[str, Any]],
    identity: Mapping[str, Any],
    setting: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Manifest:
    return Manifest(
        step=step,
        files={part["file"]: FileRecord(**part["record"]) for part in written},
        tensors={
            name: TensorRecord(**record)
            for part in written
            for name, record in part["tensors"].items()
        },
        identity=dict(identity),
        setting=dict(setting),
        versions=versions(),
        extra=dict(extra),
    )


def _commit(staging: Path, target: Path, manifest: Manifest) -> None:
    durable.write_text(staging / manifests.FILE_NAME, manifest.to_json())
    if target.exists():  # refused at load, or else this run would have gone on from it
        os.rename(target, _trash(target))
    os.rename(staging, target)
    durable.sync(target.parent)


def _prune(checkpoints: Path, step: int, keep: int) -> None:
    """Remove commits older than the newest `keep` up to `step`; a failure costs only space.

    Commits newer than `step` were refused at load: they do not count as kept, and are replaced when
    the run comes by.
    """
    try:
        usable = [path for path in committed(checkpoints) if (manifests.step_of(path) or 0) <= step]
        for path in usable[keep:]:
            os.rename(path, _trash(path))  # no half-deleted folder carries a committed name
        _remove_leftovers(checkpoints, ".trash-")
    except OSError as error:
        logger.warning("old checkpoints could not be removed: %s", error)


def _trash(path: Path) -> Path:
    return path.with_name(f"{path.name}.trash-{secrets.token_hex(6)}")


def _remove_leftovers(checkpoints: Path, *marks: str) -> None:
    for path in checkpoints.iterdir():
        if path.name.startswith("step-") and any(mark in path.name for mark in marks):
            shutil.rmtree(path, ignore_errors=True)


# Loading ---------------------------------------------------------------------------------------


def _choose(checkpoints: Path) -> dict[str, str] | None:
    """The newest good commit, for the other ranks; removes what interrupted saves left."""
    if not checkpoints.is_dir():
        return None
    _remove_leftovers(checkpoints, ".tmp-", ".trash-")
    reasons = []
    for folder in committed(checkpoints):
        try:
            manifest, unlisted = manifests.verify(folder)
        except RefusedError as reason:
            reasons.append(f"{folder.name}: {reason}")
            logger.warning("checkpoint refused, trying the next older: %s", reasons[-1])
            continue
        if unlisted:
            logger.warning("%s holds files that it does not list: %s", folder.name, unlisted)
        return {"folder": folder.name, "manifest": manifest.to_json()}
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {checkpoints} can be loaded: {'; '.join(reasons)}. "
            "Restore one of them, or start again with another run.dir."
        )
    return None


def _check_run(
    folder: Path, manifest: Manifest, identity: Mapping[str, Any], entries: Sequence[Entry]
) -> None:
    """Raise CheckpointError unless the commit is of this very run and model."""
    problems = manifests.changes(manifest.identity, identity) or _misfits(manifest, entries)
    if problems:
        raise CheckpointError(
            f"{folder} belongs to another run:\n  " + "\n  ".join(problems) + "\n"
            "Set these back, or start a new run with another run.dir."
        )


def _misfits(manifest: Manifest, entries: Sequence[Entry]) -> list[str]:
    """How the saved tensors differ from those of the live state, in at most a screen of lines."""
    saved = {name: (record.shape, record.dtype) for name, record in manifest.tensors.items()}
    live = {
        _tensor_name(entry): (tuple(entry.shape), str(entry.dtype).removeprefix("torch."))
        for entry in entries
    }
    lines = [f"{name} is not in the checkpoint" for name in live if name not in saved]
    lines += [f"{name} is not in the model" for name in saved if name not in live]
    lines += [
        f"{name}: {saved[name]} when saved, {live[name]} now"
        for name in live
        if name in saved and saved[name] != live[name]
    ]
    return lines if len(lines) <= 10 else [*lines[:10], f"and {len(lines) - 10} more"]


def _read_tensors(folder: Path, manifest: Manifest, entries: Sequence[Entry]) -> None:
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(safe_open(folder / name, framework="pt"))
            for name in manifest.files
        }
        for entry in entries:
            name = _tensor_name(entry)
            scatter(entry, files[manifest.tensors[name].file].get_tensor(name))


def _tensor_name(entry: Entry) -> str:
    return f"{entry.key}/{entry.name}"
