"""The ranks of a run: who we are, on which device, and sums over all of us."""

import logging
import os
import warnings
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from launch.devices import num_cores
from trainers.config import RuntimeConfig
from trainers.errors import ConfigError
from trainers.run.peers import meet


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store | None = None  # where ranks leave word for each other; None in tests

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over all ranks, on every rank.  A collective, if there are others."""
        total = values.to(self.device, copy=True)
        if self.world_size > 1:
            dist.all_reduce(total)
        return total


def join(config: RuntimeConfig) -> World:
    """Enter the process group that the launcher's environment describes; every wait is bounded.

    Raises:
        ConfigError: there are more processes on this machine than GPUs.
        PeerLostError: not all ranks came.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    if on_gpu:
        if local_rank >= torch.cuda.device_count():
            error = ConfigError(
                f"process {local_rank} of this machine has no GPU of its own, there are "
                f"{torch.cuda.device_count()}: start fewer processes, or set DS_ACCELERATOR=cpu"
            )
            error.everywhere = False
            raise error
        torch.cuda.set_device(local_rank)
    else:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        torch.set_num_threads(_threads(config))
    _quiet_deepspeed()
    store, rank, world_size = meet(config.timeout_seconds)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("groups", store),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=config.timeout_seconds),
    )
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    return World(rank, world_size, device, store)


def leave() -> None:
    """Leave the process group at the end of a run that went well."""
    dist.destroy_process_group()


def _quiet_deepspeed() -> None:
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    # It calls every optimizer untested that is not its own; this one is tested by us.
    logger.addFilter(lambda record: "untested optimizer" not in record.getMessage())
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's calls


def _threads(config: RuntimeConfig) -> int:
    if config.threads:
        return config.threads
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, num_cores() // local_ranks)
