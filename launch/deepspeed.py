"""The deepspeed launcher: from one machine it starts all, through ssh."""

from __future__ import annotations

from launch import torchrun
from launch.spec import Job, Start


def render(job: Job) -> Start:
    """The hostfile, and the command that reads it."""
    environ = {"OMP_NUM_THREADS": torchrun.threads(job)}
    hosts = job.launch.deepspeed.hosts
    ranks = ("--module", "trainers.pretrain", *job.words)
    if not hosts:
        return Start(("deepspeed", "--num_gpus", str(job.processes), *ranks), environ=environ)
    path = f"{job.folder}/launch/hostfile"
    text = "".join(f"{host} slots={job.processes}\n" for host in hosts)
    # Without --force_multi a file that names one machine is taken for this one.
    command = ("deepspeed", "--hostfile", path, "--force_multi", *ranks)
    return Start(command, files={path: text}, environ=environ)
