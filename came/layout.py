"""Where every number of a parameter lies: integers only, no torch, no processes.

ZeRO flattens the parameters of a group into one row of numbers and gives each rank a slice of it.
CAME needs rows and columns of matrices.  This file translates between the two:

    a rank's flat buffer is a row of FRAGMENTS       a fragment of a matrix is cut into BOXES

    | end of W1 | W2, whole | start of W3 | pad |    . . . .[h h h h    head: rest of a cut row
                                                     b b b b b b b b    body: whole rows
    fragment = (param, start, numel, offset)         b b b b b b b b
                                                     t t t]. . . . .    tail: start of a cut row

A parameter of more than two dimensions is a batch of matrices over its last two (or, on demand,
one matrix: `Param.flatten`).  Then a fragment is cut into at most five boxes: head, rest of a
matrix, whole matrices, start of a matrix, tail.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Param:
    """A parameter as the model has it: its name and its whole shape.

    With `flatten` more than two dimensions are one matrix, the first by all others (a convolution,
    a fused weight); without, as in the paper's package, they are a batch over the last two.
    """

    name: str
    shape: tuple[int, ...]
    flatten: bool = False

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def factored(self) -> bool:
        """Matrices (the last two of two or more dimensions) are factored, vectors are not."""
        return len(self.shape) >= 2

    @property
    def matrices(self) -> tuple[int, int, int]:
        """`(batch, rows, cols)`; a vector is one row."""
        if len(self.shape) < 2:
            return 1, 1, self.numel
        if self.flatten:
            return 1, self.shape[0], math.prod(self.shape[1:])
        return math.prod(self.shape[:-2]), self.shape[-2], self.shape[-1]

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of what belongs to the rows of a factored parameter."""
        return self.shape[:1] if self.flatten else self.shape[:-1]

    @property
    def col_shape(self) -> tuple[int, ...]:
        """The shape of what belongs to the columns of a factored parameter."""
        return self.shape[1:] if self.flatten else self.shape[:-2] + self.shape[-1:]

    @property
    def num_factors(self) -> int:
        """Numbers in one pair of factors: all rows and all columns of all its matrices."""
        batch, rows, cols = self.matrices
        return batch * (rows + cols)


@dataclass(frozen=True)
class Fragment:
    """Elements `[start, start + numel)` of flattened parameter number `param`,
    lying at `[offset, offset + numel)` of the buffer that the optimizer sees."""

    param: int
    start: int
    numel: int
    offset: int


@dataclass(frozen=True)
class Box:
    """A block of `batches x rows x cols` elements, contiguous at `offset` of the buffer.

    `batch`, `row` and `col` say where in the parameter's batch of matrices it begins.
    """

    offset: int
    batch: int
    batches: int
    row: int
    rows: int
    col: int
    cols: int

    @property
    def numel(self) -> int:
        return self.batches * self.rows * self.cols


