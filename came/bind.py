"""`bind`: find and prove the layout before the first step, and tell what is kept where."""

from typing import Any

from came.optimizer import CAME
from came.sharding.deepspeed import original_shape
from came.sharding.discover import discover, parameter_names
from came.sharding.ledger import Ledger, ledger_rows


def bind(target: Any) -> Ledger:
    """Find and prove the layout now, not at the first step, and tell what is kept where.

    Args:
        target: a DeepSpeed engine whose optimizer is a CAME, or a CAME.  Every rank must call it.

    Raises:
        TypeError: there is no CAME in it.
        RuntimeError: the layout cannot be proven, or no matrix of the model would be factored.
    """
    optimizer = getattr(target, "basic_optimizer", target)
    if not isinstance(optimizer, CAME):
        raise TypeError(
            "bind() takes a DeepSpeed engine around CAME, or a CAME; not a "
            f"{type(target).__name__} around {type(optimizer).__name__}"
        )
    module = getattr(target, "module", None)
    names = parameter_names(module) if module is not None else optimizer.original_names
    shards = discover(optimizer, names)
    factored = any(param.factored for shard in shards for param in shard.layout.params)
    if not factored and any(len(original_shape(param)) >= 2 for param in names):
        raise RuntimeError(
            "the model has matrices, but CAME would factor none of them; build CAME from "
            "model.parameters() before anything flattens them"
        )
    optimizer.adopt(shards)
    for shard in shards:
        optimizer.state_of(shard)
    rows = [row for shard in shards for row in ledger_rows(shard, optimizer.param_groups)]
    world_size = max((shard.layout.split.world_size for shard in shards), default=1)
    return Ledger(tuple(rows), world_size)
