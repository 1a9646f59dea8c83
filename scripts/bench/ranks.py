"""One rank's own share of a sharded step, with nobody else there.

A rank has the buffers, the layout and the plan that it would have under ZeRO; what it wants summed
over the ranks it takes as it is.  That changes the numbers, not the work, and collectives are no
part of the time.
"""

from typing import Any

import torch
from torch import Tensor

from came.fields import allocate
from came.layout import EachSplit, FlatSplit, Param, ShardLayout, packed_offsets
from came.rules import came as rule
from came.tasks import tasks
from scripts.bench.shapes import Shapes

SPLITS = ("ZeRO 1-2", "ZeRO 3")
STREAMED = "whole, but in step"  # unsharded, and yet nothing stays in cache between the passes


class LoneRank:
    """Rank `layout.rank` of a world whose other ranks do not exist.

    `in_step` takes each pass through all matrices before the next, also through those that nobody
    shares: what a rank has to do where every matrix is cut.
    """

    def __init__(
        self,
        layout: ShardLayout,
        options: dict[str, Any],
        dtype: torch.dtype,
        device: torch.device,
        *,
        in_step: bool = False,
    ) -> None:
        size = max((piece.offset + piece.numel for piece in layout.fragments), default=1)
        self.flat, self.grad = (
            torch.empty(size, dtype=dtype, device=device).normal_(0, std) for std in (2e-2, 1e-2)
        )
        fields = [rule.fields(param, options) for param in layout.params]
        self.state = allocate(self.flat, layout, fields)
        todo = tasks(0, self.flat, layout, fields, self.state, options)
        for index, task in enumerate(todo):
            task.index = index
            task.whole = task.whole and not in_step
        like = self.flat.new_empty(0, dtype=torch.float32)
        self.plan = rule.plan(todo, [self.grad], like, alone=False)

    def step(self) -> list[Tensor]:
        """One step; returns the buffers that the ranks would have summed."""
        self.state["step"] += 1
        self.plan.refresh([self.grad])
        return list(rule.step(self.plan))


def layouts(shapes: Shapes, split: str, world_size: int) -> list[ShardLayout]:
    """The layout of every rank; `split` is one of `SPLITS`."""
    params = tuple(Param(name, shape) for name, shape in shapes)
    numels = tuple(param.numel for param in params)
    if split == "ZeRO 1-2":
        slice_numel = -(-sum(numels) // world_size)
        cut: Any = FlatSplit(numels, packed_offsets(numels), slice_numel, world_size)
    else:
        cut = EachSplit(numels, world_size)
    return [ShardLayout(params, cut, rank) for rank in range(world_size)]
