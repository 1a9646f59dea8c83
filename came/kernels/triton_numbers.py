"""How the Triton kernels read and write: tables, gradients, parameters, and stored momentum.

Everything comes as addresses.  The columns of the tables are those of `came/kernels/table.py` and
`came/kernels/tiles.py`.
"""
# mypy: ignore-errors
# Triton has no types, and what looks like Python here is not.

import triton
import triton.language as tl

from came.kernels.rounding import GOLDEN as GOLDEN_NUMBER
from came.kernels.table import ADDRESS, BOX, MATRIX, OPTION, STATISTIC

INTS, LONGS = tl.pointer_type(tl.int32), tl.pointer_type(tl.int64)
FLOATS, BYTES = tl.pointer_type(tl.float32), tl.pointer_type(tl.uint8)
HALVES, BITS16 = tl.pointer_type(tl.float16), tl.pointer_type(tl.uint16)
CODES = tl.pointer_type(tl.int8)

FLOAT32, BFLOAT16, FLOAT16 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # table.DTYPES
INT8, SIGN = tl.constexpr(2), tl.constexpr(3)  # table.FORMATS, beside those two
BLOCK = tl.constexpr(256)  # numbers of a row that share an int8 scale, at most
GOLDEN = tl.constexpr(GOLDEN_NUMBER)
NEAREST = tl.constexpr(1 << 16)  # in place of 16 random bits: round to nearest

NUM_ADDRESS, NUM_BOX = tl.constexpr(len(ADDRESS)), tl.constexpr(len(BOX))
NUM_MATRIX, NUM_STATISTIC = tl.constexpr(len(MATRIX)), tl.constexpr(len(STATISTIC))
NUM_OPTION = tl.constexpr(len(OPTION))
FIRST_ROW, FIRST_COL = tl.constexpr(BOX.index("first_row")), tl.constexpr(BOX.index("first_col"))
START = tl.constexpr(BOX.index("start"))
HEIGHT, WIDTH = tl.constexpr(MATRIX.index("rows")), tl.constexpr(MATRIX.index("cols"))
ROW_AT, COL_AT = tl.constexpr(MATRIX.index("row_at")), tl.constexpr(MATRIX.index("col_at"))
CLIP = tl.constexpr(STATISTIC.index("clip"))
# Of two neighbours: rows and columns, a beta and what is left to one.
SQ_ROW, RES_ROW = tl.constexpr(STATISTIC.index("sq_row")), tl.constexpr(STATISTIC.index("res_row"))
ROW_SIZE = tl.constexpr(STATISTIC.index("momentum_row"))
BETA1, BETA2 = tl.constexpr(OPTION.index("beta1")), tl.constexpr(OPTION.index("beta2"))
BETA3 = tl.constexpr(OPTION.index("beta3"))
LR, LR_DECAY = tl.constexpr(OPTION.index("lr")), tl.constexpr(OPTION.index("lr_decay"))
EPS1, EPS2 = tl.constexpr(OPTION.index("eps1")), tl.constexpr(OPTION.index("eps2"))
THRESHOLD = tl.constexpr(OPTION.index("clip_threshold"))
SQ_CORRECTION = tl.constexpr(OPTION.index("sq_correction"))
RES_CORRECTION = tl.constexpr(OPTION.index("res_correction"))


def kernel(function):
    """Compile `function` once for each choice of its constants, whatever its numbers are."""
    numbers = [n for n, kind in function.__annotations__.items() if kind is not tl.constexpr]
    return triton.jit(function, do_not_specialize=numbers)


