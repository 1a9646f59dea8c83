"""A SLURM of one machine, as the user who runs the tests, in a folder of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from launch.local import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobRequeue=1
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yields the environment in which `sbatch` and the like talk to it; ends all of it after."""
    conf = folder / "slurm.conf"
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    conf.write_text(
        CONF.format(
            host=socket.gethostname().partition(".")[0],
            user=getpass.getuser(),
            folder=folder,
            controller_port=free_port(),
            node_port=free_port(),
            cpus=len(os.sched_getaffinity(0)),
        )
    )
    environ = os.environ | {"SLURM_CONF": str(conf), "PATH": f"/usr/sbin:{os.environ['PATH']}"}
    with contextlib.ExitStack() as daemons:
        for command in (_munged(folder), ["slurmctld", "-D"], ["slurmd", "-D"]):
            log = daemons.enter_context(open(folder / f"{Path(command[0]).name}.out", "wb"))
            daemon = subprocess.Popen(command, env=environ, stdout=log, stderr=log)
            daemons.callback(_end, daemon)
            if command[0] == "munged":
                _until((folder / "munge.socket").exists, "munged")
        _until(lambda: "idle" in _out(["sinfo", "-h", "-o", "%t"], environ), "slurmd")
        yield environ
        _out(["scancel", "--user", getpass.getuser()], environ)
        _until(lambda: not _out(["squeue", "-h"], environ).strip(), "scancel")


def state(job: str, environ: dict[str, str]) -> str:
    """As PENDING, RUNNING, COMPLETED, FAILED."""
    text = _out(["scontrol", "show", "job", "-o", job], environ)
    return next((w[9:] for w in text.split() if w.startswith("JobState=")), "")


def wait_for(job: str, wanted: set[str], environ: dict[str, str], seconds: float) -> str:
    """The first of the `wanted` states that the job is in.

    SLURM lets a job that was queued again wait two minutes; here it waits five seconds. Less would
    start it while its first start is still being ended, in the second in which its credential was
    revoked, and slurmd refuses that ("Job credential revoked").
    """
    start = time.monotonic()
    pending = None
    while (found := state(job, environ)) not in wanted:
        assert time.monotonic() < start + seconds, f"job {job} is {found} after {seconds} s"
        pending = (pending or time.monotonic()) if found == "PENDING" else None
        if pending and time.monotonic() > pending + 5:
            _out(["scontrol", "update", f"JobId={job}", "StartTime=now"], environ)
        time.sleep(0.5)
    return found


def _munged(folder: Path) -> list[str]:
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    names = {"key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    files = [f"--{option}={folder}/munge.{end}" for option, end in names.items()]
    return ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files]


def _out(command: list[str], environ: dict[str, str]) -> str:
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
    return done.stdout


def _until(ready, what: str, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit, f"{what} does not answer"
        time.sleep(0.2)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(15)
    except subprocess.TimeoutExpired:
        daemon.kill()
