"""How many bytes a rank sends in one step.

A sum over W ranks of a buffer that all want whole costs a rank `2 (W - 1) / W` times the buffer;
one of which each wants its own slice, or to gather slices, half of that (rings, and whatever is as
good). DeepSpeed sums gradients in float32 here, and at stages 1 and 2 whole, even where a rank
needs its slice alone (`use_multi_rank_bucket_allreduce`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainers.config import Config
from trainers.planner.optimizers import Kept
from trainers.planner.sharding import sum_buffers
from trainers.run.engine import num_micro_batches

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Communication:
    """Bytes that a rank sends in one step."""

    gradients: int  # summed over the ranks
    parameters: int  # gathered from them
    optimizer: int  # the optimizer's own sums

    @property
    def total(self) -> int:
        return self.gradients + self.parameters + self.optimizer

    def as_dict(self) -> dict[str, int]:
        return {**asdict(self), "total": self.total}


def communication(config: Config, world_size: int, kept: Kept) -> Communication:
    """The bytes of one step of `config`, which is that of one phase."""
    stage = config.zero.stage
    numel = sum(group.numel for group in kept.groups)
    width = 2 if config.runtime.dtype == "bfloat16" else _FLOAT32
    once = (world_size - 1) / world_size
    num_micro = num_micro_batches(config, world_size)
    reductions = num_micro if stage >= 2 else 1
    gradients = _FLOAT32 * numel * reductions * (1 if stage == 3 else 2)
    # Stage 3 gathers every layer in forward, and again in backward unless it was left there.
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * num_micro}[stage]
    return Communication(
        gradients=round(once * gradients),
        parameters=round(once * width * numel * gathers),
        optimizer=round(2 * once * sum(sum_buffers(kept, stage, world_size))),
    )
