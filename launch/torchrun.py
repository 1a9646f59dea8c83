"""torchrun: the same command on every machine; they find each other, and start again together.

A machine that dies takes the processes of the others with it (they say "peer lost"); torchrun waits
for the machine to come back, or goes on without it down to `min_nodes`, from the last checkpoint.
"""

from __future__ import annotations

from math import ceil

from launch.devices import num_cores
from launch.spec import Job, Start

# torchrun passes these on to the ranks; SIGUSR1 is a batch system's warning, which ends it else.
SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def render(job: Job) -> Start:
    """The command for one machine."""
    launch = job.launch
    endpoint = launch.torchrun.rendezvous
    where = rendezvous(endpoint, job.name) if endpoint else ["--standalone"]
    minimum = launch.torchrun.min_nodes
    nodes = f"{minimum}:{launch.nodes}" if minimum else str(launch.nodes)
    return Start(
        tuple(command(job, ["--nnodes", nodes, *where])),
        environ=environ(job) | {"OMP_NUM_THREADS": threads(job)},
        comment=f"the same on each of {launch.nodes} machines" if launch.nodes > 1 else "",
    )


def rendezvous(endpoint: str, name: str) -> list[str]:
    """How the machines of the job `name` find each other at HOST:PORT."""
    return ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", name]


def command(job: Job, where: list[str]) -> list[str]:
    """torchrun and its ranks on one machine; `where` says which machines there are."""
    return [
        "torchrun",
        *where,
        *("--nproc-per-node", str(job.processes)),
        *("--max-restarts", str(job.launch.max_restarts)),
        *("--signals-to-handle", SIGNALS),
        "--no-python",  # `-m` would look for `trainers` in the folder that one stands in
        *job.command(),
    ]


def environ(job: Job) -> dict[str, str]:
    """What torchrun reads from the environment."""
    return {
        # Its own 30 seconds before SIGKILL may be too short to save in.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(ceil(job.patience)),
        # Without it a machine that comes back is never told where rank 0 is (torch 2.13).
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def threads(job: Job) -> str:
    """Of each process, on machines like this one; torchrun would take 1."""
    return str(job.threads or max(1, num_cores() // job.processes))
