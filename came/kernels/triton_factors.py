"""The small steps between the passes in Triton: factors, clip factors, scales.

A program takes some matrices of one parameter's batch, its UNIT (`came/kernels/tiles.py`), and
goes over their rows, then over their columns, `LENGTH` numbers at a time.
"""
# mypy: ignore-errors
# Triton has no types, and what looks like Python here is not.

import triton
import triton.language as tl

from came.kernels.triton_numbers import (
    BETA1,
    BETA2,
    BETA3,
    CLIP,
    EPS1,
    EPS2,
    FLOATS,
    HEIGHT,
    INTS,
    LONGS,
    NUM_MATRIX,
    NUM_OPTION,
    NUM_STATISTIC,
    RES_CORRECTION,
    RES_ROW,
    ROW_AT,
    ROW_SIZE,
    SQ_CORRECTION,
    SQ_ROW,
    THRESHOLD,
    WIDTH,
    kernel,
)
from came.kernels.units import UNIT

NUM_UNIT = tl.constexpr(len(UNIT))
TINY = tl.constexpr(1e-30)  # in place of a mean of nothing but zeros


@triton.jit
def clip_factor(rms, option):
    """`1 / max(1, rms / threshold)`, and not a number where `rms` is none."""
    excess = tl.div_rn(rms, tl.load(option + THRESHOLD))
    return tl.div_rn(1.0, tl.where(excess < 1.0, 1.0, excess))


