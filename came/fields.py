"""What an optimizer keeps for each parameter, described as data, and where it lies.

A rule names its fields; this file allocates them for a whole parameter or for a slice of many, and
finds them again by parameter.  Fields like the parameter are sharded as the parameter is; all
others (row and column statistics, counters) are small and every rank holds all of them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from came.layout import Box, Param, ShardLayout, boxes
from came.momentum import FORMATS, Format


@dataclass(frozen=True)
class Field:
    """One kind of state of a parameter.

    `shape` None: one number for each number of the parameter, sharded, stored in `format`.
    Otherwise a tensor of this shape on every rank, in the dtype that is computed in.
    """

    key: str
    shape: tuple[int, ...] | None = None
    format: str = "float32"

    @property
    def storage(self) -> Format:
        return FORMATS[self.format]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed, and its statistics kept, in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sharded_bytes(
    param: Param, kept: Iterable[Field], pieces: Iterable[Box], dtype: torch.dtype
) -> int:
    """Bytes stored for `pieces` of a parameter of `dtype`, of the fields that are like it."""
    width = compute_dtype(dtype).itemsize
    alike = [field for field in kept if field.shape is None]
    return sum(
        size * (width if kind is None else kind.itemsize)
        for box in pieces
        for field in alike
        for (_, kind), size in zip(
            field.storage.parts, field.storage.sizes(param, box), strict=True
        )
    )


def replicated_bytes(kept: Iterable[Field], dtype: torch.dtype) -> int:
    """Bytes that every rank holds of a parameter of `dtype`: the fields that are not like it."""
    shapes = (field.shape for field in kept if field.shape is not None)
    return compute_dtype(dtype).itemsize * sum(map(math.prod, shapes))


@dataclass(frozen=True)
class BoxState:
    """A box of one parameter on this rank, and what is stored for it, by field.

    `start` is the flat index of its first number in the parameter.
    """

    param: int
    start: int
    box: Box
    stored: dict[str, tuple[Tensor, ...]]


def layout_boxes(layout: ShardLayout) -> Iterator[tuple[int, int, Box]]:
    """`(parameter, flat index of its first number, box)` for every box on this rank, in order."""
    for piece in layout.fragments:
        for box in boxes(layout.params[piece.param], piece):
            yield piece.param, piece.start + box.offset - piece.offset, box


def allocate(
    tensor: Tensor, layout: ShardLayout, fields: list[tuple[Field, ...]]
) -> dict[str, Tensor]:
    """Zero state for one tensor of the optimizer; `fields` has one entry a parameter.

    A whole parameter, or rows of one, has tensors of the fields' own shapes.  A slice of many has
    one flat tensor for each field, in which what belongs to its parameters lies one behind the
    other.
    """
    sizes: dict[str, tuple[int, torch.dtype]] = {}

    def add(key: str, size: int, dtype: torch.dtype | None) -> None:
        sizes[key] = (
            sizes.get(key, (0, tensor.dtype))[0] + size,
            dtype or compute_dtype(tensor.dtype),
        )

    for kept in fields:
        for field in kept:
            if field.shape is not None:
                add(field.key, torch.Size(field.shape).numel(), None)
                continue
            for suffix, dtype in field.storage.parts:  # the same keys on a rank that holds nothing
                add(field.key + suffix, 0, dtype)
    for index, _, box in layout_boxes(layout):
        for field in fields[index]:
            if field.shape is None:
                param = layout.params[index]
                for (suffix, dtype), size in zip(
                    field.storage.parts, field.storage.sizes(param, box), strict=True
                ):
                    add(field.key + suffix, size, dtype)
    state = {"step": torch.zeros((), dtype=torch.float32, device="cpu")}
    for key, (size, dtype) in sizes.items():
        shape = None if layout.packed else _whole_shape(key, fields[0], tensor)
        state[key] = tensor.new_zeros(size if shape is None else shape, dtype=dtype)
    return state


def _whole_shape(key: str, fields: tuple[Field, ...], tensor: Tensor) -> tuple[int, ...] | None:
    """The shape of one tensor of the state of a whole parameter; None for what is packed."""
    for field in fields:
        if field.shape is not None:
            if key == field.key:
                return field.shape
        elif key == field.key + field.storage.parts[0][0] and field.format != "sign":
            return tuple(tensor.shape)
    return None


def replicated(
    layout: ShardLayout, fields: list[tuple[Field, ...]], state: dict[str, Tensor]
) -> list[dict[str, Tensor]]:
    """For each parameter, views of the state that every rank holds, in the fields' shapes."""
    found: list[dict[str, Tensor]] = []
    at: dict[str, int] = {}
    for kept in fields:
        views = {}
        for field in kept:
            if field.shape is not None:
                begin, size = at.get(field.key, 0), torch.Size(field.shape).numel()
                flat = state[field.key].view(-1)[begin : begin + size]
                views[field.key] = flat.view(field.shape)
                at[field.key] = begin + size
        found.append(views)
    return found


def stored_boxes(
    layout: ShardLayout, fields: list[tuple[Field, ...]], state: dict[str, Tensor]
) -> list[BoxState]:
    """Every box on this rank with flat views of what is stored for it."""
    found = []
    at: dict[str, int] = {}
    for index, start, box in layout_boxes(layout):
        stored = {}
        for field in fields[index]:
            if field.shape is not None:
                continue
            views = []
            for (suffix, _), size in zip(
                field.storage.parts, field.storage.sizes(layout.params[index], box), strict=True
            ):
                key = field.key + suffix
                begin = at.get(key, 0)
                views.append(state[key].view(-1)[begin : begin + size])
                at[key] = begin + size
            stored[field.key] = tuple(views)
        found.append(BoxState(index, start, box, stored))
    return found
