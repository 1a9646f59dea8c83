"""Passes 1 and 2 in Triton: sums of rows and columns.

No sum depends on which program comes first.  Programs whose tiles share rows or columns leave their
parts of these sums in scratch memory, and the last of them to arrive adds all parts up in the
order of the tiles.  Atomic additions of floating-point numbers would save the scratch memory, but
no two runs would then be the same; integers, as the counters of those who arrived, always add up.
"""
# mypy: ignore-errors
# Triton has no types, and what looks like Python here is not.

import triton
import triton.language as tl

from came.kernels.tiles import SUM_TILE
from came.kernels.triton_numbers import (
    CLIP,
    COL_AT,
    FLOATS,
    HEIGHT,
    INTS,
    LONGS,
    NUM_ADDRESS,
    NUM_BOX,
    NUM_MATRIX,
    NUM_STATISTIC,
    WIDTH,
    kernel,
    read,
    read_momentum,
)

NUM_TILE = tl.constexpr(len(SUM_TILE))
LANES, PARTS = tl.constexpr(128), tl.constexpr(16)  # numbers and parts that are added up at a time


@triton.jit
def leave(target, index, value, mask, count):
    """Store one of `count` parts of sums; the only one is added to what is there."""
    if count == 1:
        value += tl.load(target.to(FLOATS) + index, mask=mask, other=0.0)
    tl.store(target.to(FLOATS) + index, value, mask=mask)


@triton.jit
def add_up(
    counter, count, parts, parts_stride, size, target, stride, limit, CHANNELS: tl.constexpr
):
    """Add `count` parts of sums, of `size` numbers each, to `target`: the last one to arrive does.

    Before, all threads have left their part and met; the counter's release and acquire show the
    last one what the others left.
    """
    if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == count - 1:
        tl.store(counter, 0)  # for the next launch
        lane, piece = tl.arange(0, LANES), tl.arange(0, PARTS)[:, None]
        for channel in range(0, CHANNELS):
            source = parts.to(FLOATS) + channel * parts_stride
            sums = target.to(FLOATS) + channel * stride
            for begin in range(0, size, LANES):
                index = begin + lane
                total = tl.zeros([LANES], tl.float32)
                for first in range(0, count, PARTS):
                    part = tl.load(
                        source + (first + piece) * size + index[None, :],
                        mask=(first + piece < count) & (index < size)[None, :],
                        other=0.0,
                        cache_modifier=".cg",  # past this multiprocessor's own cache
                    )
                    total += tl.sum(part, axis=0)
                mask = index < limit
                tl.store(sums + index, tl.load(sums + index, mask=mask) + total, mask=mask)


