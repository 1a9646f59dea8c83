"""The compiled kernel: built once whoever asks first, never found half done, never planted."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from came.kernels import compile as compiling

ROOT = Path(__file__).resolve().parents[3]
SOURCE = 'extern "C" int answer() { return ANSWER; }\n'
ASK = """
import sys
from pathlib import Path
from came.kernels.compile import library
print(library("tiny", [Path(sys.argv[1])], ["ANSWER=42"]).answer())
"""
COMPILER = """#!/bin/sh
case " $* " in *" -c "*) echo $$ >> {log}; sleep {seconds};; esac
exec c++ "$@"
"""


@pytest.fixture
def ask(tmp_path: Path):
    """Starts a process that asks for the library, with a compiler that keeps a log."""
    source, log = tmp_path / "tiny.cpp", tmp_path / "log"
    source.write_text(SOURCE)
    compiler = tmp_path / "logging-c++"

    def start(seconds: float = 0) -> subprocess.Popen[str]:
        compiler.write_text(COMPILER.format(log=log, seconds=seconds))
        compiler.chmod(0o755)
        return subprocess.Popen(
            [sys.executable, "-c", ASK, str(source)],
            env={**os.environ, "CXX": str(compiler), "CAME_CACHE_DIR": str(tmp_path / "cache")},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def answers(*processes: subprocess.Popen[str]) -> list[str]:
    return [process.communicate(timeout=120)[0].split("\n")[-2] for process in processes]


def num_builds(folder: Path) -> int:
    log = folder / "log"
    return len(log.read_text().split()) if log.exists() else 0


def test_of_many_ranks_one_builds_and_the_others_wait(ask, tmp_path: Path) -> None:
    assert answers(ask(), ask(), ask()) == ["42"] * 3
    assert num_builds(tmp_path) == 1
    assert answers(ask()) == ["42"]
    assert num_builds(tmp_path) == 1  # found


def test_who_is_killed_while_building_is_not_waited_for(ask, tmp_path: Path) -> None:
    killed = ask(seconds=60)
    while num_builds(tmp_path) == 0:
        time.sleep(0.05)
    waiting = ask(seconds=0)
    time.sleep(0.5)
    os.killpg(killed.pid, signal.SIGKILL)
    assert answers(waiting) == ["42"]
    assert num_builds(tmp_path) == 2
    killed.communicate()


def test_what_is_damaged_is_built_anew(ask, tmp_path: Path) -> None:
    assert answers(ask()) == ["42"]
    (found,) = (tmp_path / "cache").rglob("tiny.so")
    found.write_bytes(found.read_bytes()[:100])
    assert answers(ask()) == ["42"]
    assert num_builds(tmp_path) == 2


def test_a_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library found there would run as ours, whoever has put it there."""
    monkeypatch.setenv("CAME_CACHE_DIR", str(tmp_path))
    open_to_all = tmp_path / "came-kernels"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    source = tmp_path / "tiny.cpp"
    source.write_text(SOURCE)
    with pytest.raises(RuntimeError, match="others may write there.*CAME_CACHE_DIR"):
        compiling.library("tiny", [source], ["ANSWER=1"])


def test_without_a_compiler_plain_torch_runs_and_says_so_once(tmp_path: Path) -> None:
    script = """
import warnings, torch
from came import CAME
from came.kernels import eager
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        param = torch.nn.Parameter(torch.ones(8, 8))
        param.grad = torch.ones(8, 8)
        optimizer = CAME([param], lr=0.1)
        optimizer.step()
        assert (param < 1).all() and optimizer.last_plans()[0].kernel is eager
print([str(found.message) for found in caught if "came" in str(found.message).lower()])
"""
    ran = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "CXX": "no-such-compiler", "CAME_CACHE_DIR": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stdout.count("there is no C++ compiler 'no-such-compiler'") == 1, ran
    assert ran.stdout.count("slower") == 1
