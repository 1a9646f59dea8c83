"""How many processes this machine should run, found without importing torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CPU_PROCESSES = 2  # enough to exercise every collective, few enough for a laptop


def default_processes(environ: Mapping[str, str] = os.environ) -> int:
    """One per GPU that torch could use, or 2 where there is none."""
    return num_gpus(environ) or CPU_PROCESSES


def num_gpus(environ: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> int:
    """NVIDIA devices this process may use; 0 if torch or DeepSpeed would not use them."""
    if environ.get("DS_ACCELERATOR", "cuda") != "cuda" or _torch_is_cpu_only():
        return 0
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = visible.split(",")
        # CUDA ignores everything from the first invalid name on; -1 is the usual way to hide all.
        return next((i for i, name in enumerate(names) if name.strip() in ("", "-1")), len(names))
    return sum(file.name.removeprefix("nvidia").isdigit() for file in devices.glob("nvidia[0-9]*"))


def num_cores() -> int:
    """Cores this process may run on: in a container fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _torch_is_cpu_only() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return True