@kernel
def add_sums(
    scales: tl.int64, sums: tl.int64, stride: tl.int64, parts: tl.int64,
    tiles: tl.int64, parts_stride: tl.int64, counters: tl.int64,
    addresses: tl.int64, boxes: tl.int64, matrices: tl.int64, statistics: tl.int64,
    SECOND: tl.constexpr, GRAD: tl.constexpr, FORMAT: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, MATRICES: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Adds to `sums` the row and column sums of a tile, of `g^2`.

    SECOND: of `d^2`, `d u` and `u^2`, in three rows of `sums` that lie `stride` numbers apart.
    """
    CHANNELS: tl.constexpr = 3 if SECOND else 1
    tile = tiles.to(INTS) + tl.program_id(0) * NUM_TILE
    box, owner = tl.load(tile), tl.load(tile + 1)
    row, rows, col, cols = (
        tl.load(tile + 2),
        tl.load(tile + 3),
        tl.load(tile + 4),
        tl.load(tile + 5),
    )
    row_at, col_at = tl.load(tile + 6), tl.load(tile + 7)
    row_slot, row_rank, row_count = tl.load(tile + 8), tl.load(tile + 9), tl.load(tile + 10)
    col_slot, col_rank, col_count = tl.load(tile + 12), tl.load(tile + 13), tl.load(tile + 14)
    address = addresses.to(LONGS) + box * NUM_ADDRESS
    grad = tl.load(address)
    matrix = matrices.to(LONGS) + owner * NUM_MATRIX
    if ALIGNED:
        col, cols = tl.multiple_of(col, 16), tl.multiple_of(cols, 16)

    # The only tile of a row or a column adds to the sums, others leave their part.
    numbers = tl.where(row_count == 1, row_at, row_slot + row_rank * rows).to(tl.int64)
    row_sums = tl.where(row_count == 1, sums, parts) + 4 * numbers
    row_stride = 4 * tl.where(row_count == 1, stride, parts_stride)
    numbers = tl.where(col_count == 1, col_at, col_slot + col_rank * COLS).to(tl.int64)
    col_sums = tl.where(col_count == 1, sums, parts) + 4 * numbers
    col_stride = 4 * tl.where(col_count == 1, stride, parts_stride)

    r = tl.arange(0, ROWS)[None, :, None]
    c = tl.arange(0, COLS)[None, None, :]
    col_index = c
    in_cols = (col + c >= 0) & (col + c < cols)
    if MATRICES > 1:  # whole matrices, all of them at once
        a = tl.arange(0, MATRICES)[:, None, None]
        height = tl.load(matrix + HEIGHT).to(tl.int32)
        r = tl.where(r < height, a * height + r, rows)
        col_index = a * cols + c
        in_cols = in_cols & (a * height < rows)
    total = tl.zeros([MATRICES, ROWS, COLS], tl.float32)
    if SECOND:
        total_du, total_uu = total, total
        momentum, second = tl.load(address + 2), tl.load(address + 3)
        statistic = statistics.to(LONGS) + owner * NUM_STATISTIC
        last_clip = tl.load(tl.load(statistic + CLIP).to(FLOATS))
        col_scale = tl.load(scales.to(FLOATS) + col_at + col_index, mask=in_cols, other=0.0)
    for start in range(0, rows if MATRICES == 1 else 1, ROWS):
        in_rows = start + r < rows
        mask = in_rows & in_cols
        origin = (row.to(tl.int64) + start) * cols + col
        number = read(grad, origin, r * cols + c, mask, GRAD, ALIGNED)
        if SECOND:
            row_index = row_at + start + r
            row_scale = tl.load(scales.to(FLOATS) + row_index, mask=in_rows, other=0.0)
            update = number * row_scale * col_scale
            old = read_momentum(
                momentum, second, boxes.to(LONGS) + box * NUM_BOX, matrix, statistic,
                row, start, col, cols, r, c, row_index, col_at + col_index,
                mask, in_rows, in_cols, FORMAT, ALIGNED, BLOCK_ROWS, MATRICES, ROWS, COLS,
            )  # fmt: skip
            # What lies beyond the box must stay 0, also beside a scale that is not a number.
            update = tl.where(mask, update, 0.0)
            number = tl.where(mask, last_clip * update - old, 0.0)
            du, uu = number * update, update * update
            total_du += du
            total_uu += uu
            row_sum = tl.sum(du, axis=2, keep_dims=True)
            leave(row_sums + row_stride, start + r, row_sum, in_rows, row_count)
            row_sum = tl.sum(uu, axis=2, keep_dims=True)
            leave(row_sums + 2 * row_stride, start + r, row_sum, in_rows, row_count)
        square = number * number
        total += square
        row_sum = tl.sum(square, axis=2, keep_dims=True)
        leave(row_sums, start + r, row_sum, in_rows, row_count)

    if MATRICES == 1:  # a part has all columns of the tile, also those beyond the box
        in_cols = in_cols | (0 * c + col_count > 1)
    leave(col_sums, col_index, tl.sum(total, axis=1, keep_dims=True), in_cols, col_count)
    if SECOND:
        col_sum = tl.sum(total_du, axis=1, keep_dims=True)
        leave(col_sums + col_stride, col_index, col_sum, in_cols, col_count)
        col_sum = tl.sum(total_uu, axis=1, keep_dims=True)
        leave(col_sums + 2 * col_stride, col_index, col_sum, in_cols, col_count)
    if MATRICES == 1:
        tl.debug_barrier()
        if row_count > 1:
            add_up(
                counters.to(INTS) + tl.load(tile + 11), row_count,
                parts + 4 * row_slot.to(tl.int64), parts_stride, rows,
                sums + 4 * row_at.to(tl.int64), stride, rows, CHANNELS,
            )  # fmt: skip
        if col_count > 1:
            width = tl.load(matrix + WIDTH)
            left = width - (col_at - tl.load(matrix + COL_AT)) % width
            add_up(
                counters.to(INTS) + tl.load(tile + 15), col_count,
                parts + 4 * col_slot.to(tl.int64), parts_stride, COLS,
                sums + 4 * col_at.to(tl.int64), stride, left, CHANNELS,
            )  # fmt: skip
