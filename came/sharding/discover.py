"""From an optimizer, wrapped or not, to its shards."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from came.sharding import deepspeed
from came.sharding.shard import Shard, plain_shards


def discover(
    optimizer: torch.optim.Optimizer, wrapper: Any | None, names: Mapping[Tensor, str]
) -> list[Shard]:
    """All shards of any torch optimizer, proven by value.  Every rank must call it.

    `wrapper` is what stands around the optimizer, or None; `names` names the model's parameters.

    Raises:
        RuntimeError: the wrapper is not known or its layout cannot be proven.
    """
    if wrapper is None or wrapper is optimizer:
        return plain_shards(optimizer, names)
    return deepspeed.read(wrapper, names)


def parameter_names(module: nn.Module) -> dict[Tensor, str]:
    """Each parameter's name; one that is tied has the first of its names."""
    return {param: name for name, param in module.named_parameters()}


def require_factors(shards: Iterable[Shard], params: Iterable[Tensor]) -> None:
    """Raise a RuntimeError if some of `params` are trained matrices, and no shard has one."""
    if any(param.factored for shard in shards for param in shard.layout.params):
        return
    shapes = [deepspeed.original_shape(param) for param in params if param.requires_grad]
    if any(len(shape) >= 2 and 0 not in shape for shape in shapes):
        raise RuntimeError(
            "the model has matrices, but CAME would factor none of them; build CAME from "
            "model.parameters() before anything flattens them"
        )
