"""A small state, saved and loaded without an engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from came.fields import Field, stored_boxes
from came.layout import FlatSplit, Param, ShardLayout, boxes, packed_offsets
from came.pieces import Entry, Piece, StoredPiece
from trainers.run import checkpoint, commits, manifest, tensors
from trainers.run.commits import Best
from trainers.run.snapshot import Snapshot
from trainers.run.step_folders import folder_name
from trainers.run.writer import Writer

IDENTITY = {"model.hidden": 8, "optimizer.betas": (0.9, 0.999, 0.9999), "data": "f00d"}
SETTING = {"zero.stage": 1, "world_size": 1}
PARAMS = (Param("wide", (5, 700)), Param("tall", (33, 10)), Param("batch", (3, 4, 6)))
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


def rewrite_manifest(
    folder: Path, change: Callable[[dict[str, Any]], None], *, files: bool = True
) -> None:
    """What somebody does who edits a checkpoint and knows how the digest is made.

    files: with the digests of the files as they now are.
    """
    path = folder / manifest.FILE_NAME
    body = json.loads(path.read_text())
    body.pop("digest")
    for name in list(body["files"]) if files else ():
        if (folder / name).exists():
            digest, size = manifest.sha256_of(folder / name), (folder / name).stat().st_size
            body["files"][name] = {"sha256": digest, "bytes": size}
    change(body)
    body["digest"] = manifest._digest(body)
    path.write_text(json.dumps(body))


def names(folder: Path) -> list[str]:
    """What is in a folder of checkpoints beside the hint."""
    return sorted(path.name for path in folder.iterdir() if path.name != commits.HINT)


# Cut by ranks ----------------------------------------------------------------------------------


def cut(state: dict[str, Tensor], rank: int, world_size: int) -> list[Entry]:
    """Matrices are cut in the middle of a row, and the last rank holds nothing of "exp_avg"."""
    group = dist.group.WORLD
    entries = []
    for entry in entries_of(state):
        holders = world_size if entry.key == "param" else max(1, world_size - 1)
        flat = entry.pieces[0].view
        size = -(-flat.numel() // holders)
        if len(entry.shape) == 2:
            part = flat[rank * size : (rank + 1) * size]
            pieces = (Piece(rank * size, part),) if part.numel() else ()
            entry = Entry(entry.name, entry.key, entry.shape, entry.dtype, True, pieces, group)
        entries.append(entry)
    return entries


def cut_world(momentum: str, world_size: int, values: list[Tensor] | None) -> list[list[Entry]]:
    """The entries of the ranks of a world that ZeRO 1 cuts; filled with `values` if given."""
    numels = tuple(param.numel for param in PARAMS)
    split = FlatSplit(numels, packed_offsets(numels), -(-sum(numels) // world_size), world_size)
    return [
        rank_entries(momentum, ShardLayout(PARAMS, split, r), values) for r in range(world_size)
    ]


def rank_entries(momentum: str, layout: ShardLayout, values: list[Tensor] | None) -> list[Entry]:
    field = Field("exp_avg", None, momentum)
    fields = [(field,)] * len(PARAMS)
    sizes: dict[str, int] = {}
    for piece in layout.fragments:
        for box in boxes(PARAMS[piece.param], piece):
            taken = field.storage.sizes(PARAMS[piece.param], box)
            for (suffix, _), size in zip(field.storage.parts, taken, strict=True):
                sizes["exp_avg" + suffix] = sizes.get("exp_avg" + suffix, 0) + size
    state = {
        "exp_avg" + suffix: torch.zeros(sizes.get("exp_avg" + suffix, 0), dtype=dtype)
        for suffix, dtype in field.storage.parts
    }
    pieces: list[list[StoredPiece]] = [[] for _ in PARAMS]
    for there in stored_boxes(layout, fields, state):
        index, start = there.param, there.start
        piece = StoredPiece(start, field, PARAMS[index], there.box, there.stored["exp_avg"])
        pieces[index].append(piece)
        if values is not None:
            piece.write(values[index].reshape(-1)[start : start + piece.numel])
    dtype = torch.int8 if momentum == "sign" else torch.float32
    return [
        Entry(param.name, "exp_avg", param.shape, dtype, True, tuple(of), None, format=momentum)
        for param, of in zip(PARAMS, pieces, strict=True)
    ]


def write_world(folder: Path, world: list[list[Entry]], step: int = 1, **changed: Any) -> Path:
    """A commit of several ranks, written by this process."""
    staging, files = folder / "staging", {}
    staging.mkdir(parents=True)
    for rank, own in enumerate(world):
        snapshot, name = Snapshot(), f"rank-{rank:05d}.safetensors"
        snapshot.begin(tensors.own_parts(own, rank, len(world)))
        snapshot.copy()
        files[name] = snapshot.write(staging / name)
    records = {tensors.tensor_name(entry): tensors.record_of(entry) for entry in world[0]}
    told = {"identity": IDENTITY, "setting": SETTING, "versions": {}, "extra": {}} | changed
    target = folder / folder_name(step)
    commits.complete(staging, manifest.Manifest(step, files, records, **told))
    commits.publish(staging, target)
    commits.make_durable(target)
    return target
