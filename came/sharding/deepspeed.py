"""Where DeepSpeed keeps which number: reads the layout of its ZeRO optimizers and proves it.

DeepSpeed wraps the optimizer and puts flat fp32 slices in place of its parameters.  Stages 1 and 2
leave no reference from the optimizer to the wrapper, so the wrapper is looked for: the object
whose `.optimizer` is this one.  Its lists of parameters give the layout; `_hp_mapping`, which
DeepSpeed's own accessors use, is wrong with `round_robin_gradients` and is not used.

What is read is proven before the first update: every slice must equal the slice of its parameter
after the cast.  Verified with deepspeed 0.19.8.
"""

import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from came.layout import EachSplit, FlatSplit, Param, ShardLayout, packed_offsets, whole
from came.sharding.shard import Shard, refuse_parallel, unexplained


def find_wrapper(optimizer: torch.optim.Optimizer) -> Any | None:
    """The DeepSpeed optimizer around `optimizer`, or None."""
    base = sys.modules.get("deepspeed.runtime.base_optimizer")
    if base is None:
        return None
    for candidate in gc.get_objects():
        # type(), not isinstance(): proxies in the heap may act on being asked for their class.
        if issubclass(type(candidate), base.DeepSpeedOptimizer) and (
            candidate.__dict__.get("optimizer") is optimizer
        ):
            return candidate
    return None


def read(wrapper: Any, names: Mapping[Tensor, str]) -> list[Shard]:
    """The shards of a DeepSpeed optimizer, proven by value.  A collective over its groups.

    `names` has a name for each of the model's parameters.

    Raises:
        RuntimeError: on every rank, if the wrapper is not known, uses a feature that is not
            supported, or a slice is not where its layout says.
    """
    kind = type(wrapper).__name__
    if kind not in _READERS:
        raise RuntimeError(
            f"CAME does not know the layout of {kind}; use one of {', '.join(_READERS)} (ZeRO 0-3 "
            "without ZenFlow, SuperOffload or MiCS)"
        )
    _refuse_unsupported(wrapper, kind)
    names = {**names, **(getattr(wrapper, "param_names", None) or {})}
    shards = [_name(shard, names) for shard in _READERS[kind](wrapper)]
    _prove(shards, kind)
    return shards


def _name(shard: Shard, names: Mapping[Tensor, str]) -> Shard:
    params = []
    for source, param in zip(shard.sources, shard.layout.params, strict=True):
        refuse_parallel(source)
        if source not in names:
            raise unexplained(source)
        params.append(Param(names[source], param.shape))
    return replace(shard, layout=replace(shard.layout, params=tuple(params)))


def _refuse_unsupported(wrapper: Any, kind: str) -> None:
    problems = []
    if any(getattr(wrapper, swap, False) for swap in ("swap_optimizer", "params_in_nvme_and_cpu")):
        problems.append('NVMe swapping: set the devices of both offload blocks to "cpu"')
    # At stages 1 and 2 `step()` sees one group at a time: the wrapper knows of all.
    groups = wrapper.optimizer.param_groups
    if getattr(wrapper, "has_moe_layers", False) or any(group.get("moe") for group in groups):
        problems.append("mixture-of-experts groups: train a model without experts")
    if len(set(getattr(wrapper, "subgroup_to_device", {}).values())) > 1:
        problems.append("partial offload: set offload_optimizer.ratio to 1.0")
    if problems:
        raise RuntimeError(f"CAME under {kind} does not support " + "; ".join(problems))


def original_shape(param: Tensor) -> tuple[int, ...]:
    """The whole shape of a model's parameter, also where ZeRO 3 has emptied it."""
    return tuple(getattr(param, "ds_shape", param.shape))


def _params(sources: list[Tensor]) -> tuple[Param, ...]:
    return tuple(Param("", original_shape(source)) for source in sources)


def _read_stage_1_and_2(wrapper: Any) -> list[Shard]:
    shards = []
    for i, flat in enumerate(wrapper.single_partition_of_fp32_groups):
        # With round_robin_gradients this order is not that of the param group.
        sources = wrapper.round_robin_bit16_groups[i]
        offsets = tuple(wrapper.round_robin_bit16_offsets[i])
        shards.append(_flat_shard(flat, sources, offsets, wrapper.real_dp_process_group[i], i))
    return shards


