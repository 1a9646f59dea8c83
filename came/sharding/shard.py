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

    @property
    def local(self) -> Tensor:
        """What this rank holds of the tensor."""
        return self.tensor.detach()

    @property
    def local_grad(self) -> Tensor:
        """What this rank holds of its gradient."""
        assert self.tensor.grad is not None
        return self.tensor.grad


def unexplained(tensor: Tensor) -> RuntimeError:
    """The error for a tensor in `param_groups` of which nobody knows what it holds."""
    return RuntimeError(
        f"a tensor of shape {tuple(tensor.shape)} in param_groups is neither a parameter that the "
        "optimizer or model was built with, nor explained by a DeepSpeed optimizer: build CAME "
        "from the model's parameters and hand it to deepspeed.initialize(optimizer=...), or add "
        "the tensor with add_param_group. After gc.freeze(), call came.bind(engine) before the "
        "first step: frozen objects cannot be searched"
    )


def refuse_parallel(param: Tensor) -> None:
    """Raise a RuntimeError for a slice of a matrix that tensor parallelism has cut."""
    for mark in ("tensor_model_parallel", "model_parallel"):
        if getattr(param, mark, False):
            raise RuntimeError(
                f"CAME does not support tensor parallelism: a parameter of shape "
                f"{tuple(param.shape)} is marked {mark}, the rest of its matrix lies elsewhere"
            )


def _refuse_foreign(param: Tensor) -> None:
    """Raise a RuntimeError for a parameter that a wrapper has flattened or split unseen."""
    refuse_parallel(param)
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
        RuntimeError: a parameter has no name, or is a flat or distributed tensor.
    """
    shards = []
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            if param not in names:
                raise unexplained(param)
            if (param.requires_grad or param.grad is not None) and param.numel() > 0:
                _refuse_foreign(param)
                layout = whole(Param(names[param], tuple(param.shape)))
                shards.append(Shard(param, layout, None, (param,), index))
    return shards
