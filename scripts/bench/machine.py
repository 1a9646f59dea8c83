"""What a number was measured on: device, versions, commit."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("came-pretraining", "came-pytorch", "triton")


def describe_machine(device: torch.device) -> dict[str, str]:
    """Everything that a reader of a number asks for, in words."""
    found = {
        "device": "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "CPU": f"{_cpu_model()}, {torch.get_num_threads()} threads",
        "load at the start": f"{os.getloadavg()[0]:.1f} busy processes",
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    found |= {name: _version(name) for name in PACKAGES}
    return found | {
        "commit": _commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the sources, and whether they differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")[:12]
        return f"{commit}, with changes" if _git("status", "--porcelain") else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown: no git repository"


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
