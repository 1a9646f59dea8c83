"""Stochastic rounding to bfloat16: up or down with the odds of the distance, by hashed bits.

The bits are a function of (seed, step, parameter, index of the number), so every sharding and
every kernel rounds alike.  Without it, weights kept in bfloat16 alone lose most small updates.
"""

from typing import Any

import torch
from torch import Tensor

from came.tasks import Task

GOLDEN = 0x9E3779B9


def rounding_key(task: Task) -> int | None:
    """31 bits that differ for each parameter and step; None for a parameter rounded to nearest."""
    if not task.options.get("stochastic_rounding"):
        return None
    key = int(task.options["seed"])
    for word in (task.index, int(task.step)):
        key = int(_mix((key + GOLDEN * (word + 1)) & 0xFFFFFFFF))
    return key >> 1


def round_stochastically(values: Tensor, key: int, start: int) -> Tensor:
    """Float32 `values` as bfloat16; the first is number `start` of its parameter.

    Adds 16 random bits below the last one that is kept, and cuts.
    """
    index = torch.arange(start, start + values.numel(), device=values.device)
    noise = _mix((index * GOLDEN + key) & 0xFFFFFFFF) & 0xFFFF
    bits = values.to(torch.float32).contiguous().view(torch.int32).view(-1)
    # An infinity or NaN plus noise would be another number.
    noise = torch.where(values.view(-1).isfinite(), noise, 0)
    cut = (bits.to(torch.int64) + noise) & ~0xFFFF
    return cut.to(torch.int32).view(torch.float32).view(values.shape).to(torch.bfloat16)


def _mix(word: Any) -> Any:
    """32 bits thoroughly mixed: `lowbias32` by Chris Wellons, in the public domain."""
    word = ((word ^ (word >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    word = ((word ^ (word >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return word ^ (word >> 16)
