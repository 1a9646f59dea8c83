"""One tensor of an optimizer, and which numbers of which parameters lie in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from came.layout import Param, ShardLayout, whole
from came.sharding import dtensor


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
        return dtensor.local_part(self.tensor)

    @property
    def local_grad(self) -> Tensor:
        """What this rank holds of its gradient."""
        return dtensor.local_grad(self.tensor)

    def require_size(self) -> None:
        """Raise a RuntimeError if a parameter has another size than when it was seen first."""
        held = sum(piece.numel for piece in self.layout.fragments)
        if not self.layout.packed and self.local.numel() != held:
            raise RuntimeError(
                f"{self.layout.params[0].name} has {self.local.numel()} numbers now, and had "
                f"{held} when the optimizer saw it first: build the optimizer anew"
            )

    def local_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this rank holds of its state, as views."""
        if not dtensor.is_dtensor(self.tensor):
            return state
        return {
            key: dtensor.local_part(value) if dtensor.is_dtensor(value) else value
            for key, value in state.items()
        }


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
            "(FSDP1); shard the model with torch.distributed.fsdp.fully_shard (FSDP2), which keeps "
            "them, or train with DeepSpeed ZeRO 1-3"
        )
    if hasattr(param, "placements") and not dtensor.is_dtensor(param):
        raise RuntimeError(
            f"CAME does not update a {type(param).__name__} (placements "
            f"{param.placements}); shard the model with torch.distributed.fsdp.fully_shard"
        )
    if not torch.is_floating_point(param):
        raise RuntimeError(f"CAME updates real floating-point parameters, not {param.dtype}")


def names_by_position(index: int, group: dict[str, Any]) -> list[str]:
    """The names that the parameters of entry `index` of `param_groups` have in the optimizer."""
    return group.get("param_names") or [f"{index}.{i}" for i in range(len(group["params"]))]


def plain_shards(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> list[Shard]:
    """The shards of an optimizer that updates the model's own parameters, each by itself: whole, or
    rows of a DTensor.

    A frozen parameter has none, as under DeepSpeed.  A DTensor needs no name: whatever it is, it
    says itself which rows of what it holds.

    Raises:
        RuntimeError: a parameter has no name, is flattened, or is sharded in a way that is not
            supported.
    """
    shards = []
    for index, group in enumerate(optimizer.param_groups):
        for param, position in zip(group["params"], names_by_position(index, group), strict=True):
            if param not in names and not dtensor.is_dtensor(param):
                raise unexplained(param)
            name = names.get(param, position)
            if (param.requires_grad or param.grad is not None) and param.numel() > 0:
                _refuse_foreign(param)
                if dtensor.is_dtensor(param):
                    layout, ranks = dtensor.read(param, name)
                else:
                    layout, ranks = whole(Param(name, tuple(param.shape))), None
                shards.append(Shard(param, layout, ranks, (param,), index))
    return shards
