"""Pass 3 in Triton: momentum and parameters change."""
# mypy: ignore-errors
# Triton has no types, and what looks like Python here is not.

import triton
import triton.language as tl

from came.kernels.tiles import UPDATE_TILE
from came.kernels.triton_numbers import (
    BETA1,
    BLOCK,
    BYTES,
    CLIP,
    CODES,
    COL_AT,
    FIRST_COL,
    FIRST_ROW,
    FLOATS,
    HEIGHT,
    INT8,
    INTS,
    LONGS,
    LR,
    LR_DECAY,
    NEAREST,
    NUM_ADDRESS,
    NUM_BOX,
    NUM_MATRIX,
    NUM_OPTION,
    NUM_STATISTIC,
    SIGN,
    START,
    kernel,
    noise,
    read,
    read_momentum,
    write,
)

NUM_TILE = tl.constexpr(len(UPDATE_TILE))
INTEGERS = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is small and added to it becomes an integer


@triton.jit
def descend(
    param, origin, index, step, mask, option, key, first_number,
    KIND: tl.constexpr, ROUNDS: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """`p = p - lr wd p - lr step`; `first_number` of the parameter lies at `param`."""
    value = read(param, origin, index, mask, KIND, ALIGNED)
    value = value - tl.load(option + LR_DECAY) * value
    value = value - tl.load(option + LR) * step
    if ROUNDS:
        random = noise(first_number + origin + index, tl.load(key))
        write(param, origin, index, value, mask, random, KIND, ALIGNED)
    else:
        write(param, origin, index, value, mask, tl.full([1], NEAREST, tl.int32), KIND, ALIGNED)


@triton.jit
def write_int8(
    momentum, second, box, top, col, cols, r, c, row_end, value, mask,
    ALIGNED: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Store whole blocks of int8 momentum: `came.momentum.Int8.store`.

    `value` is `(BLOCKS, BLOCK_ROWS, COLS)`, and begins at row `top` of the box.
    """
    # The bits of magnitudes are in their order, and what is not a number is the largest.
    bits = tl.where(mask, value, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    bits = tl.max(tl.reshape(bits, [BLOCKS, BLOCK_ROWS * COLS]), axis=1)
    scale = bits.to(tl.float32, bitcast=True)
    inverse = tl.where(scale > 0, tl.div_rn(127.0, scale), 0.0)
    code = value * tl.reshape(inverse, [BLOCKS, 1, 1])
    code = tl.where(code == code, code, 0.0)
    code = tl.minimum(tl.maximum(code, -127.0), 127.0) + INTEGERS - INTEGERS
    first = momentum.to(CODES) + (top * cols + col)
    if ALIGNED:
        first = tl.multiple_of(first, 16)
    tl.debug_barrier()  # all threads have read the old scales
    tl.store(first + (r * cols + c), code.to(tl.int8), mask=mask)
    first_row, first_col = tl.load(box + FIRST_ROW), tl.load(box + FIRST_COL)
    width = (first_col + cols - 1) // BLOCK - first_col // BLOCK + 1  # blocks across
    down = tl.arange(0, BLOCKS)
    block = (first_row + top) // BLOCK_ROWS - first_row // BLOCK_ROWS + down
    block = block * width + ((first_col + col) // BLOCK - first_col // BLOCK)
    inside = (top + (down + 1) * BLOCK_ROWS > 0) & (top + down * BLOCK_ROWS < row_end)
    tl.store(second.to(FLOATS) + block, scale, mask=inside)


@triton.jit
def write_signs(
    momentum, top, col, cols, r, in_rows, value, mask,
    BLOCKS: tl.constexpr, BLOCK_ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Store the signs of whole bytes: `came.momentum.Sign.store`."""
    BITS: tl.constexpr = min(8, COLS)
    bits = tl.where(mask & (value < 0), 1, 0)
    bits = tl.reshape(bits, [BLOCKS, BLOCK_ROWS, COLS // BITS, BITS])
    code = tl.sum(bits << tl.arange(0, BITS)[None, None, None, :], axis=3).to(tl.uint8)
    width = (cols + 7) // 8  # bytes of one row
    byte = col // 8 + tl.arange(0, COLS // BITS)[None, None, :]
    tl.debug_barrier()  # all threads have read the old signs
    tl.store(
        momentum.to(BYTES) + top * width + (r * width + byte), code, mask=in_rows & (byte < width)
    )


@kernel
def update(
    scales: tl.int64, out: tl.int64,
    tiles: tl.int64, addresses: tl.int64, boxes: tl.int64, matrices: tl.int64,
    statistics: tl.int64, settings: tl.int64, keys: tl.int64,
    GRAD: tl.constexpr, PARAM: tl.constexpr, FORMAT: tl.constexpr, ALIGNED: tl.constexpr,
    ROUNDS: tl.constexpr, MANY: tl.constexpr, BLOCK_ROWS: tl.constexpr, ROWS: tl.constexpr,
    COLS: tl.constexpr,
):  # fmt: skip
    """`m = beta1 m + (1 - beta1) s u`, `p = p - lr wd p - lr m / sqrt(S)` for a tile."""
    BLOCKS: tl.constexpr = ROWS // BLOCK_ROWS
    tile = tiles.to(INTS) + tl.program_id(0) * NUM_TILE
    box_index, owner = tl.load(tile), tl.load(tile + 1)
    row, row_end, col, cols = (
        tl.load(tile + 2),
        tl.load(tile + 3),
        tl.load(tile + 4),
        tl.load(tile + 5),
    )
    row_at, col_at = tl.load(tile + 6), tl.load(tile + 7)
    address = addresses.to(LONGS) + box_index * NUM_ADDRESS
    grad, param = tl.load(address), tl.load(address + 1)
    momentum, second = tl.load(address + 2), tl.load(address + 3)
    box, matrix = boxes.to(LONGS) + box_index * NUM_BOX, matrices.to(LONGS) + owner * NUM_MATRIX
    option = settings.to(FLOATS) + owner * NUM_OPTION
    statistic = statistics.to(LONGS) + owner * NUM_STATISTIC
    beta1, one_minus_beta1 = tl.load(option + BETA1), tl.load(option + BETA1 + 1)
    clip = tl.load(tl.load(statistic + CLIP).to(FLOATS))
    if ALIGNED:
        col, cols = tl.multiple_of(col, 16), tl.multiple_of(cols, 16)

    r = tl.arange(0, BLOCKS)[:, None, None] * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[None, :, None]
    c = tl.arange(0, COLS)[None, None, :]
    in_cols = (col + c >= 0) & (col + c < cols)
    if MANY:
        first_row, height = tl.load(box + FIRST_ROW), tl.load(matrix + HEIGHT)
        first_col_at = tl.load(matrix + COL_AT) + c
    else:
        col_index = col_at + c
        col_scale = tl.load(scales.to(FLOATS) + col_index, mask=in_cols, other=0.0)
        col_res_scale = tl.load(out.to(FLOATS) + col_index, mask=in_cols, other=0.0)
    for start in range(0, row_end - row, ROWS):
        in_rows = (row + start + r >= 0) & (row + start + r < row_end)
        mask = in_rows & in_cols
        top = row.to(tl.int64) + start
        origin, index, row_index = top * cols + col, r * cols + c, row_at + start + r
        row_scale = tl.load(scales.to(FLOATS) + row_index, mask=in_rows, other=0.0)
        row_res_scale = tl.load(out.to(FLOATS) + row_index, mask=in_rows, other=0.0)
        if MANY:
            # Each row has the columns of its own matrix.
            own_col = first_col_at + (first_row + top + r) // height * cols
            own_scale = tl.load(scales.to(FLOATS) + own_col, mask=mask, other=0.0)
            own_res_scale = tl.load(out.to(FLOATS) + own_col, mask=mask, other=0.0)
        else:
            own_col, own_scale, own_res_scale = col_index, col_scale, col_res_scale
        change = read(grad, origin, index, mask, GRAD, ALIGNED) * row_scale * own_scale * clip
        old = read_momentum(
            momentum, second, box, matrix, statistic, row, start, col, cols, r, c,
            row_index, own_col, mask, in_rows, mask if MANY else in_cols,
            FORMAT, ALIGNED, BLOCK_ROWS, BLOCKS, BLOCK_ROWS, COLS,
        )  # fmt: skip
        new = old * beta1 + one_minus_beta1 * change
        if FORMAT == INT8:
            write_int8(
                momentum, second, box, top, col, cols, r, c, row_end, new, mask,
                ALIGNED, BLOCKS, BLOCK_ROWS, COLS,
            )  # fmt: skip
        elif FORMAT == SIGN:
            write_signs(momentum, top, col, cols, r, in_rows, new, mask, BLOCKS, BLOCK_ROWS, COLS)
        else:
            nearest = tl.full([1], NEAREST, tl.int32)
            write(momentum, origin, index, new, mask, nearest, FORMAT, ALIGNED)
        step = new * row_res_scale * own_res_scale
        descend(
            param, origin, index, step, mask, option, keys.to(LONGS) + owner,
            tl.load(box + START), PARAM, ROUNDS, ALIGNED,
        )  # fmt: skip
