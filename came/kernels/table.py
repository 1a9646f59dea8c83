"""The table of rectangles: what kernels read in place of hundreds of tensors.

All parameters of a step stand in one table of integers, addresses and options; its rows are boxes,
matrices and vectors.  A `Part` is a run of its matrices that is updated together.  Row and column
statistics of all matrices lie behind each other in FACTOR SPACE, the index of buffers of sums:

    | rows of matrix 0 | columns of matrix 0 | rows of matrix 1 | columns of matrix 1 | ...
      row_at[0]          col_at[0]             row_at[1]

The order in factor space is that of the layout, on every rank the same; the order in the table is
that in which this rank works.  Between two steps only gradients move and options change:
`Table.refresh` writes their columns anew, and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from came.kernels.correction import UNCORRECTED, corrections
from came.kernels.rounding import rounding_key
from came.tasks import Block, Task

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
FORMATS = {"float32": 0, "bfloat16": 1, "int8": 2, "sign": 3}
NO_ROUNDING = -1  # the key of a parameter that is rounded to nearest

# The columns of the tables, and what they hold.
BOX = (
    "owner",  # the row of MATRIX or VECTOR it belongs to
    "rows",  # counted through all matrices of its batch; 1 for a piece of a vector
    "cols",
    "first_row",  # of the parameter, counted through all matrices of its batch
    "first_col",  # of the parameter
    "start",  # index of its first number in the flattened parameter
    "grad_dtype",  # DTYPES
    "param_dtype",  # DTYPES
    "format",  # FORMATS of its momentum
    "source",  # the gradient it lies in
    "grad_offset",  # bytes from the beginning of that gradient
)
ADDRESS = ("grad", "param", "momentum", "second")  # second: int8 scales, or a vector's moments
MATRIX = ("batch", "rows", "cols", "row_at", "col_at")  # rows and cols of one of the batch
STATISTIC = ("sq_row", "sq_col", "res_row", "res_col", "clip", "momentum_row", "momentum_col")
OPTION = (
    "lr",
    "lr_decay",  # lr * weight_decay
    "beta1",
    "one_minus_beta1",
    "beta2",
    "one_minus_beta2",
    "beta3",
    "one_minus_beta3",
    "eps1",
    "eps2",
    "clip_threshold",
    *("sq_correction", "res_correction"),  # factors of `1 / sqrt(v)`: `came.kernels.correction`
)
CORRECTIONS = slice(OPTION.index("sq_correction"), None)


class Rows:
    """Parameters of one kind, matrices or vectors, and their boxes: integers and addresses.

    Tensors on the CPU: `box` (boxes, BOX) and `address` (boxes, ADDRESS) int64, `option`
    (parameters, OPTION) float32, `key` (parameters,) int64, the seed of stochastic rounding.
    `box_at[i]` is the first box of parameter `i`; there is one entry more than parameters.
    """

    def __init__(self, todo: Sequence[Task], grads: Sequence[Tensor]) -> None:
        self.tasks = list(todo)
        self.box_at = [0]
        boxes, addresses = [], []
        for row, task in enumerate(self.tasks):
            for block in task.blocks:
                boxes.append(_box_row(row, task, block, grads[block.source]))
                addresses.append(_addresses(block))
            self.box_at.append(len(boxes))
        self.box = _table(boxes, len(BOX))
        self.address = _table(addresses, len(ADDRESS))
        self._groups = {id(task.options): task.options for task in self.tasks}
        order = {group: row for row, group in enumerate(self._groups)}
        self._group_of = torch.tensor([order[id(t.options)] for t in self.tasks], dtype=torch.long)
        self._last_options: list[tuple[float, ...]] = []
        self.option = torch.zeros(len(self.tasks), len(OPTION), dtype=torch.float32)
        self.key = torch.full((len(self.tasks),), NO_ROUNDING, dtype=torch.int64)
        self._rounds = any(t.options.get("stochastic_rounding") for t in self.tasks)

    def box_column(self, name: str) -> Tensor:
        """One column of `box`, by its name in `BOX`."""
        return self.box[:, BOX.index(name)]

    def refresh(self, bases: Tensor) -> None:
        """Take over this step's gradients and options; `bases` are the gradients' addresses."""
        if not self.tasks:
            return
        source, offset = self.box_column("source"), self.box_column("grad_offset")
        torch.add(bases[source], offset, out=self.address[:, 0])
        options = [_option_row(group) for group in self._groups.values()]
        corrects = any(group.get("bias_correction") for group in self._groups.values())
        if corrects or options != self._last_options:
            self._last_options = [] if corrects else options
            torch.index_select(
                torch.tensor(options, dtype=torch.float32, device="cpu"),
                0,
                self._group_of,
                out=self.option,
            )
        if corrects:  # by the steps of each parameter, not of its group
            found_corrections = [corrections(task) for task in self.tasks]
            self.option[:, CORRECTIONS] = torch.tensor(found_corrections, device="cpu")
        if self._rounds:
            keys = [rounding_key(task) for task in self.tasks]
            found = [NO_ROUNDING if key is None else key for key in keys]
            self.key.copy_(torch.tensor(found, device="cpu"))


class Table:
    """All parameters that one step updates together on one device.

    `matrix` (matrices, MATRIX) and `statistic` (matrices, STATISTIC: addresses) are int64 tensors
    on the CPU.  `rms` takes the root mean square of each update before it is clipped, first of all
    matrices, then of all vectors; it lies on the device.
    """

    def __init__(
        self,
        matrices: Sequence[Task],
        factor_at: Sequence[int],
        vectors: Sequence[Task],
        grads: list[Tensor],
        like: Tensor,
    ) -> None:
        self.grads: list[Tensor] = []
        self.steps = 0  # that were taken over
        self.matrices = Rows(matrices, grads)
        self.vectors = Rows(vectors, grads)
        self.row_at = list(factor_at)
        rows = []
        for task, at in zip(matrices, factor_at, strict=True):
            batch, num_rows, num_cols = task.param.matrices
            rows.append([batch, num_rows, num_cols, at, at + batch * num_rows])
        self.matrix = _table(rows, len(MATRIX))
        self.statistic = _table([_statistics(task) for task in matrices], len(STATISTIC))
        self.rms = like.new_zeros(len(matrices) + len(vectors))

    def refresh(self, grads: list[Tensor]) -> None:
        """Take over the gradients of a step, flat, and the options of the param groups."""
        self.grads = grads
        self.steps += 1
        pointers = [grad.data_ptr() for grad in grads]
        bases = torch.tensor(pointers, dtype=torch.int64, device="cpu")
        self.matrices.refresh(bases)
        self.vectors.refresh(bases)

    def part(self, first: int, last: int, at: int, size: int) -> "Part":
        """Matrices `[first, last)`; their buffers hold factor space `[at, at + size)`."""
        boxes = range(self.matrices.box_at[first], self.matrices.box_at[last])
        return Part(self, range(first, last), boxes, at, size)


@dataclass(frozen=True)
class Part:
    """A run of matrices that one call updates, and the stretch of factor space it works in.

    Number `i` of factor space lies at `[i - at]` of the buffers that a kernel is given.
    """

    table: Table
    matrices: range
    boxes: range
    at: int
    size: int

    def views(self, index: int, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Of a buffer `(..., size)`, what belongs to the rows and to the columns of a matrix:
        `(..., batch, rows)` and `(..., batch, cols)`."""
        batch, rows, cols = self.table.matrices.tasks[index].param.matrices
        begin = self.table.row_at[index] - self.at
        middle, end = begin + batch * rows, begin + batch * (rows + cols)
        channels = buffer.shape[:-1]
        return (
            buffer[..., begin:middle].view(*channels, batch, rows),
            buffer[..., middle:end].view(*channels, batch, cols),
        )


