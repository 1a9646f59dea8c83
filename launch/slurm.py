"""SLURM: a batch script with one torchrun on every machine.

sbatch --- script: trap USR1 --- srun --- node 0: torchrun --- ranks
             |                        `-- node 1: torchrun --- ranks
             `- told USR1 before the time is over: srun passes it on, the ranks save and leave,
                and the job goes back into the queue, with the same words and the same folder
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from launch import torchrun
from launch.spec import Job, SlurmConfig, Start

_SCRIPT = """\
#!/bin/bash
{options}
set -u
{setup}
{environ}

# Where the machines meet: the first of them, on a port that another job will hardly have.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}}
cores=$((SRUN_CPUS_PER_TASK / {processes}))
export OMP_NUM_THREADS={threads}
on_each=({srun})

# Before the time is over: the ranks save and leave, then the job is queued again.
told=0 running=
trap 'told=1; [ -n "$running" ] && kill -USR1 "$running" 2>/dev/null' USR1

# What would fail after an hour fails now, on the machine where it would.
"${{on_each[@]}}" {check} || exit
[ "$told" = 0 ] || {{ scontrol requeue "$SLURM_JOB_ID"; exit; }}

# --output: of each machine; one that is queued again writes on.
"${{on_each[@]}}" --output={logs}/%j-%N.log --open-mode=append --kill-on-bad-exit=1 \\
  {command} &
running=$!
while true; do  # a trap ends `wait`, not what it waits for
  wait "$running"
  code=$?
  [ "$code" -gt 128 ] && kill -0 "$running" 2>/dev/null || break
done
if [ "$told" = 1 ] && [ "$code" != 0 ]; then
  echo "saved; queued again"
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
"""


def render(job: Job) -> Start:
    """The batch script, in the run folder, and its submission."""
    path = f"{job.folder}/launch/job.sbatch"
    return Start(("sbatch", path), files={path: script(job)})


def script(job: Job) -> str:
    """The text of the batch script."""
    slurm, logs = job.launch.slurm, shlex.quote(_logs(job))
    meet = ["--nnodes", str(job.launch.nodes), *torchrun.rendezvous("HEAD", "ID")]
    threads = str(job.threads) if job.threads else "$((cores > 0 ? cores : 1))"
    words = " ".join(map(_word, torchrun.command(job, meet)))
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {shlex.quote(option)}" for option in _options(job)),
        setup="\n".join(slurm.setup or [f"export PATH={shlex.quote(_programs())}:$PATH"]),
        environ="\n".join(f"export {k}={v}" for k, v in torchrun.environ(job).items()),
        processes=job.processes,
        threads=threads,
        srun=" ".join(["srun", "--ntasks-per-node=1", *map(shlex.quote, _container(slurm))]),
        check=" ".join([*_inside(slurm), "came-check", "--environment"]),
        logs=logs,
        command=" ".join([*_inside(slurm), words]),
    )


def _word(word: str) -> str:
    """For the shell; what only the job knows stands there by name."""
    return {"HEAD": '"$head:$port"', "ID": '"$SLURM_JOB_ID"'}.get(word) or shlex.quote(word)


def _options(job: Job) -> list[str]:
    launch, slurm = job.launch, job.launch.slurm
    given = {"partition": slurm.partition, "account": slurm.account, "time": slurm.time}
    given |= {"mem": slurm.memory, "gpus-per-node": launch.gpus_per_node or None}
    return [
        f"--job-name={job.name}",
        f"--nodes={launch.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={slurm.cpus_per_node}" if slurm.cpus_per_node else "--exclusive",
        *(f"--{name}={value}" for name, value in given.items() if value is not None),
        f"--output={_logs(job)}/%j.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{slurm.warn_seconds}",
        *slurm.options,
    ]


def _logs(job: Job) -> str:
    """As SLURM reads names of files: %j is the job."""
    return f"{job.folder}/launch".replace("%", "%%")


def _programs() -> str:
    """Where this environment has its programs, as other machines see it too."""
    return str(Path(sys.executable).parent)


def _container(slurm: SlurmConfig) -> list[str]:
    if slurm.container is None or slurm.container.endswith(".sif"):
        return []
    mounts = [f"--container-mounts={','.join(slurm.mounts)}"] if slurm.mounts else []
    return [f"--container-image={slurm.container}", *mounts]


def _inside(slurm: SlurmConfig) -> list[str]:
    if slurm.container is None or not slurm.container.endswith(".sif"):
        return []
    mounts = [word for mount in slurm.mounts for word in ("--bind", shlex.quote(mount))]
    return ["apptainer", "exec", "--nv", *mounts, shlex.quote(slurm.container)]
