"""Who sums: nobody, or the process group over which the parameters are sharded."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Maximum:
    """A buffer of which the ranks want the largest numbers, not the sum."""

    buffer: Tensor


def sum_over(
    buffer: Tensor,
    group: dist.ProcessGroup | None,
    op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM,
) -> None:
    """Add `buffer` up (or what else `op` says) over the ranks of `group`, in place.

    `None` is a world of one.  A buffer on the CPU (optimizer offload) travels to the accelerator
    when the group's backend cannot sum on the CPU.
    """
    if group is None or dist.get_world_size(group) == 1:
        return
    backend = dist.get_backend(group)
    if buffer.device.type == "cpu" and "gloo" not in backend and "cpu:" not in backend:
        moved = buffer.to(torch.accelerator.current_accelerator())
        dist.all_reduce(moved, op=op, group=group)
        buffer.copy_(moved)
    else:
        dist.all_reduce(buffer, op=op, group=group)


def drive(step: Iterator[Tensor | Maximum], group: dist.ProcessGroup | None) -> None:
    """Run a step to its end, summing every buffer that it yields, or taking its maximum."""
    for wanted in step:
        if isinstance(wanted, Maximum):
            sum_over(wanted.buffer, group, dist.ReduceOp.MAX)
        else:
            sum_over(wanted, group)
