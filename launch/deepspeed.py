"""The deepspeed launcher: from one machine it starts all, through ssh."""

from __future__ import annotations

import shlex

from launch import torchrun
from launch.local import free_port
from launch.spec import Job, Start


def render(job: Job) -> Start:
    """The hostfile, and the command that reads it.

    Raises:
        ValueError: a word that a remote shell would not take as it is.
    """
    environ = {"OMP_NUM_THREADS": torchrun.threads(job)}
    hosts = job.launch.deepspeed.hosts
    ranks = ("--module", "trainers.pretrain", *job.words)
    if not hosts:
        port = ("--master_port", str(free_port()))  # its own is fixed, and may be taken
        command = ("deepspeed", "--num_gpus", str(job.processes), *port, *ranks)
        return Start(command, environ=environ)
    for word in job.words:
        if shlex.quote(word) != word:
            raise ValueError(
                f"launch=deepspeed hands words to the shells of {', '.join(hosts)}, which would "
                f"not take {word!r} as it is: use launch=torchrun or slurm, or other names"
            )
    path = f"{job.folder}/launch/hostfile"
    text = "".join(f"{host} slots={job.processes}\n" for host in hosts)
    # Without --force_multi a file that names one machine is taken for this one.
    command = ("deepspeed", "--hostfile", path, "--force_multi", *ranks)
    return Start(command, files={path: text}, environ=environ)
