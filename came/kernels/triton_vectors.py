"""Vectors in Triton: CAME without factors and without confidence, in two sweeps."""
# mypy: ignore-errors
# Triton has no types, and what looks like Python here is not.

import triton.language as tl

from came.kernels.triton_factors import clip_factor
from came.kernels.triton_numbers import (
    BETA1,
    BETA2,
    EPS1,
    FLOATS,
    INTS,
    LONGS,
    NUM_ADDRESS,
    NUM_BOX,
    NUM_OPTION,
    SQ_CORRECTION,
    START,
    kernel,
    read,
)
from came.kernels.triton_passes import add_up
from came.kernels.triton_update import descend
from came.kernels.units import VECTOR_TILE

NUM_TILE = tl.constexpr(len(VECTOR_TILE))


@kernel
def add_vector_squares(
    sums: tl.int64, parts: tl.int64,
    tiles: tl.int64, counters: tl.int64, addresses: tl.int64, settings: tl.int64,
    GRAD: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Second moments of a tile; adds to the sum of its vector the squares of `g / sqrt(v)`, before
    bias correction."""
    tile = tiles.to(INTS) + tl.program_id(0) * NUM_TILE
    box, owner, begin = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    address = addresses.to(LONGS) + box * NUM_ADDRESS
    option = settings.to(FLOATS) + owner * NUM_OPTION
    index = tl.arange(0, LENGTH)
    mask = index < tl.load(tile + 3) - begin
    grad = read(tl.load(address), begin.to(tl.int64), index, mask, GRAD, False)
    second_moment = tl.load(address + 3).to(FLOATS) + begin + index
    average = tl.load(second_moment, mask=mask, other=0.0) * tl.load(option + BETA2)
    average += tl.load(option + BETA2 + 1) * (grad * grad + tl.load(option + EPS1))
    tl.store(second_moment, average, mask=mask)
    update = tl.where(mask, grad * tl.rsqrt(average), 0.0)
    square = tl.sum(update * update, axis=0)
    slot, rank, count = tl.load(tile + 4), tl.load(tile + 5), tl.load(tile + 6)
    if count == 1:
        total = sums.to(FLOATS) + owner
        tl.store(total, tl.load(total) + square)
    else:
        tl.store(parts.to(FLOATS) + slot + rank, square)
        tl.debug_barrier()
        add_up(
            counters.to(INTS) + tl.load(tile + 7), count, parts + 4 * slot.to(tl.int64), 0, 1,
            sums + 4 * owner.to(tl.int64), 0, 1, 1,
        )  # fmt: skip


@kernel
def apply_vector_update(
    sums: tl.int64,
    tiles: tl.int64, numels: tl.int64, rms: tl.int64, addresses: tl.int64, boxes: tl.int64,
    settings: tl.int64, keys: tl.int64,
    GRAD: tl.constexpr, PARAM: tl.constexpr, ROUNDS: tl.constexpr, LENGTH: tl.constexpr,
):  # fmt: skip
    """Momentum and parameter of a tile."""
    tile = tiles.to(INTS) + tl.program_id(0) * NUM_TILE
    box, owner, begin = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    address = addresses.to(LONGS) + box * NUM_ADDRESS
    option = settings.to(FLOATS) + owner * NUM_OPTION
    index = tl.arange(0, LENGTH)
    mask = index < tl.load(tile + 3) - begin
    correction = tl.load(option + SQ_CORRECTION)
    root = tl.sqrt(tl.load(sums.to(FLOATS) + owner) / tl.load(numels.to(FLOATS) + owner))
    root = root * correction
    if tl.load(tile + 5) == 0:  # the first tile of its vector
        tl.store(rms.to(FLOATS) + owner, root)
    origin = begin.to(tl.int64)
    grad = read(tl.load(address), origin, index, mask, GRAD, False)
    average = tl.load(tl.load(address + 3).to(FLOATS) + begin + index, mask=mask, other=1.0)
    change = grad * tl.rsqrt(average) * (clip_factor(root, option) * correction)
    momentum = tl.load(address + 2).to(FLOATS) + begin + index
    new = tl.load(momentum, mask=mask, other=0.0) * tl.load(option + BETA1)
    new += tl.load(option + BETA1 + 1) * change
    tl.store(momentum, new, mask=mask)
    descend(
        tl.load(address + 1), origin, index, new, mask, option, keys.to(LONGS) + owner,
        tl.load(boxes.to(LONGS) + box * NUM_BOX + START), PARAM, ROUNDS, False,
    )  # fmt: skip
