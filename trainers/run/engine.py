"""The DeepSpeed engine: its configuration, written in full from ours, and its construction."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from came import bind
from came.sharded_optimizer import ShardedOptimizer
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.failures import explain
from trainers.faults import fault

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def place(module: nn.Module, device: torch.device, dtype: str) -> nn.Module:
    """`module` on `device`, its parameters in `dtype`, a name of DTYPES; changed in place.

    Buffers stay as they are: rotary frequencies in bfloat16 are radians off at position 2,000, and
    no checkpoint holds them.
    """
    module.to(device)
    for param in module.parameters():
        param.data = param.data.to(DTYPES[dtype])
    return module


def deepspeed_config(config: Config, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration; nothing that matters is left to its defaults, which change."""
    zero: dict[str, Any] = {
        "stage": config.zero.stage,
        "round_robin_gradients": config.zero.round_robin_gradients,
        "reduce_scatter": True,
        "contiguous_gradients": True,
        "overlap_comm": config.zero.stage == 3,  # DeepSpeed's own choice, written down
        "reduce_bucket_size": 500_000_000,  # elements
        "allgather_bucket_size": 500_000_000,  # elements
        "sub_group_size": 1_000_000_000,  # elements, stage 3
        "zero_quantized_weights": False,
        "zero_quantized_gradients": False,
    }
    if config.zero.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    settings: dict[str, Any] = {
        "train_batch_size": config.batch.global_size,
        "train_micro_batch_size_per_gpu": config.batch.micro_size,
        "gradient_accumulation_steps": num_micro_batches(config, world_size),
        "gradient_clipping": config.train.gradient_clipping,
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        # Thousands of micro batches added up in bfloat16 would lose what the later ones add.
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if config.runtime.dtype == "bfloat16":
        settings["bf16"] = {"enabled": True}
    return _merge(settings, config.deepspeed)


def num_micro_batches(config: Config, world_size: int) -> int:
    """Micro batches of one rank in one step; the configuration guarantees that it is whole."""
    return config.batch.global_size // (config.batch.micro_size * world_size)


def set_batch(engine: Any, size: int, micro_size: int) -> None:
    """From the next step on: `size` samples a step over all ranks, `micro_size` at a time."""
    if (engine.train_batch_size(), engine.train_micro_batch_size_per_gpu()) == (size, micro_size):
        return
    engine.set_train_micro_batch_size(micro_size)
    engine.set_train_batch_size(size)
    # A step ends where the number of micro batches since the start is a multiple of those in a
    # step: with another number of them the counting has to begin anew.
    engine.micro_steps = 0


def build_engine(
    config: Config, module: nn.Module, optimizer: torch.optim.Optimizer, world_size: int
) -> tuple[Any, dict[str, Any]]:
    """`module` and `optimizer` inside DeepSpeed, and the ledger for JSON.  Every rank must call it.

    `module` has the dtype of the run.

    Raises:
        ConfigError: DeepSpeed, or our optimizer under it, does not accept the settings.
    """
    import deepspeed  # after the ranks have joined: it looks for devices when it is imported

    # On a CPU DeepSpeed would compile a shared-memory all-reduce, which gloo does as well. A run
    # that is killed while it compiles or loads it leaves a lock, for which all later runs wait.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    fault("engine")
    ledger = moments(module, world_size)  # under ZeRO 3 parameters are empty afterwards
    try:
        with _bounded_groups(config.runtime.timeout_seconds):
            engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=optimizer,
                config=deepspeed_config(config, world_size),
                dist_init_required=False,
            )
        if isinstance(optimizer, ShardedOptimizer):
            ledger = bind(engine).as_dict()
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if explain(error) is not None:  # another rank is gone, or there is no memory
            raise
        raise ConfigError(f"DeepSpeed cannot run this configuration: {error}") from error
    return engine, ledger


def moments(module: nn.Module, world_size: int) -> dict[str, Any]:
    """The sums of the ledger that torch's AdamW would have: two float32 moments of each number."""
    numbers = sum(param.numel() for param in module.parameters() if param.requires_grad)
    return {
        "world_size": world_size,
        "num_params": numbers,
        "state_bytes": 2 * torch.float32.itemsize * numbers,
        "replicated_bytes": 0,
        "params": [],
    }


@contextmanager
def _bounded_groups(seconds: int) -> Iterator[None]:
    """Groups made inside wait as long as we do: DeepSpeed makes its own with torch's 30 minutes."""
    new_group = dist.new_group
    dist.new_group = partial(new_group, timeout=timedelta(seconds=seconds))
    try:
        yield
    finally:
        dist.new_group = new_group


def _merge(ours: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` on top of `ours`, section by section; which keys may be there is checked before."""
    merged = dict(ours)
    for key, value in extra.items():
        below = merged.get(key)
        both = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merge(below, value) if both else value
    return merged
