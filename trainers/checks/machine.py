"""What this machine has: GPUs, cores, memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from launch.devices import num_cores, num_gpus

# What a container may use, in the two versions of control groups; "max" or absurdly much = all.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Gpu:
    """One device that a run would use; bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True)
class Machine:
    """What a run finds here; `memory` and `available` are bytes of the host."""

    gpus: tuple[Gpu, ...]
    cores: int
    memory: int
    available: int | None  # None where the system does not say


def this_machine() -> Machine:
    """Asks torch for GPUs and the system for the rest; takes no memory of a device."""
    import torch

    gpus = []
    if num_gpus() and torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            gpus.append(Gpu(torch.cuda.get_device_name(index), total, free))
    return Machine(tuple(gpus), num_cores(), host_memory(), _available())


def host_memory(limits: tuple[str, ...] = _LIMITS) -> int:
    """Bytes of memory that this process may use at most."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for name in limits:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            found = min(found, int(text))
    return found


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kilobytes) * 1024 for kilobytes in sizes), None)
