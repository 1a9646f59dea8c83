"""The largest micro batch that fits into memory: tried, doubling, with real batches."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.config import Config
from trainers.data.splits import Splits
from trainers.phases import batch_units, phase_configs
from trainers.planner import memory as planner
from trainers.planner.optimizers import kept
from trainers.run.distributed import World
from trainers.run.engine import deepspeed_config
from trainers.run.evaluate import to_device

_USED = 0.9  # of the memory that there is: fragments and what nobody counts need the rest
_CPU_USED = 0.5  # of a machine's memory, which others use as well


def fit_micro_batches(
    config: Config, data: Sequence[Splits], module: nn.Module, world: World
) -> Config:
    """`config` with the largest micro batch of each phase that fits.  Every rank must call it.

    `module` lies on its device and has the dtype of the run, but no engine yet: what that adds is
    reckoned.  All ranks agree, on what fits for each of them.
    """
    room = memory(config, world) - standing_bytes(config, module, world)
    sizes = [
        _largest(unit // world.world_size, splits, module, world, room)
        for unit, splits in zip(batch_units(config), data, strict=True)
    ]
    phases = tuple(
        replace(phase, micro_size=size)
        for phase, size in zip(config.train.phases, sizes, strict=False)
    )
    return replace(
        config,
        batch=replace(config.batch, micro_size=sizes[0]),
        train=replace(config.train, phases=phases),
    )


def next_size(most: int, best: int, failed: int | None) -> int | None:
    """The divisor of `most` to try after `best` fitted and `failed` did not; None: it is found.

    Sizes at least double until one does not fit; those between are tried from the lowest.
    """
    end = failed or most + 1
    larger = [size for size in range(best + 1, end) if most % size == 0]
    return next((size for size in larger if failed or size >= 2 * best), (larger or [None])[0])


def _largest(most: int, splits: Splits, module: nn.Module, world: World, room: float) -> int:
    """The largest divisor of `most` that fits, if more need more; 1 is not asked."""
    best, failed = 1, None
    needed = _needed(best, splits, module, world)
    while size := next_size(most, best, failed):
        # Nothing is tried that must fail: on a CPU the machine would begin to swap.
        if _all_agree(needed * size / best <= room, world):
            tried = _needed(size, splits, module, world)
            if _all_agree(tried <= room, world):
                best, needed = size, tried
                continue
        failed = size
    return best


def _all_agree(fits: bool, world: World) -> bool:
    votes = torch.tensor(float(fits))
    return bool(world.sum(votes).item() == world.world_size)


def _needed(size: int, splits: Splits, module: nn.Module, world: World) -> float:
    """Bytes of a forward and backward of `size` samples, infinite if the device has not so many."""
    positions = np.arange(size)
    labels = splits.train.num_labels(positions)
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(world.device)
    before = torch.cuda.memory_allocated(world.device) if on_gpu else 0
    saved = SavedBytes(module)
    try:
        with saved:
            loss = module(to_device(splits.train.batch(positions), world)).share(labels)
        loss.backward()
    except torch.OutOfMemoryError:
        return float("inf")
    finally:
        module.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.empty_cache()
    return float(torch.cuda.max_memory_allocated(world.device) - before if on_gpu else saved.total)


class SavedBytes(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward keeps for its backward, parameters apart.

    On a CPU nobody else counts them: the process's own size says more of the allocator.
    """

    def __init__(self, module: nn.Module) -> None:
        self._seen = {param.untyped_storage().data_ptr() for param in module.parameters()}
        self.total = 0
        super().__init__(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


def standing_bytes(config: Config, module: nn.Module, world: World) -> int:
    """What lies in memory beside the activations, as `came-plan` reckons it: weights, gradients,
    optimizer state, and the buffers in which gradients are summed."""
    zero = deepspeed_config(phase_configs(config)[0], world.world_size)["zero_optimization"]
    on_cpu = world.device.type == "cpu"
    if on_cpu:  # pages of a buffer that nobody writes to are not there
        numel = sum(param.numel() for param in module.parameters())
        zero["reduce_bucket_size"] = min(int(zero["reduce_bucket_size"]), numel)
    state = kept(config.optimizer, config.runtime, module)
    planned = planner.memory(config, world.world_size, zero, state, None)
    return planned.kept + planned.communication + (planned.host if on_cpu else 0)


def memory(config: Config, world: World) -> float:
    """Bytes that one rank may use."""
    if config.runtime.memory_gb:
        return config.runtime.memory_gb * 1e9
    if world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(world.device)
        return _USED * (free + torch.cuda.memory_allocated(world.device))
    pages: Any = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return _CPU_USED * float(pages) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def told(config: Config) -> str:
    """The micro batches, in words."""
    sizes = [inside.batch.micro_size for inside in phase_configs(config)]
    return f"micro batch of {', then '.join(map(str, sizes))} samples per process"
