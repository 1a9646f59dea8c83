"""A real SLURM (make test-slurm): submitted, queued again in the middle, the same run goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import PROGRAMS, cluster, state, wait_for
from tests.trainers.data.corpus import write_text

REPOSITORY = Path(__file__).resolve().parents[2]
SEARCH = f"{Path(sys.executable).parent}:/usr/sbin:{os.environ['PATH']}"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
STEPS = 60
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with cluster(tmp_path_factory.mktemp("slurm")) as environ:
        yield environ | {"PATH": f"{Path(sys.executable).parent}:{environ['PATH']}"}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    text = write_text(folder / "text.txt", num_documents=300)
    return [
        *("experiment=quickstart", "data=text", f"data.path={text}", f"data.cache_dir={folder}"),
        *("data.vocab_size=300", "eval.samples=16", f"train.steps={STEPS}", "train.log_every=1"),
        *("checkpoint.every=5", "batch.global_size=8"),
    ]


def train(words: list[str], environ: dict[str, str], *more: str) -> str:
    done = subprocess.run(
        ["came-train", *words, *more],
        cwd=REPOSITORY,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]


def steps_done(run: Path) -> int:
    if not (run / "metrics.jsonl").exists():
        return 0
    return max((step for step, _ in losses(run)), default=0)


def wait_for_step(run: Path, step: int, job: str, environ: dict[str, str]) -> None:
    limit = time.monotonic() + 180
    while steps_done(run) < step:
        assert time.monotonic() < limit, f"{job} {state(job, environ)}: {logs(run)}"
        assert state(job, environ) not in ENDED, logs(run)
        time.sleep(0.2)


def logs(run: Path) -> str:
    return "\n".join(f"{f.name}:\n{f.read_text()}" for f in sorted((run / "launch").glob("*.log")))


def test_a_job_that_is_queued_again_goes_on_in_the_same_folder(
    slurm: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    train(words, slurm, f"run.dir={unbroken}", "launch.processes=2")
    told = train(
        words, slurm, f"run.dir={run}", "launch=slurm", "launch.processes=2", "launch.submit=true"
    )
    job = told.split()[-1]
    # As SLURM does before the time is over.
    wait_for_step(run, 12, job, slurm)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], env=slurm, check=True)
    assert wait_for(job, {"PENDING", *ENDED}, slurm, 60) == "PENDING", logs(run)
    before = steps_done(run)
    assert wait_for(job, {"RUNNING", *ENDED}, slurm, 60) == "RUNNING", logs(run)
    # As an administrator does, or SLURM when a machine fails.
    wait_for_step(run, before + 12, job, slurm)
    subprocess.run(["scontrol", "requeue", job], env=slurm, check=True)
    assert wait_for(job, {"PENDING"}, slurm, 60) == "PENDING"
    assert wait_for(job, ENDED, slurm, 240) == "COMPLETED", logs(run)
    assert losses(run) == losses(unbroken)
    assert "saved; queued again" in logs(run)
