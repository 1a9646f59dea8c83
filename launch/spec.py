"""What is started, where: one description for all ways to start it; plain data, no torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PROGRAM = "came-train"


@dataclass(frozen=True, kw_only=True)
class TorchrunConfig:
    rendezvous: str | None  # HOST:PORT of one machine; null = one machine, a port of its own
    min_nodes: int  # with fewer machines nobody trains; 0 = launch.nodes


@dataclass(frozen=True, kw_only=True)
class DeepspeedConfig:
    hosts: tuple[str, ...]  # names of the machines, reached by ssh without a password


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    partition: str | None
    account: str | None
    time: str | None  # [days-]hours:minutes:seconds; null = the partition's limit
    cpus_per_node: int  # 0 = all of the machine (--exclusive)
    memory: str | None  # of a machine, as 64G; null = the cluster's default, 0 = all of it
    warn_seconds: int  # before the end of the time, to save in
    setup: tuple[str, ...]  # shell lines before anything else, as "module load cuda"
    container: str | None  # an image of enroot/pyxis, or an apptainer file (.sif)
    mounts: tuple[str, ...]  # of the container, as /scratch:/scratch
    options: tuple[str, ...]  # more words for sbatch, as --qos=high


@dataclass(frozen=True, kw_only=True)
class KubernetesConfig:
    image: str | None
    namespace: str
    claim: str | None  # the PersistentVolumeClaim where runs and data lie, of all machines
    mount: str  # where it is seen; also the working directory
    cpus: int  # of a machine; 0 = nothing is asked for
    memory: str | None  # of a machine, as 512Gi
    shared_memory: str  # of /dev/shm, for nccl and gloo
    env: tuple[str, ...]  # NAME=value, or NAME=secret:SECRET/KEY


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How a run is started; it changes nothing of what is learned."""

    name: Literal["local", "torchrun", "deepspeed", "slurm", "kubernetes"]
    processes: int  # of each machine
    nodes: int  # machines that are alike
    gpus_per_node: int
    dry_run: bool  # print what would be run
    submit: bool  # slurm, kubernetes: do not only print it
    max_restarts: int  # of the processes by torchrun, after one has died
    torchrun: TorchrunConfig
    deepspeed: DeepspeedConfig
    slurm: SlurmConfig
    kubernetes: KubernetesConfig


@dataclass(frozen=True)
class Job:
    """A run that is to be started."""

    words: tuple[str, ...]  # for came-train, as typed
    folder: str  # run.dir
    launch: LaunchConfig
    processes: int  # of each machine
    threads: int  # of each process; 0 = cores / processes
    patience: float  # seconds that processes have which were told to stop

    @property
    def name(self) -> str:
        """Short, for lists of jobs."""
        return self.folder.rstrip("/").rsplit("/", 1)[-1] or PROGRAM

    def command(self) -> list[str]:
        """What every rank runs, after torchrun and the like."""
        return [PROGRAM, *self.words]


@dataclass(frozen=True)
class Start:
    """What starts a job: files that are written, then a command; `text` shows all of it."""

    command: tuple[str, ...]
    files: Mapping[str, str] = field(default_factory=dict)  # path -> text
    environ: Mapping[str, str] = field(default_factory=dict)
    comment: str = ""

    def text(self) -> str:
        """Files first: a printed script starts with its first line, and can be saved as it is."""
        parts = list(self.files.values())
        parts += [f"# {line}" for line in self.comment.splitlines()]
        words = [*(f"{key}={shlex.quote(value)}" for key, value in self.environ.items())]
        line = " ".join([*words, shlex.join(self.command)])
        for path in self.files:
            folder = shlex.quote(path.rpartition("/")[0])
            parts.append(f"# mkdir -p {folder}; this is {shlex.quote(path)}, started by")
        if self.files:
            parts.append(f"# {line}")
        else:
            parts.append(line)
        return "\n".join(part.rstrip("\n") for part in parts)
