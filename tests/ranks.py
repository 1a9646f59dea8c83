"""Runs a function on several gloo ranks on this machine, with a bound on the time."""

import logging
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 240
) -> None:
    """Call `function(*args)` on `world_size` ranks; fails with the first rank's traceback.

    `function` must be importable (spawned processes look it up by name).
    """
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(
            _rank, (world_size, folder, function, args), nprocs=world_size, join=False
        )
        deadline = time.monotonic() + timeout
        try:
            while not context.join(timeout=1):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{world_size} ranks took longer than {timeout} s")
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()


def _rank(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
        DS_ACCELERATOR="cpu",
    )
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'store'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)  # DeepSpeed's calls
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        function(*args)
    except BaseException:
        traceback.print_exc()
        # Without leaving, the other ranks would wait for this one in a collective.
        os._exit(1)
    dist.destroy_process_group()
    # What an engine keeps alive of the group in reference cycles aborts the interpreter at its end.
    os._exit(0)
