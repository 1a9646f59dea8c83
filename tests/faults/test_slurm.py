"""The SLURM script of docs/reliability.md, with stand-ins for what a cluster has."""

import os
import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
SRUN = """#!/bin/bash
[ "$1" = --cpus-per-task=32 ] && shift
exec "$@"
"""
# As the launcher does: told by SIGUSR1 it leaves with 75.
TRAIN = """#!/bin/bash
trap 'exit 75' USR1
[ "$HOW" = told ] && kill -USR1 $$
exit "$HOW"
"""


@pytest.mark.parametrize(
    ("how", "code", "requeued"), [("told", 75, "requeue 17\n"), ("0", 0, ""), ("3", 3, "")]
)
def test_the_job_is_queued_again_where_it_was_told_to_stop(
    tmp_path: Path, how: str, code: int, requeued: str
) -> None:
    """Row 7."""
    script = next(s for s in re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S) if "srun" in s)
    assert "--requeue" in script and "--signal=USR1@" in script
    scontrol = f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued\n'
    programs = {"srun": SRUN, "came-train": TRAIN, "scontrol": scontrol, "job": script}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "requeued").touch()
    environ = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOW": how,
        "SLURM_JOB_ID": "17",
        "SLURM_CPUS_PER_TASK": "32",
    }
    assert subprocess.run([tmp_path / "job"], env=environ, timeout=60).returncode == code
    assert (tmp_path / "requeued").read_text() == requeued
