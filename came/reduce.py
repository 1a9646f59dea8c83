"""Who sums: nobody, or the process group over which the parameters are sharded."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


def sum_over(buffer: Tensor, group: dist.ProcessGroup | None) -> None:
    """Add `buffer` up over the ranks of `group`, in place; `None` is a world of one.

    A buffer on the CPU (optimizer offload) travels to the accelerator when the group's backend
    cannot sum on the CPU.
    """
    if group is None or dist.get_world_size(group) == 1:
        return
    backend = dist.get_backend(group)
    if buffer.device.type == "cpu" and "gloo" not in backend and "cpu:" not in backend:
        moved = buffer.to(torch.accelerator.current_accelerator())
        dist.all_reduce(moved, group=group)
        buffer.copy_(moved)
    else:
        dist.all_reduce(buffer, group=group)


def drive(step: Iterator[Tensor], group: dist.ProcessGroup | None) -> None:
    """Run a step to its end, summing every buffer that it yields."""
    for buffer in step:
        sum_over(buffer, group)