def boxes(param: Param, fragment: Fragment) -> Iterator[Box]:
    """Cut a fragment into boxes, in the order of the buffer; that of a vector is one box."""
    _, rows, cols = param.matrices
    at, left, offset = fragment.start, fragment.numel, fragment.offset
    while left > 0:
        batch, inside = divmod(at, rows * cols)
        row, col = divmod(inside, cols)
        if col > 0 or left < cols:  # head or tail: a piece of one row
            box = Box(offset, batch, 1, row, 1, col, min(cols - col, left))
        elif row > 0 or left < rows * cols:  # body: whole rows of one matrix
            box = Box(offset, batch, 1, row, min(rows - row, left // cols), 0, cols)
        else:  # whole matrices
            box = Box(offset, batch, left // (rows * cols), 0, rows, 0, cols)
        yield box
        at, left, offset = at + box.numel, left - box.numel, offset + box.numel


@dataclass(frozen=True)
class FlatSplit:
    """One buffer of several parameters, cut into equal slices: ZeRO 1 and 2, `BF16_Optimizer`.

    `offsets[i]` is where parameter `i` begins in the whole buffer; between and behind the
    parameters there may be padding.  Rank `k` holds `[k * slice_numel, (k + 1) * slice_numel)`.
    """

    numels: tuple[int, ...]
    offsets: tuple[int, ...]
    slice_numel: int
    world_size: int

    def fragments(self, rank: int) -> tuple[Fragment, ...]:
        begin, end = rank * self.slice_numel, (rank + 1) * self.slice_numel
        found = []
        first = max(0, bisect_right(self.offsets, begin) - 1)
        for param in range(first, len(self.numels)):
            offset = self.offsets[param]
            if offset >= end:
                break
            low, high = max(offset, begin), min(offset + self.numels[param], end)
            if low < high:
                found.append(Fragment(param, low - offset, high - low, low - begin))
        return tuple(found)

    def owners(self, param: int) -> range:
        """The ranks that hold a piece of parameter `param`."""
        begin = self.offsets[param]
        last = begin + self.numels[param] - 1
        return range(begin // self.slice_numel, last // self.slice_numel + 1)


@dataclass(frozen=True)
class EachSplit:
    """Every parameter cut into equal slices of its own: ZeRO 3.

    Rank `k` holds `[k * part, min((k + 1) * part, numel))` of each parameter, with
    `part = ceil(numel / world_size)`, one slice behind the other; short ones are padded to `part`.
    """

    numels: tuple[int, ...]
    world_size: int

    def fragments(self, rank: int) -> tuple[Fragment, ...]:
        found, offset = [], 0
        for param, numel in enumerate(self.numels):
            part = -(-numel // self.world_size)
            start = rank * part
            if start < numel:
                found.append(Fragment(param, start, min(part, numel - start), offset))
            offset += part
        return tuple(found)

    def owners(self, param: int) -> range:
        """The ranks that hold a piece of parameter `param`."""
        part = -(-self.numels[param] // self.world_size)
        return range(-(-self.numels[param] // part))


@dataclass(frozen=True)
class RowSplit:
    """One parameter cut by its first dimension as `torch.chunk` cuts: FSDP2, `Shard(0)`.

    Part `k` holds entries `[k * part, min((k + 1) * part, num_rows))` of the first dimension, each
    of `row_numel` numbers, with `part = ceil(num_rows / parts)`: the last parts may be smaller or
    empty.  `holders[k]` are the ranks that hold part `k`, several where parts are replicated.
    """

    num_rows: int
    row_numel: int
    holders: tuple[tuple[int, ...], ...]

    @property
    def world_size(self) -> int:
        return len(self.holders)

    def rows(self, rank: int) -> range:
        """The entries of the first dimension that part `rank` holds."""
        part = -(-self.num_rows // self.world_size)
        return range(min(rank * part, self.num_rows), min((rank + 1) * part, self.num_rows))

    def fragments(self, rank: int) -> tuple[Fragment, ...]:
        rows = self.rows(rank)
        start, numel = rows.start * self.row_numel, len(rows) * self.row_numel
        return (Fragment(0, start, numel, 0),) if numel else ()

    def owners(self, param: int) -> tuple[int, ...]:
        """The ranks that hold a piece of parameter `param`."""
        parts = range(self.world_size)
        return tuple(sorted(rank for k in parts if self.rows(k) for rank in self.holders[k]))


@dataclass(frozen=True)
class ShardLayout:
    """What one tensor of the optimizer holds on this rank.

    `params` are all parameters of the sharded buffer, on every rank the same, also those of which
    this rank holds nothing: their factors are replicated and updated everywhere.
    """

    params: tuple[Param, ...]
    split: FlatSplit | EachSplit | RowSplit
    rank: int

    @property
    def fragments(self) -> tuple[Fragment, ...]:
        return self.split.fragments(self.rank)

    @property
    def whole(self) -> bool:
        """One parameter, all of it, on this rank."""
        return len(self.params) == 1 and self.split.world_size == 1

    @property
    def packed(self) -> bool:
        """A flat buffer of parameters and pieces of them, not a parameter or rows of one."""
        return not (self.whole or isinstance(self.split, RowSplit))


def whole(param: Param) -> ShardLayout:
    """The layout of a parameter that is not sharded."""
    return ShardLayout((param,), FlatSplit((param.numel,), (0,), max(1, param.numel), 1), 0)


def packed_offsets(numels: Sequence[int]) -> tuple[int, ...]:
    """Where each of several parameters begins when they lie one behind the other."""
    offsets, at = [], 0
    for numel in numels:
        offsets.append(at)
        at += numel
    return tuple(offsets)
