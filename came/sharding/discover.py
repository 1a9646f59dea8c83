"""From an optimizer, wrapped or not, to its shards."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from came.sharding import deepspeed
from came.sharding.shard import Shard, plain_shards


def discover(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> list[Shard]:
    """All shards of any torch optimizer, proven by value.  Every rank must call it.

    Raises:
        RuntimeError: the wrapper is not known or its layout cannot be proven.
    """
    wrapper = deepspeed.find_wrapper(optimizer)
    return plain_shards(optimizer, names) if wrapper is None else deepspeed.read(wrapper, names)


def parameter_names(module: nn.Module) -> dict[Tensor, str]:
    """Each parameter's name; one that is tied has the first of its names."""
    return {param: name for name, param in module.named_parameters()}
