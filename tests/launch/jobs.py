"""Jobs for the tests of what starts them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from launch.spec import (
    DeepspeedConfig,
    Job,
    KubernetesConfig,
    LaunchConfig,
    SlurmConfig,
    TorchrunConfig,
)

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "config.yaml"
PARTS = {
    "torchrun": TorchrunConfig,
    "deepspeed": DeepspeedConfig,
    "slurm": SlurmConfig,
    "kubernetes": KubernetesConfig,
}
# What a shell could take for its own.
AWKWARD = (
    "experiment=quickstart",
    "data.path=my texts/$(touch pwned); `touch pwned` & 'one' \"two\" $HOME \\n *",
    "optimizer.betas=[0.9, 0.99, 0.999]",
    "deepspeed.note=#no|<comment>",
)


def launch_of(name: str, **changes: Any) -> LaunchConfig:
    """The defaults of configs/config.yaml; `slurm__time="1:00"` changes a key of a section."""
    settings = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["launch"]
    parts: dict[str, Any] = {}
    for part, kind in PARTS.items():
        section = {k: tuple(v) if isinstance(v, list) else v for k, v in settings[part].items()}
        for key, value in changes.items():
            if key.startswith(f"{part}__"):
                section[key.partition("__")[2]] = value
        parts[part] = kind(**section)
    plain = {key: value for key, value in changes.items() if "__" not in key}
    return LaunchConfig(**{**settings, "name": name, **parts, **plain})


def job_of(name: str, words: tuple[str, ...] = AWKWARD, **changes: Any) -> Job:
    """Two processes on each machine, in runs/quick."""
    launch = launch_of(name, **changes)
    return Job(words, "runs/quick", launch, processes=2, threads=3, patience=27.5)


def in_folder(job: Job, folder: str) -> Job:
    return replace(job, folder=folder)