def _read_bf16(wrapper: Any) -> list[Shard]:
    shards = []
    for i, flat in enumerate(wrapper.fp32_groups_flat_partition):
        sources = wrapper.bf16_groups[i]
        offsets = packed_offsets([source.numel() for source in sources])
        shards.append(_flat_shard(flat, sources, offsets, wrapper.real_dp_process_group[i], i))
    return shards


def _flat_shard(
    flat: Tensor,
    sources: list[Tensor],
    offsets: tuple[int, ...],
    group: dist.ProcessGroup,
    group_index: int,
) -> Shard:
    params = _params(sources)
    numels = tuple(param.numel for param in params)
    split = FlatSplit(numels, offsets, flat.numel(), dist.get_world_size(group))
    layout = ShardLayout(params, split, dist.get_rank(group))
    return Shard(flat, layout, group, tuple(sources), group_index)


def _read_stage_3(wrapper: Any) -> list[Shard]:
    shards = []
    for i, flat in enumerate(wrapper.fp32_partitioned_groups_flat):
        sources, group = wrapper.fp16_groups[i], wrapper.sub_group_process_groups[i]
        params = _params(sources)
        split = EachSplit(tuple(param.numel for param in params), dist.get_world_size(group))
        layout = ShardLayout(params, split, dist.get_rank(group))
        group_index = wrapper.sub_group_to_group_id[i]
        shards.append(Shard(flat, layout, group, tuple(sources), group_index))
    return shards


def _read_unfused(wrapper: Any) -> list[Shard]:
    return [
        Shard(master, whole(Param("", original_shape(source))), None, (source,), i)
        for i, (sources, masters) in enumerate(
            zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
        )
        for source, master in zip(sources, masters, strict=True)
    ]


_READERS: dict[str, Callable[[Any], list[Shard]]] = {
    "FP16_UnfusedOptimizer": _read_unfused,
    "BF16_Optimizer": _read_bf16,
    "DeepSpeedZeroOptimizer": _read_stage_1_and_2,
    "DeepSpeedZeroOptimizer_Stage3": _read_stage_3,
}


def source_slice(source: Tensor, start: int, numel: int) -> Tensor:
    """This rank's elements `[start, start + numel)` of a parameter as the model holds it."""
    if hasattr(source, "ds_tensor"):
        partition: Tensor = source.ds_tensor
        return partition.view(-1)[:numel]
    return source.detach().view(-1)[start : start + numel]


def _same(left: Tensor, right: Tensor) -> bool:
    # A NaN equals a NaN here: it is the place that is proven, not the value.
    return left.shape == right.shape and torch.equal(left.nan_to_num(), right.nan_to_num())


def _prove(shards: list[Shard], kind: str) -> None:
    """Every slice equals its parameter's slice, on every rank, or nobody goes on."""
    wrong = None
    for shard in shards:
        for piece in shard.layout.fragments:
            source = source_slice(shard.sources[piece.param], piece.start, piece.numel)
            held = shard.tensor.detach().view(-1)[piece.offset : piece.offset + piece.numel]
            cast = held.to(device=source.device, dtype=source.dtype)
            if not _same(cast, source):
                wrong = wrong or shard.layout.params[piece.param].name
    # Without a group of their own (ZeRO 0) the ranks agree over the whole world.
    groups = {id(shard.group): shard for shard in shards} if dist.is_initialized() else {}
    for shard in groups.values():
        device = shard.sources[0].device
        verdict = torch.tensor([wrong is not None], dtype=torch.int32, device=device)
        dist.all_reduce(verdict, group=shard.group)
        if verdict.item() and wrong is None:
            wrong = "a parameter on another rank"
    if wrong is not None:
        raise RuntimeError(
            f"CAME read the layout of {kind}, but the slice of {wrong} does not hold its values; "
            "were the model's weights changed after deepspeed.initialize? Load them before it"
        )
