"""One tensor of an optimizer, and which numbers of which parameters lie in it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from came.layout import Param, ShardLayout, whole


@dataclass(frozen=True)
class Shard:
    """`tensor` stands in `param_groups`; `layout` says what it holds; `group` shards it.

    `sources` are the model's own parameters, one for each of `layout.params`: the same tensor for
    a parameter that nobody wrapped, its low-precision original under a wrapper.  `group_index` is
    the entry of `param_groups` that the tensor belongs to.
    """

    tensor: Tensor
    layout: ShardLayout
    group: dist.ProcessGroup | None
    sources: tuple[Tensor, ...]
    group_index: int


def _refuse_foreign(param: Tensor) -> None:
    """Raise a RuntimeError for a parameter that a wrapper has flattened or split unseen."""
    if getattr(param, "_is_flat_param", False) or getattr(param, "_fsdp_flattened", False):
        raise RuntimeError(
            "CAME cannot see the matrices inside the flat parameters of FullyShardedDataParallel "
            "(FSDP1); train with DeepSpeed ZeRO 1-3, which shards the same state"
        )
    if type(param).__name__ == "DTensor" or hasattr(param, "placements"):
        raise RuntimeError(
            f"CAME does not update a {type(param).__name__} (placements "
            f"{getattr(param, 'placements', None)}); train with DeepSpeed ZeRO 1-3, which shards "
            "the same state"
        )
    if not torch.is_floating_point(param):
        raise RuntimeError(f"CAME updates real floating-point parameters, not {param.dtype}")


def plain_shards(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> list[Shard]:
    """The shards of an optimizer that updates the model's own parameters: each is whole.

    A frozen parameter has none, as under DeepSpeed.


    Raises:
        RuntimeError: a parameter is a flat or distributed tensor.
    """
    shards = []
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            if param in names and (param.requires_grad or param.grad is not None):
                _refuse_foreign(param)
                layout = whole(Param(names[param], tuple(param.shape)))
                shards.append(Shard(param, layout, None, (param,), index))
    return shards
