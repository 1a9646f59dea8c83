"""`bind`: find and prove the layout before the first step, and tell what is kept where."""

from typing import Any

import torch.distributed as dist

from came.ledger import Ledger, LedgerRow, ledger_rows
from came.sharded_optimizer import ShardedOptimizer
from came.sharding import deepspeed
from came.sharding.discover import discover, parameter_names, require_factors


def bind(target: Any) -> Ledger:
    """Find and prove the layout now, not at the first step, and tell what is kept where.

    Args:
        target: a DeepSpeed engine whose optimizer is a CAME, or a CAME.  Every rank must call it.

    Raises:
        TypeError: there is no CAME in it.
        RuntimeError: the layout cannot be proven, or no matrix of the model would be factored.
    """
    optimizer = getattr(target, "basic_optimizer", target)
    if not isinstance(optimizer, ShardedOptimizer):
        raise TypeError(
            "bind() takes a DeepSpeed engine around CAME, or a CAME; not a "
            f"{type(target).__name__} around {type(optimizer).__name__}"
        )
    module = getattr(target, "module", None)
    names = parameter_names(module) if module is not None else optimizer.original_names
    wrapper = getattr(target, "optimizer", None) or deepspeed.find_wrapper(optimizer)
    shards = discover(optimizer, wrapper, names)
    require_factors(shards, names)
    shards = optimizer.adopt(shards)
    rows: list[LedgerRow] = []
    for shard in shards:
        optimizer.state_of(shard)
        rows += ledger_rows(shard, optimizer.fields(shard), optimizer.param_groups)
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    return Ledger(tuple(rows), world_size)
