"""The pieces in the files of a checkpoint: which there are, whether they are whole, and into a run.

A piece is read into the run's own as it is stored where both have the same range, and by value
where ranks cut otherwise; so nothing changes in the same world, whatever the format.
"""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from came.momentum import FORMATS
from came.pieces import PLAIN, Entry, Piece, StoredPiece
from trainers.run import manifest as manifests
from trainers.run.manifest import (
    BUFFER,
    FILE_NAME,
    Manifest,
    RefusedError,
    TensorRecord,
)

_RANGE = re.compile(r"(.+)\[([0-9]{1,18}):([0-9]{1,18})\](\w*)", re.DOTALL)


def tensor_name(entry: Entry) -> str:
    """What an entry is called in manifests."""
    return f"{entry.key}/{entry.name}"


def part_name(name: str, start: int, stop: int, suffix: str) -> str:
    """What a part of a piece is called in the files."""
    return f"{name}[{start}:{stop}]{suffix}"


def record_of(entry: Entry) -> TensorRecord:
    """What the manifest says of an entry."""
    dtype = str(entry.dtype).removeprefix("torch.")
    return TensorRecord(tuple(entry.shape), dtype, entry.format)


@dataclass(frozen=True)
class SavedPiece:
    """Elements `[start, stop)` of a tensor in a file; `parts` are names in it, by suffix."""

    start: int
    stop: int
    file: str
    parts: dict[str, str]


