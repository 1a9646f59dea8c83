"""The tensors of a run by parameter name, and the pieces of each that this rank holds.

    exp_avg of a matrix      | rank 0            | rank 1                  |
    its pieces               [ 0 : 12 ]           [ 12 : 15 ] [ 15 : 24 ]

A piece is a range of the flattened tensor.  Most hold their numbers as they are; those in a format
of their own (int8, sign) are a box of the matrix, and can be kept as they are stored, in `parts`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from came.fields import Field
from came.layout import Box, Fragment, Param, boxes
from came.momentum import FORMATS, Sign

PLAIN = "plain"  # numbers of a dtype, one behind the other


def format_of(field: Field) -> str:
    """The format of a field's pieces: `PLAIN`, or a key of `came.momentum.FORMATS`."""
    return field.format if field.format in ("int8", "sign") else PLAIN


def part_suffixes(name: str) -> tuple[str, ...]:
    """What the names of the parts of a piece in this format end with."""
    return ("",) if name == PLAIN else tuple(suffix for suffix, _ in FORMATS[name].parts)


@dataclass(frozen=True)
class Piece:
    """`view`, 1-D and writable, holds the elements from `start` on of the flattened whole."""

    start: int
    view: Tensor

    @property
    def numel(self) -> int:
        return self.view.numel()

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is stored, by suffix; written in place by whoever restores it as it was."""
        return {"": self.view}

    def read(self) -> Tensor:
        return self.view

    def write(self, values: Tensor) -> None:
        self.view.copy_(values)

    def sizes(self, start: int, numel: int) -> dict[str, int]:
        """Numbers in each part of another piece of the same tensor."""
        return {"": numel}

    def decode(self, start: int, numel: int, parts: Mapping[str, Tensor]) -> Tensor:
        """The numbers of another piece of the same tensor, 1-D."""
        return parts[""]


@dataclass(frozen=True)
class StoredPiece:
    """A piece in a storage format of its own: one box of a parameter."""

    start: int
    field: Field
    param: Param
    box: Box
    stored: tuple[Tensor, ...]

    @property
    def numel(self) -> int:
        return self.box.numel

    @property
    def parts(self) -> dict[str, Tensor]:
        return dict(zip(part_suffixes(format_of(self.field)), self.stored, strict=True))

    def read(self) -> Tensor:
        return self._load(self.stored, self.box)

    def write(self, values: Tensor) -> None:
        shape = (self.box.batches, self.box.rows, self.box.cols)
        values = values.to(self.stored[0].device).view(shape)
        self.field.storage.store(self.stored, self.param, self.box, values)

    def sizes(self, start: int, numel: int) -> dict[str, int]:
        """As of `Piece`.  Raises ValueError for a range that is no box of the parameter."""
        sizes = self.field.storage.sizes(self.param, _box(self.param, start, numel))
        return dict(zip(self.parts, sizes, strict=True))

    def decode(self, start: int, numel: int, parts: Mapping[str, Tensor]) -> Tensor:
        if "" in parts:  # saved as plain numbers
            return parts[""]
        return self._load(tuple(parts[key] for key in self.parts), _box(self.param, start, numel))

    def _load(self, stored: tuple[Tensor, ...], box: Box) -> Tensor:
        storage = self.field.storage
        if isinstance(storage, Sign):
            return storage.signs(stored, box).reshape(-1)
        return storage.load(stored, self.param, box, None).reshape(-1)


@dataclass(frozen=True)
class Entry:
    """One tensor of the run.

    `key` is "param", "buffer" or a key of the optimizer's state.  Where `sharded`, `pieces` are
    this rank's part of a tensor that `group` holds together; else every rank holds all of it.
    `mirrors` are copies that must follow, such as the low-precision weights of an fp32 master.
    `dtype` is that of the numbers, `format` how pieces store them.
    """

    name: str
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sharded: bool
    pieces: tuple[Piece | StoredPiece, ...]
    group: dist.ProcessGroup | None
    mirrors: tuple[Piece, ...] = ()
    format: str = PLAIN


def _box(param: Param, start: int, numel: int) -> Box:
    found = list(boxes(param, Fragment(0, start, numel, 0)))
    if len(found) != 1:
        raise ValueError(f"[{start}:{start + numel}] of {param.name} is no box of it")
    return found[0]