@kernel
def update_squares(
    squares: tl.int64, scales: tl.int64,
    units: tl.int64, matrices: tl.int64, statistics: tl.int64, settings: tl.int64,
    ENTRIES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """`r, c` from the sums of pass 1, and the two factors of `1 / sqrt(r c / mean(r))`."""
    unit = units.to(INTS) + tl.program_id(0) * NUM_UNIT
    owner, entry, entries = tl.load(unit), tl.load(unit + 1), tl.load(unit + 2)
    matrix = matrices.to(LONGS) + owner * NUM_MATRIX
    statistic = statistics.to(LONGS) + owner * NUM_STATISTIC
    option = settings.to(FLOATS) + owner * NUM_OPTION
    rows = tl.load(matrix + HEIGHT).to(tl.int32)
    cols = tl.load(matrix + WIDTH).to(tl.int32)
    row_at, col_at = tl.load(matrix + ROW_AT), tl.load(matrix + ROW_AT + 1)
    beta, one_minus_beta = tl.load(option + BETA2), tl.load(option + BETA2 + 1)
    eps = tl.load(option + EPS1)
    row_average = tl.load(statistic + SQ_ROW).to(FLOATS)
    col_average = tl.load(statistic + SQ_ROW + 1).to(FLOATS)
    row_share, col_share = 1.0 / cols.to(tl.float32), 1.0 / rows.to(tl.float32)
    a, i = tl.arange(0, ENTRIES)[:, None], tl.arange(0, LENGTH)[None, :]

    total = tl.zeros([ENTRIES, LENGTH], tl.float32)
    for start in range(0, rows, LENGTH):
        index, mask = (entry + a) * rows + start + i, (a < entries) & (start + i < rows)
        mean = tl.load(squares.to(FLOATS) + row_at + index, mask=mask, other=0.0)
        mean = mean * row_share + eps
        row = tl.load(row_average + index, mask=mask, other=0.0) * beta + one_minus_beta * mean
        tl.store(row_average + index, row, mask=mask)
        total += tl.where(mask, row, 0.0)
    mean_row = tl.sum(total, axis=1, keep_dims=True) * col_share
    root = tl.sqrt(mean_row) * tl.load(option + SQ_CORRECTION)
    tl.debug_barrier()
    for start in range(0, rows, LENGTH):
        index, mask = (entry + a) * rows + start + i, (a < entries) & (start + i < rows)
        row = tl.load(row_average + index, mask=mask, other=1.0)
        tl.store(scales.to(FLOATS) + row_at + index, tl.rsqrt(row) * root, mask=mask)
    for start in range(0, cols, LENGTH):
        index, mask = (entry + a) * cols + start + i, (a < entries) & (start + i < cols)
        mean = tl.load(squares.to(FLOATS) + col_at + index, mask=mask, other=0.0)
        mean = mean * col_share + eps
        col = tl.load(col_average + index, mask=mask, other=0.0) * beta + one_minus_beta * mean
        tl.debug_barrier()  # `scales` may be `squares`
        tl.store(col_average + index, col, mask=mask)
        tl.store(scales.to(FLOATS) + col_at + index, tl.rsqrt(col), mask=mask)


@kernel
def clip_batches(
    residuals: tl.int64, stride: tl.int64,
    owners: tl.int64, saved: tl.int64, rms: tl.int64, matrices: tl.int64, statistics: tl.int64,
    settings: tl.int64, LENGTH: tl.constexpr,
):  # fmt: skip
    """The clip factor of a batch of matrices, before its units need it; saves the last one."""
    owner = tl.load(owners.to(INTS) + tl.program_id(0))
    matrix = matrices.to(LONGS) + owner * NUM_MATRIX
    statistic = statistics.to(LONGS) + owner * NUM_STATISTIC
    option = settings.to(FLOATS) + owner * NUM_OPTION
    batch, rows = tl.load(matrix), tl.load(matrix + HEIGHT)
    cols, row_at = tl.load(matrix + WIDTH), tl.load(matrix + ROW_AT)
    clip = tl.load(statistic + CLIP).to(FLOATS)
    tl.store(saved.to(FLOATS) + tl.program_id(0), tl.load(clip))
    total = tl.zeros([LENGTH], tl.float32)
    for start in range(0, (batch * rows).to(tl.int32), LENGTH):
        index = start + tl.arange(0, LENGTH)
        uu = residuals.to(FLOATS) + 2 * stride + row_at + index
        total += tl.load(uu, mask=index < batch * rows, other=0.0)
    root = tl.sqrt(tl.sum(total, axis=0) / (batch * rows * cols).to(tl.float32))
    tl.store(rms.to(FLOATS) + owner, root)
    tl.store(clip, clip_factor(root, option))


@triton.jit
def residual_means(
    residuals, stride, index, mask, share, last_clip, clip, beta1, MOMENTUM: tl.constexpr
):
    """From sums of pass 2, `1 / share` numbers each, the means of `(s u - m)^2`, not below zero; or
    of `m'^2`, the square of the new momentum, with `m = z u - d`."""
    at = residuals.to(FLOATS) + index
    dd = tl.load(at, mask=mask, other=0.0) * share
    du = tl.load(at + stride, mask=mask, other=0.0) * share
    uu = tl.load(at + 2 * stride, mask=mask, other=0.0) * share
    if MOMENTUM:
        gain = (1 - beta1) * clip
        mm = dd + last_clip * last_clip * uu - 2 * last_clip * du
        mu = last_clip * uu - du
        square = beta1 * beta1 * mm + 2 * beta1 * gain * mu + gain * gain * uu
    else:
        change = clip - last_clip
        square = dd + 2 * change * du + change * change * uu
    return tl.where(square < 0, 0.0, square)  # and what is not a number stays so


@kernel
def update_confidence(
    residuals: tl.int64, stride: tl.int64, out: tl.int64, out_stride: tl.int64,
    units: tl.int64, saved: tl.int64, rms: tl.int64, matrices: tl.int64, statistics: tl.int64,
    settings: tl.int64,
    WHOLE: tl.constexpr, SIGN: tl.constexpr, ENTRIES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """`R, C` from the sums of pass 2, the factors of `1 / sqrt(R C / mean(R))`, and for signs the
    magnitudes of the new momentum.

    WHOLE: a unit is all of its parameter, and finds its clip factor itself.
    """
    unit = units.to(INTS) + tl.program_id(0) * NUM_UNIT
    owner, entry, entries = tl.load(unit), tl.load(unit + 1), tl.load(unit + 2)
    matrix = matrices.to(LONGS) + owner * NUM_MATRIX
    statistic = statistics.to(LONGS) + owner * NUM_STATISTIC
    option = settings.to(FLOATS) + owner * NUM_OPTION
    rows = tl.load(matrix + HEIGHT).to(tl.int32)
    cols = tl.load(matrix + WIDTH).to(tl.int32)
    row_at, col_at = tl.load(matrix + ROW_AT), tl.load(matrix + ROW_AT + 1)
    beta1, eps = tl.load(option + BETA1), tl.load(option + EPS2)
    beta, one_minus_beta = tl.load(option + BETA3), tl.load(option + BETA3 + 1)
    row_average = tl.load(statistic + RES_ROW).to(FLOATS)
    col_average = tl.load(statistic + RES_ROW + 1).to(FLOATS)
    clip_at = tl.load(statistic + CLIP).to(FLOATS)
    a, i = tl.arange(0, ENTRIES)[:, None], tl.arange(0, LENGTH)[None, :]
    row_share, col_share = 1.0 / cols.to(tl.float32), 1.0 / rows.to(tl.float32)

    total = tl.zeros([ENTRIES, LENGTH], tl.float32)
    if WHOLE:
        last_clip = tl.load(clip_at)
        for start in range(0, rows, LENGTH):
            uu = residuals.to(FLOATS) + 2 * stride + row_at + start + i
            total += tl.load(uu, mask=(a < entries) & (start + i < rows), other=0.0)
        mean_uu = tl.sum(tl.sum(total, axis=1), axis=0) * row_share * col_share
        root = tl.sqrt(mean_uu)
        clip = clip_factor(root, option)
    else:
        last_clip = tl.load(saved.to(FLOATS) + tl.load(unit + 3))
        clip = tl.load(clip_at)

    total = tl.zeros([ENTRIES, LENGTH], tl.float32)
    total_square = total
    for start in range(0, rows, LENGTH):
        index, mask = (entry + a) * rows + start + i, (a < entries) & (start + i < rows)
        mean = residual_means(
            residuals, stride, row_at + index, mask, row_share, last_clip, clip, beta1, False
        )
        residual = beta1 * beta1 * mean + eps
        row = tl.load(row_average + index, mask=mask, other=0.0) * beta + one_minus_beta * residual
        tl.store(row_average + index, row, mask=mask)
        total += tl.where(mask, row, 0.0)
        if SIGN:
            total_square += residual_means(
                residuals, stride, row_at + index, mask, row_share, last_clip, clip, beta1, True
            )
    mean_row = tl.sum(total, axis=1, keep_dims=True) * col_share
    root_row = tl.sqrt(mean_row) * tl.load(option + RES_CORRECTION)
    if SIGN:
        mean_square = tl.sum(total_square, axis=1, keep_dims=True) * col_share
        mean_square = tl.where(mean_square < TINY, TINY, mean_square)
    tl.debug_barrier()
    for start in range(0, rows, LENGTH):
        index, mask = (entry + a) * rows + start + i, (a < entries) & (start + i < rows)
        row = tl.load(row_average + index, mask=mask, other=1.0)
        at = out.to(FLOATS) + row_at + index
        if SIGN:
            square = residual_means(
                residuals, stride, row_at + index, mask, row_share, last_clip, clip, beta1, True
            )
            tl.debug_barrier()  # `out` may be the first rows of `residuals`
            tl.store(at + out_stride, tl.sqrt(square / mean_square), mask=mask)
        tl.store(at, tl.rsqrt(row) * root_row, mask=mask)
    for start in range(0, cols, LENGTH):
        index, mask = (entry + a) * cols + start + i, (a < entries) & (start + i < cols)
        mean = residual_means(
            residuals, stride, col_at + index, mask, col_share, last_clip, clip, beta1, False
        )
        residual = beta1 * beta1 * mean + eps
        col = tl.load(col_average + index, mask=mask, other=0.0) * beta + one_minus_beta * residual
        tl.store(col_average + index, col, mask=mask)
        at = out.to(FLOATS) + col_at + index
        if SIGN:
            square = residual_means(
                residuals, stride, col_at + index, mask, col_share, last_clip, clip, beta1, True
            )
            tl.debug_barrier()
            tl.store(at + out_stride, tl.sqrt(square), mask=mask)
        tl.debug_barrier()
        tl.store(at, tl.rsqrt(col), mask=mask)
    if WHOLE:
        tl.store(rms.to(FLOATS) + owner, root)
        tl.store(clip_at, clip)


@kernel
def keep_magnitudes(
    out: tl.int64, out_stride: tl.int64,
    units: tl.int64, matrices: tl.int64, statistics: tl.int64,
    ENTRIES: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """The magnitudes of signs, once nobody needs the old ones."""
    unit = units.to(INTS) + tl.program_id(0) * NUM_UNIT
    owner, entry, entries = tl.load(unit), tl.load(unit + 1), tl.load(unit + 2)
    matrix = matrices.to(LONGS) + owner * NUM_MATRIX
    statistic = statistics.to(LONGS) + owner * NUM_STATISTIC
    a, i = tl.arange(0, ENTRIES)[:, None], tl.arange(0, LENGTH)[None, :]
    for kind in tl.static_range(2):  # rows, then columns
        size = tl.load(matrix + HEIGHT + kind).to(tl.int32)
        source = out.to(FLOATS) + out_stride + tl.load(matrix + ROW_AT + kind)
        target = tl.load(statistic + ROW_SIZE + kind).to(FLOATS)
        for start in range(0, size, LENGTH):
            index, mask = (entry + a) * size + start + i, (a < entries) & (start + i < size)
            tl.store(target + index, tl.load(source + index, mask=mask), mask=mask)