class Files:
    """The open safetensors files of one step folder, and the pieces in them by tensor, in order."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        found: dict[str, dict[tuple[str, int, int], SavedPiece]] = {}
        for file_name in manifest.files:
            path = manifests.plain_file(folder, file_name)
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            self._files[file_name] = file
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                tensor, start, stop, suffix = self._place(file, name)
                place = (file_name, start, stop)
                empty = SavedPiece(start, stop, file_name, {})
                found.setdefault(tensor, {}).setdefault(place, empty).parts[suffix] = name
        self.pieces = {
            name: sorted(pieces.values(), key=lambda piece: (piece.start, piece.stop))
            for name, pieces in found.items()
        }

    def _place(self, file: Any, name: str) -> tuple[str, int, int, str]:
        match = _RANGE.fullmatch(name)
        if match:
            return match[1], int(match[2]), int(match[3]), match[4]
        return name, 0, math.prod(file.get_slice(name).get_shape()), ""

    def sizes(self, piece: SavedPiece) -> dict[str, int]:
        """Numbers in each part, without reading them."""
        file = self._files[piece.file]
        return {
            suffix: math.prod(file.get_slice(name).get_shape())
            for suffix, name in piece.parts.items()
        }

    def parts(self, piece: SavedPiece) -> dict[str, Tensor]:
        """The parts, flat."""
        file = self._files[piece.file]
        return {suffix: file.get_tensor(name).reshape(-1) for suffix, name in piece.parts.items()}

    def whole(self, name: str) -> Tensor:
        """All elements of a tensor in plain pieces, flat."""
        parts = [self.parts(piece) for piece in self.pieces[name]]
        if not all("" in part for part in parts):
            raise RefusedError(f"{name} is in a format of its own, not in plain numbers")
        found = [part[""] for part in parts]
        return torch.cat(found) if len(found) > 1 else found[0]

    def __enter__(self) -> "Files":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()


# Whether they are whole ------------------------------------------------------------------------


def verify(folder: Path) -> tuple[Manifest, list[str]]:
    """Read every byte of a step folder against its manifest.

    Returns the manifest, and the names of files that it does not list.  Raises RefusedError with
    the reason: a link, a missing or altered file, other tensors, a value that is not finite.
    """
    manifest = manifests.read(folder)
    try:
        manifests.check_files(folder, manifest)
        with Files(folder, manifest) as files:
            _check_tensors(files, manifest)
        unlisted = {path.name for path in folder.iterdir()} - {FILE_NAME, *manifest.files}
    except (OSError, SafetensorError) as error:
        raise RefusedError(str(error)) from error
    return manifest, sorted(unlisted)


def _check_tensors(files: Files, manifest: Manifest) -> None:
    unknown = sorted(files.pieces.keys() - manifest.tensors.keys())
    missing = sorted(manifest.tensors.keys() - files.pieces.keys())
    if unknown:
        raise RefusedError(f"{unknown[0]} is not what {FILE_NAME} lists")
    if missing:
        raise RefusedError(f"{missing[0]} is in no file")
    for name, record in manifest.tensors.items():
        at = 0
        for piece in files.pieces[name]:
            if piece.start != at:
                raise RefusedError(f"{name} has a gap or an overlap at element {at}")
            at = piece.stop
            _check_piece(name, record, piece, files.parts(piece))
        if at != math.prod(record.shape):
            raise RefusedError(f"{name} is not what {FILE_NAME} lists: it has {at} elements")


def _check_piece(
    name: str, record: TensorRecord, piece: SavedPiece, parts: Mapping[str, Tensor]
) -> None:
    if record.format == PLAIN:
        dtypes = {"": record.dtype}
    else:
        wanted = FORMATS[record.format].parts
        dtypes = {suffix: str(dtype).removeprefix("torch.") for suffix, dtype in wanted}
    if {key: str(part.dtype).removeprefix("torch.") for key, part in parts.items()} != dtypes:
        raise RefusedError(f"{name} in {piece.file} is not what {FILE_NAME} lists")
    if record.format == PLAIN and parts[""].numel() != piece.stop - piece.start:
        raise RefusedError(f"{name} in {piece.file} is not as long as its name says")
    finite = all(torch.isfinite(part).all() for part in parts.values())
    if not name.startswith(BUFFER) and not finite:
        raise RefusedError(f"{name} has values that are not finite")


# Into a run ------------------------------------------------------------------------------------


def misfits(files: Files, manifest: Manifest, entries: Sequence[Entry]) -> list[str]:
    """How the saved tensors differ from those of the live state."""
    saved = {name: (record.shape, record.dtype) for name, record in manifest.tensors.items()}
    records = {tensor_name(entry): record_of(entry) for entry in entries}
    live = {name: (record.shape, record.dtype) for name, record in records.items()}
    lines = [f"{name} is not in the checkpoint" for name in live if name not in saved]
    lines += [f"{name} is not in the model" for name in saved if name not in live]
    for entry in entries:
        name = tensor_name(entry)
        if name in saved and saved[name] != live[name]:
            lines.append(f"{name}: {saved[name]} when saved, {live[name]} now")
        elif name in saved and not _can_be_read(files, manifest.tensors[name].format, entry):
            lines.append(f"{name}: its pieces in format {manifest.tensors[name].format} do not fit")
    return lines


def _can_be_read(files: Files, saved_format: str, entry: Entry) -> bool:
    if saved_format == PLAIN:
        return True
    if saved_format != entry.format:
        return False
    try:
        return all(
            files.sizes(saved) == piece.sizes(saved.start, saved.stop - saved.start)
            for piece in entry.pieces
            for saved in _overlapping(files, entry, piece)
        )
    except ValueError:
        return False


def read_entry(files: Files, entry: Entry) -> None:
    """Write the saved tensor into this rank's pieces of it, and their mirrors."""
    for piece in (*entry.pieces, *entry.mirrors):
        if piece.numel == 0:
            continue
        saved = _overlapping(files, entry, piece)
        stop = piece.start + piece.numel
        if (saved[0].start, saved[0].stop) == (piece.start, stop) and _same_parts(saved[0], piece):
            for suffix, part in files.parts(saved[0]).items():
                piece.parts[suffix].copy_(part)
            continue
        values = [
            piece.decode(s.start, s.stop - s.start, files.parts(s))[
                max(piece.start - s.start, 0) : stop - s.start
            ]
            for s in saved
        ]
        piece.write(torch.cat(values) if len(values) > 1 else values[0])


def _same_parts(saved: SavedPiece, piece: Piece | StoredPiece) -> bool:
    return saved.parts.keys() == piece.parts.keys()


def _overlapping(files: Files, entry: Entry, piece: Piece | StoredPiece) -> list[SavedPiece]:
    start, stop = piece.start, piece.start + piece.numel
    return [s for s in files.pieces[tensor_name(entry)] if s.start < stop and start < s.stop]


def own_parts(entries: Sequence[Entry], rank: int, num_ranks: int) -> dict[str, Tensor]:
    """What this rank writes, by the name in its file; the live tensors, not copies.

    Its pieces of what is sharded, and a share of what all ranks hold, as many bytes for each.
    """
    found: dict[str, Tensor] = {}
    load = [0] * num_ranks
    for entry in entries:
        writer = rank if entry.sharded else load.index(min(load))
        if not entry.sharded:
            load[writer] += math.prod(entry.shape) * entry.dtype.itemsize
        for piece in entry.pieces if writer == rank else ():
            stop = piece.start + piece.numel
            for suffix, part in piece.parts.items():
                found[part_name(tensor_name(entry), piece.start, stop, suffix)] = part
    return found
