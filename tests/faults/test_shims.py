"""Runs whose processes were changed at their start: their clocks, and what their errors say."""

import json
import os
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.runs import Started, commits, state

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]


def shim(folder: Path, code: str) -> str:
    """The PYTHONPATH with which every Python runs `code` at its start."""
    (folder / "shim").mkdir()
    (folder / "shim" / "sitecustomize.py").write_text(code)
    return os.pathsep.join([str(folder / "shim"), os.environ.get("PYTHONPATH", "")])


# The wall clock jumps with every look; how many there were is in a file of the process.
JUMPING_CLOCK = """
import os, time
who = os.environ.get("RANK", "launcher")
looks = [0]
file = os.open(f"{os.environ['LOOKS']}/{who}-{os.getpid()}", os.O_CREAT | os.O_WRONLY)
def jumping(real, unit):
    def look():
        looks[0] += 1
        os.pwrite(file, str(looks[0]).encode(), 0)
        return real() + (-3600, 365 * 24 * 3600)[looks[0] % 2] * unit
    return look
time.time, time.time_ns = jumping(time.time, 1), jumping(time.time_ns, 10**9)
"""


def test_a_clock_that_jumps_changes_nothing(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    """Row 43: that of every process, and the times of the commits."""
    run_dir, looks = tmp_path / "run", tmp_path / "looks"
    looks.mkdir()
    environ = {"PYTHONPATH": shim(tmp_path, JUMPING_CLOCK), "LOOKS": str(looks)}
    for fault, code in (("kill@backward:rank0:step8", 137), ("", 0)):
        ended = Started(corpus, run_dir, STEPS, fault=fault, **environ).end()
        assert ended.code == code, ended.output
        assert commits(run_dir) == ([6, 3] if fault else [14, 12])
        if fault:  # the older one seems to be of next year
            os.utime(run_dir / "checkpoints" / "step-00000003", (2**31, 2**31))
    assert "step  7" in ended.output and "step  6" not in ended.output
    for rank in (0, 1):
        seen = [int(path.read_text()) for path in looks.glob(f"{rank}-*")]
        assert len(seen) >= 2 and min(seen) > 1, seen
    assert state(run_dir, 14) == state(unbroken, 14)
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    assert all(0 < line["train/seconds"] < 60 for line in lines)


# A fault that would be a signal is an error instead, in whose words is what nobody may read.
ERROR_WITH_SECRETS = """
import os
def kill(pid, signum):
    url = f"https://me:{os.environ['PLANTED']}@host/x"
    raise OSError(5, f"{url} refuses {os.environ['WANDB_API_KEY']}")
if "RANK" in os.environ:
    os.kill = kill
"""


def test_no_secret_is_in_anything_that_is_left(corpus: Path, tmp_path: Path) -> None:
    """Row 49: a crash in each phase, and everything that it wrote."""
    canary, planted = "canary-7f3a9c51d2", "planted-b81e40c6a5"
    environ = {"WANDB_API_KEY": canary, "HF_TOKEN": canary, "WANDB_MODE": "offline"}
    words = ("logging=wandb", "logging.mode=offline", "run.seed=1", "train.steps=100000")
    told = {"PLANTED": planted, "PYTHONPATH": shim(tmp_path, ERROR_WITH_SECRETS)}
    run_dir = tmp_path / "run"
    for fault, code, more in (
        ("exception@init:rank0", 1, {}),
        ("exception@backward:rank1:step4", 1, {}),
        ("term@backward:rank1:step4", 1, told),
        ("term@write step-*/manifest.json:rank0", 6, told),
        ("memory@save:rank0:step6", 8, {}),
    ):
        started = Started(
            *(corpus, run_dir, *words, "checkpoint.max_failed_saves=1"),
            **{"fault": fault, "CAME_TRACEBACK": "1", **environ, **more},
        )
        ended = started.end()
        assert ended.code == code and "fault: " in ended.output, ended.output
        if more:
            assert "https://***@host/x refuses ***" in ended.output, ended.output
    url = Started(corpus, run_dir, f"data.cache_dir=https://me:{canary}@host/x", **environ).end()
    assert url.code == 2 and "names no folder" in url.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    for secret in (canary, planted):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
