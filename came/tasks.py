"""What one step has to do: each parameter with its state, and the boxes of it on this rank."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from came.fields import Field, replicated, stored_boxes
from came.layout import Box, Param, ShardLayout
from came.momentum import rows_per_block

PIECE = 1 << 16  # numbers that plain torch works on at a time, so that they stay in cache
GPU_PIECE = 1 << 22


@dataclass
class Block:
    """One box of a parameter on this rank.

    `param` is a view of shape `(b, n, m)`; `stored` holds flat views of what is kept for the box,
    by field.  Its gradient lies in `grads[source]` of the step, at the place of the box.  `start`
    is the index of its first number in the flattened parameter.
    """

    source: int
    box: Box
    start: int
    param: Tensor
    stored: dict[str, tuple[Tensor, ...]]

    @property
    def rows(self) -> tuple[slice, slice]:
        """Where its rows lie in what belongs to the rows of the parameter, `(batch, rows)`."""
        return self._batch, slice(self.box.row, self.box.row + self.box.rows)

    @property
    def cols(self) -> tuple[slice, slice]:
        """Where its columns lie in what belongs to the columns, `(batch, cols)`."""
        return self._batch, slice(self.box.col, self.box.col + self.box.cols)

    @property
    def _batch(self) -> slice:
        return slice(self.box.batch, self.box.batch + self.box.batches)

    def grad(self, grads: list[Tensor]) -> Tensor:
        """Its gradient, `(b, n, m)`; `grads` are flat."""
        span = slice(self.box.offset, self.box.offset + self.box.numel)
        return grads[self.source][span].view(self.param.shape)


@dataclass
class Task:
    """One parameter in one step.

    `options` is its entry of `param_groups`; `state` holds what every rank keeps of it, in the
    shapes of its fields; `index` is its place among the parameters the optimizer was built with.
    """

    param: Param
    options: dict[str, Any]
    step: Tensor
    fields: dict[str, Field]
    state: dict[str, Tensor]
    blocks: list[Block] = field(default_factory=list)
    index: int = 0
    whole: bool = True  # all of it lies on this rank
    _pieces: list[Block] | None = None

    def forget_numbers(self) -> None:
        """Let go of the parameter and its momentum; statistics and options stay."""
        self.blocks, self._pieces = [], None

    def by_matrix(self, key: str) -> Tensor:
        """A row or column statistic as `(batch, rows)` or `(batch, cols)`."""
        statistic = self.state[key]
        return statistic.view(self.param.matrices[0], -1)

    def pieces(self) -> list[Block]:
        """Its blocks, cut into runs of rows that fit a cache."""
        if self._pieces is None:
            self._pieces = [piece for block in self.blocks for piece in _cut(self, block)]
        return self._pieces


def tasks(
    source: int,
    tensor: Tensor,
    layout: ShardLayout,
    fields: list[tuple[Field, ...]],
    state: dict[str, Tensor],
    options: dict[str, Any],
) -> list[Task]:
    """The tasks of one contiguous tensor of the optimizer, number `source` of the step."""
    flat = tensor.view(-1)
    found = [
        Task(param, options, state["step"], {f.key: f for f in kept}, views)
        for param, kept, views in zip(
            layout.params, fields, replicated(layout, fields, state), strict=True
        )
    ]
    starts = {}
    for piece in layout.fragments:
        starts[piece.param] = piece.start - piece.offset
    for kept in stored_boxes(layout, fields, state):
        box = kept.box
        view = flat[box.offset : box.offset + box.numel].view(box.batches, box.rows, box.cols)
        start = starts[kept.param] + box.offset
        found[kept.param].blocks.append(Block(source, box, start, view, kept.stored))
    for task in found:
        task.whole = sum(block.box.numel for block in task.blocks) == task.param.numel
    return found


def _cut(task: Task, block: Block) -> Iterator[Block]:
    """A block as runs of whole matrices or whole rows, of at most about `PIECE` numbers."""
    box, per_block = block.box, rows_per_block(task.param) if _has_int8(task) else 1
    limit = PIECE if block.param.device.type == "cpu" else GPU_PIECE
    if box.numel <= limit or (box.batches > 1 and per_block > 1):
        yield block
    elif box.batches > 1:
        step = max(1, limit // (box.rows * box.cols))
        for at in range(0, box.batches, step):
            part = _part(task, block, replace(box, batches=min(step, box.batches - at)), at, 0)
            yield from _cut(task, part)
    else:
        # Rows that share int8 blocks stay together.
        first = box.batch * task.param.matrices[1] + box.row
        step = max(1, limit // box.cols // per_block) * per_block
        borders = [0, *range(step - first % per_block, box.rows, step), box.rows]
        for at, end in pairwise(borders):
            yield _part(task, block, replace(box, rows=end - at), 0, at)


def _part(task: Task, block: Block, box: Box, batch: int, row: int) -> Block:
    """The part of a block that has the extent of `box`, `batch` matrices or `row` rows further."""
    before = replace(block.box, batches=batch) if batch else replace(block.box, rows=row)
    skipped = (batch * block.box.rows + row) * box.cols
    stored = {}
    for key, views in block.stored.items():
        storage = task.fields[key].storage
        begins = storage.sizes(task.param, before) if skipped else [0] * len(views)
        sizes = storage.sizes(task.param, box)
        stored[key] = tuple(
            view[begin : begin + size]
            for view, begin, size in zip(views, begins, sizes, strict=True)
        )
    return Block(
        source=block.source,
        box=replace(box, offset=box.offset + skipped, batch=box.batch + batch, row=box.row + row),
        start=block.start + skipped,
        param=block.param.view(-1)[skipped : skipped + box.numel].view(
            box.batches, box.rows, box.cols
        ),
        stored=stored,
    )


def _has_int8(task: Task) -> bool:
    return any(field.format == "int8" for field in task.fields.values())
