"""What lies in the memory of one rank, by what it is for.

DeepSpeed has a different class for nearly every setting, and each keeps something else. With P
numbers of parameters, W ranks, w bytes a number of the run's dtype (4 or 2), and an optimizer step
that is always in float32 (deepspeed 0.19; `runtime/engine.py`, `zero/stage_1_and_2.py`,
`zero/stage3.py`, `bf16_optimizer.py`):

    stage, dtype             parameters   float32 copy   gradients
    0, float32               4P           -              4P
    1, float32               4P           4P/W           4P
    1, bfloat16              2P           4P/W           4P + 2P       BF16_Optimizer
    2, float32               4P           4P/W           4P/W, cut ones whole
    2, bfloat16              2P           4P/W           4P/W
    3, float32 or bfloat16   wP/W         4P/W           4P/W

A float32 run has a second copy too: DeepSpeed clones the slice that a rank updates. Beside this
stand buffers in which gradients are gathered for the ranks to sum, while the model is run backward
(at stage 3 all the time), and at stage 3 the parameters of the layers that are being computed. With
offload the copy, the state and gradients lie on the host, and what goes there and back. A
parameter that a slice cuts keeps its whole gradient at stage 2 in float32: the embedding on each
rank that has a piece of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainers.config import Config
from trainers.planner.optimizers import Group, Kept
from trainers.planner.sharding import slice_numel, state_bytes_per_rank, sum_buffers, touched_numel

_FLOAT32 = 4
_ALLREDUCE_NUMBERS = 500_000_000  # DeepSpeed's MEMORY_OPT_ALLREDUCE_SIZE
_PERSISTENT_NUMBERS = 100_000  # stage 3: parameters up to this size stay whole on every rank
_LIVE_NUMBERS = 1_000_000_000  # stage 3: parameters that are whole at a time, at most


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on the device of one rank, the fullest one.

    What is there all the time, then what is there while the model is run (`activations`,
    `communication`) or while the parameters are updated (`step`): of these two the larger counts.
    `host` lies in the memory of the machine instead (offload).
    """

    parameters: int
    master: int
    gradients: int
    state: int
    sums: int  # buffers that the optimizer sums over the ranks, kept from step to step
    buffers: int  # DeepSpeed's that stay: stage 3's bucket, a gradient on its way to the host
    activations: int | None  # None: the micro batch is found at the start
    communication: int
    step: int
    host: int

    @property
    def kept(self) -> int:
        """What is there all the time."""
        return sum(
            (self.parameters, self.master, self.gradients, self.state, self.sums, self.buffers)
        )

    @property
    def total(self) -> int | None:
        """The most that is there at a time; None where activations are not known."""
        if self.activations is None:
            return None
        return self.kept + max(self.activations + self.communication, self.step)

    def as_dict(self) -> dict[str, int | None]:
        return {**asdict(self), "kept": self.kept, "total": self.total}


def memory(
    config: Config, world_size: int, zero: Mapping[str, Any], kept: Kept, activations: int | None
) -> Memory:
    """The memory of one rank; `zero` is the section of that name in DeepSpeed's configuration."""
    stage, half = config.zero.stage, config.runtime.dtype == "bfloat16"
    width = 2 if half else _FLOAT32
    numel = sum(group.numel for group in kept.groups)
    part = sum(slice_numel(group.params, stage, world_size) for group in kept.groups)
    state = state_bytes_per_rank(kept, stage, world_size)
    sums = sum(sum_buffers(kept, stage, world_size))
    master = _FLOAT32 * part if stage else 0
    offloads = config.zero.offload_optimizer
    touched = touched_numel(kept, world_size) if stage == 2 and not half else part
    largest = max(param.numel for group in kept.groups for param in group.params)
    host = master + state + sums + _sent_to_host(stage, half, part, touched, width * largest)
    return Memory(
        parameters=width * (part if stage == 3 else numel) + _persistent(kept, stage, width),
        master=0 if offloads else master,
        gradients=_gradients(stage, half, offloads, numel, touched),
        state=0 if offloads else state,
        sums=0 if offloads else sums,
        buffers=_buffers(stage, offloads, zero, width * largest),
        activations=activations,
        communication=_communication(stage, half, offloads, zero, numel, part, kept.groups),
        # The gradients of the slice, flattened once more.
        step=_FLOAT32 * part if stage and not offloads and not (stage == 1 and half) else 0,
        host=host if offloads else 0,
    )


def _gradients(stage: int, half: bool, offloads: bool, numel: int, touched: int) -> int:
    if stage >= 2:
        # With offload they are summed on the host, but those of bfloat16 at stage 2.
        return 0 if offloads and not (stage == 2 and half) else _FLOAT32 * touched
    # With accumulation in float32, those of one backward pass are there in bfloat16 as well, but
    # with offload, where each is dropped when it has been added.
    return (_FLOAT32 + (2 if half and not offloads else 0)) * numel


def _buffers(stage: int, offloads: bool, zero: Mapping[str, Any], largest: int) -> int:
    if stage == 3:
        return _FLOAT32 * int(zero["reduce_bucket_size"])
    return largest if offloads else 0


def _sent_to_host(stage: int, half: bool, part: int, touched: int, largest: int) -> int:
    """Bytes of what goes to the host and back: gradients in float32 for the step, beside them
    those that are summed over micro batches (stage 3, and 2 in float32), the slice on its way
    back, and the largest gradient on its way."""
    if stage == 3:
        return 2 * _FLOAT32 * part
    summed = _FLOAT32 * touched if stage == 2 and not half else 0
    return (_FLOAT32 + (2 if half else _FLOAT32)) * part + summed + largest


def _persistent(kept: Kept, stage: int, width: int) -> int:
    """Bytes of small parameters that stage 3 leaves whole on every rank."""
    params = (param for group in kept.groups for param in group.params)
    small = (param.numel for param in params if param.numel <= _PERSISTENT_NUMBERS)
    return width * sum(small) if stage == 3 else 0


def _communication(
    stage: int,
    half: bool,
    offloads: bool,
    zero: Mapping[str, Any],
    numel: int,
    part: int,
    groups: tuple[Group, ...],
) -> int:
    """Bytes of buffers in which gradients are summed, and parameters gathered."""
    if stage == 0 or (stage == 1 and half and not offloads):
        # Whole tensors, joined until there are so many numbers; one by itself is not copied.
        tensors = [param.numel for g in groups for param in g.params] if stage == 0 else None
        sizes = tensors or [group.numel for group in groups]
        return _FLOAT32 * _largest_bucket(sizes)
    bucket, width = int(zero["reduce_bucket_size"]), 2 if half else _FLOAT32
    filled = min(bucket, numel)
    if stage == 3:
        live = int(zero.get("stage3_max_live_parameters", _LIVE_NUMBERS))
        # What is in the bucket is copied once more to be dealt out.
        return _FLOAT32 * filled + width * min(live, numel)
    sums_in = _FLOAT32 if stage == 1 else width
    converted = _FLOAT32 * filled if sums_in < _FLOAT32 else 0
    # With offload and bfloat16 stage 1 takes its slice out of the sums before it is sent.
    slices = _FLOAT32 * part if stage == 1 and half else 0
    return sums_in * bucket + converted + slices


def _largest_bucket(sizes: list[int]) -> int:
    """Numbers that `allreduce_no_retain` joins at most; a tensor alone needs no copy."""
    largest = joined = count = 0
    for size in [*sizes, 0]:
        joined, count = joined + size, count + 1
        largest = max(largest, joined if count > 1 else 0)
        if joined > _ALLREDUCE_NUMBERS:
            joined = count = 0
    return largest
