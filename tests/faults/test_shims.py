"""Runs whose processes were changed at their start: their clocks, and what their errors say."""

import os
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.runs import STARTING, Started, lines, state

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
    for fault, code in (("sleep=1@step:rank0:step8,kill@backward:rank0:step8", 137), ("", 0)):
        ended = Started(corpus, run_dir, STEPS, fault=fault, **environ).end()
        words = ["rank 0 was killed by SIGKILL"] if fault else ["goes on from step 6"]
        found = [6, 3] if fault else [14, 12]
        ended.must(code=code, within=10 if fault else STARTING, words=words, commits=found)
        if fault:  # the older one seems to be of next year
            os.utime(run_dir / "checkpoints" / "step-00000003", (2**31, 2**31))
    assert "step  7" in ended.output and "step  6" not in ended.output
    for rank in (0, 1):
        seen = [int(path.read_text()) for path in looks.glob(f"{rank}-*")]
        assert len(seen) >= 2 and min(seen) > 1, seen
    assert state(run_dir, 14) == state(unbroken, 14)
    for line in lines(run_dir):
        assert 0 < line["train/seconds"] < 60 and line["train/tokens_per_second"] > 0
        assert 0 <= line["train/data_wait"] <= 1


# A fault that would be a signal is an error instead, in whose words is what nobody may read.
ERROR_WITH_SECRETS = """
import os
def kill(pid, signum):
    url = f"https://me:{os.environ['PLANTED']}@host/x"
    raise OSError(5, f"{url} refuses {os.environ['WANDB_API_KEY']}")
if "RANK" in os.environ or "IN_THE_LAUNCHER" in os.environ:
    os.kill = kill
"""


def test_no_secret_is_in_anything_that_is_left(corpus: Path, tmp_path: Path) -> None:
    """Row 49: a crash in each phase, and everything that it wrote."""
    canary, planted = "canary-7f3a9c51d2", "planted-b81e40c6a5"
    environ = {"WANDB_API_KEY": canary, "HF_TOKEN": canary, "WANDB_MODE": "offline"}
    words = ("logging=wandb", "logging.mode=offline", "run.seed=1", "train.steps=7")
    told = {"PLANTED": planted, "PYTHONPATH": shim(tmp_path, ERROR_WITH_SECRETS)}
    early = {**told, "IN_THE_LAUNCHER": "1"}
    run_dir, late = tmp_path / "run", "sleep=1@step:rank1:step5,"  # until step 3 is saved
    for fault, code, more, found in (
        ("term@write run/.probe-*", 6, early, []),  # the launcher looks at the folder
        ("exception@init:rank0", 1, {}, []),
        ("term@write run/config.yaml:rank0", 6, told, []),
        (f"{late}exception@backward:rank1:step5", 1, {}, [3]),
        (f"{late}term@backward:rank1:step5", 1, told, [3]),
        ("term@write step-*/manifest.json:rank0", 6, told, [3]),
        ("memory@save:rank0:step6", 8, {}, [3]),
        ("term@write report/summary.md:rank0", 6, told, [7, 6]),  # all is trained and saved
    ):
        started = Started(
            *(corpus, run_dir, *words, "checkpoint.max_failed_saves=1"),
            **{"fault": fault, "CAME_TRACEBACK": "1", **environ, **more},
        )
        said = ["fault: ", *(["https://***@host/x refuses ***"] if more else [])]
        started.end().must(code=code, within=30, words=said, commits=found)
    address = f"data.cache_dir=https://me:{canary}@host/x"
    Started(corpus, run_dir, address, **environ).end().must(
        code=2, within=10, words=["names no folder"], commits=[7, 6]
    )
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    for secret in (canary, planted):
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


# Who asks for an address outside, or connects to one, is refused and written down.
GUARD = """
import os, socket
file = os.open(f"{os.environ['ASKED']}/{os.environ.get('RANK', 'launcher')}-{os.getpid()}",
               os.O_CREAT | os.O_WRONLY | os.O_APPEND)
HERE = ("127.", "::1", "localhost", "0.0.0.0")
def guarded(real, place):
    def ask(*words, **named):
        host = words[place][0] if isinstance(words[place], tuple) else words[place]
        if isinstance(host, str) and not host.startswith(HERE) and host != socket.gethostname():
            os.write(file, f"{host}\\n".encode())
            raise OSError(f"the test allows no connection to {host}")
        return real(*words, **named)
    return ask
socket.getaddrinfo = guarded(socket.getaddrinfo, 0)
socket.socket.connect = guarded(socket.socket.connect, 1)
socket.socket.connect_ex = guarded(socket.socket.connect_ex, 1)
"""


def test_a_run_from_the_disk_asks_for_no_address_outside(
    corpus: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Row 38: text, vocabulary and model are here; nobody says that the machine is offline."""
    run_dir, asked = tmp_path / "run", tmp_path / "asked"
    asked.mkdir()
    environ = {"PYTHONPATH": shim(tmp_path, GUARD), "ASKED": str(asked)}
    words = (f"data.tokenizer={unbroken / 'tokenizer.json'}", "train.steps=4")
    Started(corpus, run_dir, *words, **environ, HF_HUB_OFFLINE="0").end().must(
        code=0, within=STARTING, words=[], commits=[4, 3]
    )
    guards = list(asked.iterdir())
    assert {path.name.partition("-")[0] for path in guards} >= {"launcher", "0", "1"}
    assert [path.read_text() for path in guards if path.read_bytes()] == []