def on_device(value: object) -> bool:
    """Whether an option is a tensor that the CPU cannot read without waiting."""
    return isinstance(value, Tensor) and value.device.type != "cpu"


def _table(rows: list[list[int]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).view(-1, width)


def _box_row(row: int, task: Task, block: Block, grad: Tensor) -> list[int]:
    box = block.box
    return [
        row,
        box.batches * box.rows,
        box.cols,
        box.batch * task.param.matrices[1] + box.row,
        box.col,
        block.start,
        DTYPES[grad.dtype],
        DTYPES[block.param.dtype],
        FORMATS[task.fields["exp_avg"].format],
        block.source,
        box.offset * grad.itemsize,
    ]


def _addresses(block: Block) -> list[int]:
    """All but the gradient's, which every step brings along."""
    stored = [part.data_ptr() for parts in block.stored.values() for part in parts]
    return [0, block.param.data_ptr(), *stored, *[0] * (2 - len(stored))]


def _statistics(task: Task) -> list[int]:
    keys = (
        *("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row", "exp_avg_res_col"),
        *("clip_factor", "exp_avg_row", "exp_avg_col"),
    )
    return [task.state[key].data_ptr() if key in task.state else 0 for key in keys]


def _option_row(group: dict[str, Any]) -> tuple[float, ...]:
    # A learning rate on a GPU stays there, where a kernel adds it: to read it would wait for it.
    lr = 0.0 if on_device(group["lr"]) else float(group["lr"])
    beta1, beta2, beta3 = group["betas"]
    return (
        *(lr, lr * group["weight_decay"], beta1, 1 - beta1, beta2, 1 - beta2, beta3, 1 - beta3),
        *(*group["eps"], group["clip_threshold"], *UNCORRECTED),
    )