@triton.jit
def read(base, origin, index, mask, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Numbers `origin + index` behind the address `base`, in float32, 0 where they are masked."""
    if KIND == BFLOAT16:  # by its bits, which are the upper half of a float32's
        first = base.to(BITS16) + origin
    elif KIND == FLOAT16:
        first = base.to(HALVES) + origin
    else:
        first = base.to(FLOATS) + origin
    if ALIGNED:
        first = tl.multiple_of(first, 16)
    value = tl.load(first + index, mask=mask, other=0)
    if KIND == BFLOAT16:
        value = (value.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def write(base, origin, index, value, mask, noise, KIND: tl.constexpr, ALIGNED: tl.constexpr):
    """Store float32 numbers at `origin + index` behind the address `base`.

    As bfloat16 they are cut after `noise` was added below the last bit that is kept; or rounded to
    nearest, where it is `NEAREST`.
    """
    if KIND == BFLOAT16:
        bits = value.to(tl.uint32, bitcast=True)
        nearest = 0x7FFF + ((bits >> 16) & 1)
        added = tl.where(noise == NEAREST, nearest, noise.to(tl.uint32))
        # An infinity stays one, and what is not a number stays none when it is cut.
        special = tl.where(value == value, 0, (bits ^ 0x400000) & 0x400000)
        added = tl.where((bits & 0x7F800000) == 0x7F800000, special, added)
        result = (tl.add(bits, added, sanitize_overflow=False) >> 16).to(tl.uint16)
        first = base.to(BITS16) + origin
    elif KIND == FLOAT16:
        result = value.to(tl.float16)
        first = base.to(HALVES) + origin
    else:
        result = value
        first = base.to(FLOATS) + origin
    if ALIGNED:
        first = tl.multiple_of(first, 16)
    tl.store(first + index, result, mask=mask)


@triton.jit
def noise(index, key):
    """16 random bits for number `index` of a parameter: `came/kernels/rounding.py`, bit for bit.

    `NEAREST` for a parameter that is rounded so.
    """
    word = tl.mul(index.to(tl.uint32), GOLDEN, sanitize_overflow=False)
    word = tl.add(word, key.to(tl.uint32), sanitize_overflow=False)
    word = tl.mul(word ^ (word >> 16), 0x7FEB352D, sanitize_overflow=False)
    word = tl.mul(word ^ (word >> 15), 0x846CA68B, sanitize_overflow=False)
    return tl.where(key < 0, NEAREST, ((word ^ (word >> 16)) & 0xFFFF).to(tl.int32))


@triton.jit
def read_momentum(
    momentum, second, box, matrix, statistic,
    row, start, col, cols, r, c, row_at, col_at, mask, in_rows, in_cols,
    FORMAT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    DEPTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The momentum of `DEPTH x ROWS x COLS` numbers of a box: `came.momentum.Format.load`.

    They are rows `row + start + r` and columns `col + c` of the box, `row_at` and `col_at` of
    factor space.  `box`, `matrix` and `statistic` point to rows of the tables.
    """
    top = row.to(tl.int64) + start
    if FORMAT == SIGN:
        width = (cols + 7) // 8  # bytes of one row
        first = momentum.to(BYTES) + top * width
        if ALIGNED:  # each byte by one thread
            byte = col // 8 + tl.arange(0, COLS // 8)[None, None, :]
            code = tl.load(
                first + (r * width + byte), mask=in_rows & (byte >= 0) & (byte < width), other=0
            )
            code = code.to(tl.int32)[:, :, :, None] >> tl.arange(0, 8)[None, None, None, :]
            code = tl.reshape(code, [DEPTH, ROWS, COLS])
        else:
            code = tl.load(first + (r * width + ((col + c) >> 3)), mask=mask, other=0)
            code = code.to(tl.int32) >> ((col + c) & 7)
        value = (1 - 2 * (code & 1)).to(tl.float32)
        size = tl.load(statistic + ROW_SIZE).to(FLOATS) - tl.load(matrix + ROW_AT)
        value = value * tl.load(size + row_at, mask=in_rows, other=0.0)
        size = tl.load(statistic + ROW_SIZE + 1).to(FLOATS) - tl.load(matrix + COL_AT)
        value = value * tl.load(size + col_at, mask=in_cols, other=0.0)
    elif FORMAT == INT8:
        first_row, first_col = tl.load(box + FIRST_ROW), tl.load(box + FIRST_COL)
        width = (first_col + cols - 1) // BLOCK - first_col // BLOCK + 1  # blocks across
        block = (first_row + top + r) // BLOCK_ROWS - first_row // BLOCK_ROWS
        block = block * width + ((first_col + col) // BLOCK - first_col // BLOCK)
        scale = tl.load(second.to(FLOATS) + block, mask=in_rows, other=0.0)
        first = momentum.to(CODES) + (top * cols + col)
        if ALIGNED:
            first = tl.multiple_of(first, 16)
        code = tl.load(first + (r * cols + c), mask=mask, other=0)
        value = code.to(tl.float32) * (1 / 127) * scale
    else:
        value = read(momentum, top * cols + col, r * cols + c, mask, FORMAT, ALIGNED)
    return value
