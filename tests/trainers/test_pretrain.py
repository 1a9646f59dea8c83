"""The door from outside: what is refused, how fast, in which words; and which way words travel."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainers.pretrain import START, read

REPOSITORY = Path(__file__).resolve().parents[2]

# The door with nothing behind it: preparing and training only say that they were reached.
STAND_INS = """
import contextlib, os, sys, types

def module(name, **names):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(names)

def open_phases(config): print("prepared", config.data.name, config.objective.sequence_length)
def check(path): print("checked", path)
@contextlib.contextmanager
def recorded(run_dir, rank):
    try: yield
    except Exception: print("recorded", run_dir, rank, flush=True); raise
def run(config):
    print("rank", os.environ["RANK"], "of", config.launch.processes, config.train.steps, flush=True)
    exec(os.environ.get("IN_THE_RUN", ""))

module("trainers.data.splits", look_for_text=lambda config: None, open_phases=open_phases)
module("trainers.run.folder", check=check)
module("trainers.run.ended", recorded=recorded, note_outcome=lambda *words: None)
module("trainers.run.loop", run=run)
from trainers.pretrain import main
main()
"""


def door(*words: str, code: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    command = ["-c", code] if code else ["-m", "trainers.pretrain"]
    removed = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CAME_TRACEBACK")
    kept = {name: value for name, value in os.environ.items() if name not in removed}
    return subprocess.run(
        [sys.executable, *command, *words],
        cwd=REPOSITORY,
        env=kept | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_typing_error_is_answered_at_once_and_in_one_line():
    start = time.monotonic()
    done = door("trian.steps=3")
    assert time.monotonic() - start < 5  # 0.3 s on an idle machine; importing torch alone takes 2
    message, record = done.stderr.splitlines()
    assert done.returncode == 2
    assert message == "error: unknown key 'trian.steps'; did you mean 'train.steps'?"
    assert json.loads(record) == {
        "reason": message.removeprefix("error: "),
        "rank": None,
        "step": None,
        "exit_code": 2,
    }


def test_torch_is_not_imported_before_the_configuration_is_right():
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(sorted({'torch', 'numpy', 'wandb'} & sys.modules.keys())))\n"
        "from trainers.pretrain import main\n"
        "main()"
    )
    assert door("trian.steps=3", code=code).stdout == "[]\n"
    assert door("--help", code=code).stdout.endswith("[]\n")


def test_help_fits_a_screen():
    done = door("--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 24
    assert max(map(len, done.stdout.splitlines())) < 80
    for word in ("data.path=my_texts/", "--multirun", "launch=slurm", "--choices", "--keys"):
        assert word in done.stdout


def test_choices_are_the_files_of_the_tree():
    listed = door("--choices").stdout
    assert "bert_large_32k" in listed and "adamw" in listed and "slurm" in listed
    assert max(map(len, listed.splitlines()[1:])) <= 100


def test_keys_are_all_that_a_configuration_has():
    listed = [line.split() for line in door("--keys").stdout.splitlines()]
    assert next(words for words in listed if words[0] == "batch")[:2] == ["batch", "global_size"]
    assert max(map(len, door("--keys").stdout.splitlines())) <= 100


def test_a_traceback_is_shown_only_when_asked_for():
    assert "Traceback" not in door("x=1").stderr
    assert "Traceback" in door("x=1", "--traceback").stderr
    assert "Traceback" in door("x=1", CAME_TRACEBACK="1").stderr


def test_of_several_ranks_one_says_what_is_wrong_with_the_configuration():
    first, second = (door("x=1", RANK=rank, WORLD_SIZE="2") for rank in "01")
    assert (first.returncode, second.returncode) == (2, 2)
    assert "unknown key 'x'" in first.stderr
    assert second.stderr == ""


def test_a_rank_without_a_world_is_refused():
    done = door(RANK="0")
    assert done.returncode == 2
    assert "WORLD_SIZE" in done.stderr


def test_a_rank_checks_the_batch_against_its_world():
    done = door("batch.global_size=16", RANK="0", WORLD_SIZE="3")
    assert done.returncode == 2
    assert "not divisible by 3 processes" in done.stderr


def test_a_rank_trains_and_starts_nothing():
    done = door("train.steps=5", code=STAND_INS, RANK="1", WORLD_SIZE="2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "rank 1 of 2 5\n", "")


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        ("from trainers.errors import DataError; raise DataError('no text')", 3, "error: no text"),
        ("raise RuntimeError('gloo: Connection closed by peer')", 7, "another rank died"),
        ("raise KeyError('bug')", 1, "error: KeyError: 'bug'"),
        # A thread that never ends, as those of a process group whose other members are gone.
        (
            "import threading; threading.Thread(target=threading.Event().wait).start(); "
            "raise MemoryError",
            8,
            "batch.micro_size",
        ),
    ],
)
def test_a_failing_rank_ends_with_its_code_and_waits_for_nobody(failure, code, words):
    done = door(code=STAND_INS, RANK="0", WORLD_SIZE="1", IN_THE_RUN=failure)
    assert done.returncode == code
    assert words in done.stderr and done.stdout.endswith("recorded runs/quickstart 0\n")
    assert json.loads(done.stderr.splitlines()[-1])["exit_code"] == code


def test_the_launcher_checks_prepares_and_then_starts_the_ranks(tmp_path):
    """The ranks are real processes of the real door; their run stops at the first missing piece."""
    launcher = STAND_INS.replace(
        "from trainers.pretrain import main",
        "import launch.local, trainers.pretrain\n"
        "from trainers.pretrain import main\n"
        "def started(command, processes, threads, *, patience):\n"
        "    print('started', command[1:], processes, threads, patience)\n"
        "    return launch.local.Outcome(9, rank=0)\n"
        "trainers.pretrain.run_local = started",
    )
    words = ["run.dir=here", "launch.processes=4", "runtime.threads=3"]
    done = door(*words, "--local_rank=0", "--traceback", code=launcher)
    assert done.returncode == 9
    expected = ["-c", START, "--traceback", *words]
    assert done.stdout.splitlines() == [
        "checked here",
        "prepared pydocs 64",
        f"started {expected} 4 3 28.0",
    ]


@pytest.mark.parametrize("what", ["data.path=absent", "data.path=empty", "run.dir=file/run"])
def test_what_the_launcher_refuses_costs_no_rank(what, tmp_path):
    """Nothing behind the door is a stand-in but the ranks; the folder comes before what is read."""
    code = (
        "import trainers.pretrain\n"
        "trainers.pretrain.run_local = lambda *words, **named: print('ranks were started')\n"
        "trainers.pretrain.main()"
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "text.txt").touch()  # of which nothing could be prepared
    key, _, name = what.partition("=")
    places = {"data.path": tmp_path / "text.txt", "run.dir": tmp_path / "run"}
    places |= {key: tmp_path / name, "data.cache_dir": tmp_path / "cache"}
    begin = time.monotonic()
    done = door("data=text", *(f"{key}={path}" for key, path in places.items()), code=code)
    assert time.monotonic() - begin < 30
    assert done.returncode == (3 if key == "data.path" else 6), done.stderr
    assert str(tmp_path / name) in done.stderr and "ranks were started" not in done.stdout
    assert json.loads(done.stderr.splitlines()[-1])["exit_code"] == done.returncode


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_scheduler_may_stop_the_launcher_before_there_are_ranks(name):
    launcher = STAND_INS.replace(
        "def open_phases(config):",
        f"def open_phases(config): os.kill(os.getpid(), {signal.Signals[name].value});",
    )
    done = door("run.dir=here", code=launcher)
    assert done.returncode == 75
    assert f"{name}: stopped before the first step, the same command goes on" in done.stderr
    assert "prepared" not in done.stdout


def test_words_of_other_launchers_are_dropped():
    line = read(["--local_rank=1", "a=1", "--local-rank", "1", "b=2", "--traceback", "-h"], {})
    assert (line.overrides, line.traceback, line.help) == (["a=1", "b=2"], True, True)
    assert read([], {"CAME_TRACEBACK": "1"}).traceback


def test_ranks_come_from_here_wherever_the_person_stands(tmp_path):
    """A folder `trainers` of the user's was imported in place of ours."""
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "__init__.py").write_text("raise SystemExit('theirs')")
    done = subprocess.run(
        [sys.executable, "-c", START, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "came-train" in done.stdout, done.stderr


@pytest.mark.parametrize("environ", [{"RANK": "abc"}, {"RANK": "0", "WORLD_SIZE": "x"}])
def test_a_garbled_environment_is_a_configuration_error(environ):
    done = door("train.steps=1", **environ)
    assert done.returncode == 2
    assert "must be a whole number" in done.stderr and "Traceback" not in done.stderr


def test_closed_streams_change_no_exit_code():
    command = f"{sys.executable} -m trainers.pretrain foo=1 2>&-"
    assert subprocess.run(command, shell=True, cwd=REPOSITORY).returncode == 2
    command = f"{sys.executable} -m trainers.pretrain --help >&-"
    assert subprocess.run(command, shell=True, cwd=REPOSITORY).returncode == 0
