"""A small state, saved and loaded without an engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from came.pieces import Entry, Piece
from trainers.run import checkpoint, commits, manifest
from trainers.run.commits import Best
from trainers.run.writer import Writer

IDENTITY = {"model.hidden": 8, "optimizer.betas": (0.9, 0.999, 0.9999), "data": "f00d"}
SETTING = {"zero.stage": 1, "world_size": 1}
SHAPES = {"param/emb": (7, 5), "exp_avg/emb": (7, 5), "exp_avg_sq_row/emb": (7,), "step/emb": ()}


def random_state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    state["param/emb"][0, 0] = -0.0  # a sum over ranks would turn it into 0.0
    state["param/half"] = torch.randn(3, 2, generator=generator).to(torch.bfloat16)
    return state


def entries_of(state: dict[str, Tensor]) -> list[Entry]:
    """Every rank holds the whole."""
    return [
        Entry(
            name=name.split("/")[1],
            key=name.split("/")[0],
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            sharded=False,
            pieces=(Piece(0, tensor.view(-1)),),
            group=None,
        )
        for name, tensor in state.items()
    ]


def save(folder: Path, step: int, state: dict[str, Tensor], **changed: Any) -> Path:
    return save_entries(folder, step, entries_of(state), **changed)


def save_entries(
    folder: Path,
    step: int,
    entries: list[Entry],
    *,
    keep: int = 2,
    best: Best | None = None,
    **changed: Any,
) -> Path:
    """Save and wait."""
    writer = Writer(folder, keep=keep, best=best, limit_seconds=20)
    target = begin_entries(writer, step, entries, **changed)
    writer.settle()
    return target


def begin(writer: Writer, step: int, state: dict[str, Tensor]) -> Path:
    return begin_entries(writer, step, entries_of(state))


def begin_entries(writer: Writer, step: int, entries: list[Entry], **changed: Any) -> Path:
    manifest: dict[str, Any] = {
        "identity": IDENTITY,
        "setting": SETTING,
        "extra": {"samples": step * 16},
    }
    return writer.start(step, entries, **(manifest | changed))


def load(folder: Path, state: dict[str, Tensor], **changed: Any) -> checkpoint.Loaded | None:
    arguments = {"identity": IDENTITY, "setting": SETTING} | changed
    return checkpoint.load_latest(folder, entries_of(state), **arguments)


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    def bits(tensor: Tensor) -> bytes:
        return bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())

    return left.keys() == right.keys() and all(bits(left[n]) == bits(right[n]) for n in left)


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """What somebody does who edits a checkpoint and knows how the digest is made."""
    path = folder / manifest.FILE_NAME
    body = json.loads(path.read_text())
    body.pop("digest")
    for name in list(body["files"]):
        if (folder / name).exists():
            digest, size = manifest.sha256_of(folder / name), (folder / name).stat().st_size
            body["files"][name] = {"sha256": digest, "bytes": size}
    change(body)
    body["digest"] = manifest._digest(body)
    path.write_text(json.dumps(body))


def names(folder: Path) -> list[str]:
    """What is in a folder of checkpoints beside the hint."""
    return sorted(path.name for path in folder.iterdir() if path.name != commits.HINT)
