"""How DeepSpeed deals the parameters out, and how many bytes of state a rank then holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch

from came.fields import replicated_bytes, sharded_bytes
from came.layout import EachSplit, FlatSplit, Param, ShardLayout, boxes, whole
from trainers.planner.optimizers import Group, Kept

MASTER = torch.float32  # what optimizers update, in every stage
_ALIGNMENT = 2  # DeepSpeed's slices begin at 4 bytes in half precision, whatever the precision is


def split(params: Sequence[Param], stage: int, world_size: int) -> FlatSplit | EachSplit:
    """The parameters of one group under ZeRO 1 to 3, in the order of the model."""
    numels = tuple(param.numel for param in params)
    if stage == 3:
        return EachSplit(numels, world_size)
    offsets = (0, *accumulate(numels[:-1]))
    unit = _ALIGNMENT * world_size
    slice_numel = -(-sum(numels) // unit) * _ALIGNMENT
    return FlatSplit(numels, offsets, slice_numel, world_size)


def slice_numel(params: Sequence[Param], stage: int, world_size: int) -> int:
    """Numbers of the group on one rank, padding included."""
    if stage == 0:
        return sum(param.numel for param in params)
    found = split(params, stage, world_size)
    if isinstance(found, FlatSplit):
        return found.slice_numel
    return sum(-(-numel // world_size) for numel in found.numels)


def touched_numel(kept: Kept, world_size: int) -> int:
    """Numbers of all parameters that a slice of ZeRO 1 or 2 has a piece of, those that it cuts
    counted whole; on the rank with most."""
    splits = [split(group.params, 2, world_size) for group in kept.groups]
    return max(sum(_touched(each, rank) for each in splits) for rank in range(world_size))


def _touched(found: FlatSplit | EachSplit, rank: int) -> int:
    assert isinstance(found, FlatSplit)
    start, end = rank * found.slice_numel, (rank + 1) * found.slice_numel
    pieces = zip(found.offsets, found.numels, strict=True)
    return sum(numel for offset, numel in pieces if offset < end and offset + numel > start)


def state_bytes(kept: Kept) -> int:
    """Bytes of one copy of the whole state, as the ledger counts them: without step counters."""
    return sum(
        sharded_bytes(param, fields, boxes(param, whole(param).fragments[0]), MASTER)
        + replicated_bytes(fields, MASTER)
        for group in kept.groups
        for param, fields in zip(group.params, group.fields, strict=True)
    )


def state_bytes_per_rank(kept: Kept, stage: int, world_size: int) -> int:
    """Bytes of state on the rank that holds most."""
    if stage == 0 or world_size == 1:
        return state_bytes(kept)
    everywhere = sum(
        replicated_bytes(fields, MASTER) for group in kept.groups for fields in group.fields
    )
    # Under ZeRO 3 rank 0 has the longest slice of every parameter.
    ranks = range(1) if stage == 3 else range(world_size)
    splits = [(group, split(group.params, stage, world_size)) for group in kept.groups]
    held = (
        sum(_held(group, ShardLayout(group.params, each, rank)) for group, each in splits)
        for rank in ranks
    )
    return everywhere + max(held)


def _held(group: Group, layout: ShardLayout) -> int:
    return sum(
        sharded_bytes(
            layout.params[piece.param],
            group.fields[piece.param],
            boxes(layout.params[piece.param], piece),
            MASTER,
        )
        for piece in layout.fragments
    )


def sum_buffers(kept: Kept, stage: int, world_size: int) -> tuple[int, ...]:
    """Bytes of each buffer that the optimizer sums over the ranks in one step; none where every
    rank updates everything."""
    if stage == 0 or world_size == 1:
        return ()
    sizes: Iterator[tuple[int, ...]] = (kept.num_summed(group.params) for group in kept.groups)
    return tuple(MASTER.itemsize * sum(each) for each in zip(*sizes, strict=True))
