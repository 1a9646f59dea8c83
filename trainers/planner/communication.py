"""How many bytes a rank sends in one step.

A sum over W ranks of a buffer that all want whole costs a rank `2 (W - 1) / W` times the buffer;
one of which each wants its own slice, or to gather slices, half of that (rings, and whatever is as
good). DeepSpeed sums gradients in float32 here, and at stages 1 and 2 whole, even where a rank
needs its slice alone (`use_multi_rank_bucket_allreduce`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trainers.config import Config
from trainers.phases import finds_micro_batches
from trainers.planner.optimizers import Kept
from trainers.planner.sharding import sum_buffers
from trainers.run.engine import num_micro_batches

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Communication:
    """Bytes that a rank sends in one step; None: as often as there are micro batches, whose number
    is found at the start."""

    gradients: int | None  # summed over the ranks
    parameters: int | None  # gathered from them
    optimizer: int  # the optimizer's own sums

    @property
    def total(self) -> int | None:
        if self.gradients is None or self.parameters is None:
            return None
        return self.gradients + self.parameters + self.optimizer

    def as_dict(self) -> dict[str, int | None]:
        return {**asdict(self), "total": self.total}


def communication(config: Config, world_size: int, kept: Kept) -> Communication:
    """The bytes of one step of `config`, which is that of one phase."""
    stage = config.zero.stage
    numel = sum(group.numel for group in kept.groups)
    width = 2 if config.runtime.dtype == "bfloat16" else _FLOAT32
    once = (world_size - 1) / world_size
    num_micro = None if finds_micro_batches(config) else num_micro_batches(config, world_size)

    def sent(size: int, times: int | None) -> int | None:
        return None if times is None else round(once * size * numel * times)

    return Communication(
        gradients=sent(_FLOAT32 * (1 if stage == 3 else 2), num_micro if stage >= 2 else 1),
        # Stage 3 gathers every layer in forward, and again in backward unless it was left there.
        parameters=sent(2 * width, num_micro) if stage == 3 else sent(width, 1 if stage else 0),
        optimizer=round(2 * once * sum(sum_buffers(kept, stage, world_size))),
    )
