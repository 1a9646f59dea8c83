"""What is wrong with a way to start a run, in words, before anything is started."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import asdict

from launch.spec import LaunchConfig

_SLURM_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")
_ENDPOINT = re.compile(r"[A-Za-z0-9_.\-]+:\d{1,5}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
_SECRET = re.compile(r"secret:[a-z0-9.\-]+/[A-Za-z0-9._\-]+")
_QUANTITY = re.compile(r"\d+(\.\d+)?([KMGTPE]i|[kMGTPE])?")


def problems_of_launch(launch: LaunchConfig, run_dir: str) -> Iterator[str]:
    """Every reason why a run in `run_dir` cannot be started so."""
    yield from _sizes(launch)
    yield from {
        "local": _local,
        "torchrun": _torchrun,
        "deepspeed": _deepspeed,
        "slurm": _slurm,
        "kubernetes": _kubernetes,
    }[launch.name](launch)
    for key, value in asdict(launch).items():
        yield from _lines(f"launch.{key}", value)
    yield from _folder(launch, run_dir)


def _folder(launch: LaunchConfig, run_dir: str) -> Iterator[str]:
    yield from _lines("run.dir", run_dir)
    if launch.name == "slurm" and "\\" in run_dir:
        yield f"run.dir={run_dir}: sbatch reads a backslash as something else"
    if launch.name == "kubernetes":
        mount = launch.kubernetes.mount
        place = posixpath.normpath(posixpath.join(mount, run_dir))
        if run_dir.startswith("~") or not place.startswith(f"{posixpath.normpath(mount)}/"):
            yield (
                f"run.dir={run_dir} is not below launch.kubernetes.mount={mount}, the volume: it "
                "would be gone with its pod"
            )


def _sizes(launch: LaunchConfig) -> Iterator[str]:
    processes, gpus = launch.processes, launch.gpus_per_node
    if processes and gpus and processes != gpus:
        yield (
            f"launch.processes={processes} and launch.gpus_per_node={gpus} differ: every GPU has "
            "one process, give one of both"
        )
    if launch.torchrun.min_nodes > max(launch.nodes, 0):
        yield f"launch.torchrun.min_nodes={launch.torchrun.min_nodes} is more than launch.nodes"


def _local(launch: LaunchConfig) -> Iterator[str]:
    if launch.nodes > 1:
        yield (
            f"launch.nodes={launch.nodes}, but launch=local is this machine alone: add "
            "launch=slurm, kubernetes, torchrun or deepspeed"
        )


def _torchrun(launch: LaunchConfig) -> Iterator[str]:
    endpoint = launch.torchrun.rendezvous
    if endpoint is None and launch.nodes > 1:
        yield (
            f"launch.nodes={launch.nodes} machines have to meet: "
            "launch.torchrun.rendezvous=HOST:PORT of one of them, as node0:29500"
        )
    if endpoint is not None and not _ENDPOINT.fullmatch(endpoint):
        yield f"launch.torchrun.rendezvous={endpoint} must be HOST:PORT, as node0:29500"


def _deepspeed(launch: LaunchConfig) -> Iterator[str]:
    hosts = launch.deepspeed.hosts
    if len(hosts) != launch.nodes and (hosts or launch.nodes > 1):
        yield (
            f"launch.nodes={launch.nodes}, but launch.deepspeed.hosts names {len(hosts)}: name "
            "all machines, as [node0,node1]"
        )
    if len(set(hosts)) < len(hosts):
        yield f"launch.deepspeed.hosts={list(hosts)} names a machine twice"


def _slurm(launch: LaunchConfig) -> Iterator[str]:
    yield from _has_size(launch)
    time = launch.slurm.time
    if time is not None and not _SLURM_TIME.fullmatch(time):
        yield f"launch.slurm.time={time} must be [days-]hours:minutes:seconds, as 24:00:00"


def _kubernetes(launch: LaunchConfig) -> Iterator[str]:
    yield from _has_size(launch)
    settings = launch.kubernetes
    if not settings.image:
        yield "launch.kubernetes.image is not given: build one with `docker build`, see Dockerfile"
    if not settings.claim:
        yield "launch.kubernetes.claim is not given: the volume claim where runs and data lie"
    for word in settings.env:
        value = word.partition("=")[2]
        if not _VARIABLE.fullmatch(word):
            yield f"launch.kubernetes.env: {word!r} must be NAME=value or NAME=secret:SECRET/KEY"
        elif value.startswith("secret:") and not _SECRET.fullmatch(value):
            yield f"launch.kubernetes.env: {word!r} names no key: NAME=secret:SECRET/KEY"
    for key in ("memory", "shared_memory"):
        size = getattr(settings, key)
        if size is not None and not _QUANTITY.fullmatch(size):
            yield f"launch.kubernetes.{key}={size} must be a quantity, as 512Gi or 16G"


def _has_size(launch: LaunchConfig) -> Iterator[str]:
    if not launch.processes and not launch.gpus_per_node:
        yield (
            f"launch={launch.name} needs launch.gpus_per_node=8 (or launch.processes=2 where "
            "there are none): this machine cannot know those"
        )


def _lines(key: str, value: object) -> Iterator[str]:
    """Nothing that goes into a script may begin a line of its own, but `setup`, which is lines."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _lines(f"{key}.{name}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _lines(key, inner)
    elif isinstance(value, str) and "\n" in value:
        yield f"{key}={value!r} must be one line"
