"""`came-status`: what a folder says is told, whatever lies in it, and nothing is disturbed."""

import contextlib
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from launch.local import Outcome
from trainers import status
from trainers.errors import (
    DataError,
    FolderInUseError,
    MemoryLimitError,
    PeerLostError,
    StoppedError,
)
from trainers.run import ended
from trainers.run.folder import RunFolder
from trainers.run.lock import is_owned
from trainers.run_state import RunState, is_run, read_state
from trainers.status_table import plain, show

ROOT = Path(__file__).parents[2]


def make_run(folder: Path, *steps: int, host: str = "", total: int = 100) -> Path:
    """A run of so many steps in all that has logged these."""
    folder.mkdir(parents=True, exist_ok=True)
    owner = {"host": host or socket.gethostname(), "pid": 1, "start": "2026-01-01T00:00:00+00:00"}
    (folder / ".lock").write_text(json.dumps(owner))
    settings = {"train": {"steps": total, "log_every": 10}, "run": {"dir": str(folder)}}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "provenance.json").write_text('{"starts": [{"host": "a"}]}')
    rows = [
        {"step": step, "train/seconds": 0.5, "train/tokens_per_second": 1500.0} for step in steps
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def add_checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


def fail(run: Path, error: Exception, rank: int | None = 0) -> None:
    with pytest.raises(type(error)), ended.recorded(run, rank):
        raise error


def test_a_running_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 10, 20)
    for step in (10, 20):
        add_checkpoint(run, step)
    (run / "checkpoints" / "step-00000030.tmp-5f").mkdir()
    with RunFolder.open(run, rank=0):
        found = read_state(run)
    assert (found.state, found.step, found.steps) == ("running", 20, 100)
    assert (found.tokens_per_second, found.seconds_left) == (1500.0, 40.0)
    assert found.checkpoint_step == 20 and 0 <= found.checkpoint_age < 60
    assert found.last_error is None and found.notes == ()


def test_the_time_to_go_is_by_the_last_logs(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", *range(1, 21))
    rows = [{"step": n, "train/seconds": 9.0 if n < 12 or n == 20 else 1.0} for n in range(1, 21)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with RunFolder.open(run, rank=0):
        assert read_state(run).seconds_left == 80.0


def test_a_finished_a_stopped_and_a_run_that_never_started(tmp_path: Path) -> None:
    assert read_state(make_run(tmp_path / "a", 50, 100)).state == "finished"
    silent = read_state(make_run(tmp_path / "b", 50))
    assert (silent.state, silent.seconds_left, silent.last_error) == ("stopped", None, None)
    only_checked = tmp_path / "c"
    RunFolder.open(only_checked, rank=0).close()
    assert is_run(only_checked, [".lock"]) and read_state(only_checked).state == "never started"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / ".lock").write_text("")  # as other programs have them
    assert not is_run(tmp_path / "d", [".lock"])


def test_the_last_error_belongs_to_its_start(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 10)
    fail(run, MemoryLimitError("out of\nmemory"))
    found = read_state(run)
    assert (found.state, found.last_error) == ("failed", "out of memory")
    with RunFolder.open(run, rank=0):
        found = read_state(run)
        assert found.state == "running"
        assert found.last_error == "(of an earlier start) out of memory"
    assert read_state(run).state == "stopped"
    fail(run, StoppedError("stopped by SIGTERM after step 10", 75))
    found = read_state(run)
    assert (found.state, found.last_error) == ("stopped", "stopped by SIGTERM after step 10")
    with RunFolder.open(run, rank=0):
        assert read_state(run).last_error is None, "that it was stopped before is no trouble"


def test_who_only_lost_a_peer_gives_way_to_who_knows_why(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 10)
    fail(run, PeerLostError("rank 1 did not answer"))
    ended.note_outcome(run, Outcome(0))
    ended.note_outcome(run, Outcome(137, rank=1, signum=9))
    fail(run, PeerLostError("rank 1 did not answer"), rank=2)
    told = ended.read(run)
    assert told["reason"].startswith("rank 1 was killed by SIGKILL")
    assert (told["rank"], told["exit_code"], told["is_last"]) == (1, 137, True)


def test_a_record_holds_no_secret_and_is_of_its_own_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-0123456789")
    run = make_run(tmp_path / "a")
    fail(run, FolderInUseError("somebody is there"))
    assert ended.read(run) == {}
    fail(run, DataError("cannot read https://me:canary-0123456789@host/"), rank=None)
    assert "canary" not in (run / "ended.json").read_text()
    fail(tmp_path / "absent", DataError("no text"), rank=None)
    assert not (tmp_path / "absent").exists()


def test_a_run_of_another_machine_is_told_by_its_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 10, host="elsewhere")
    found = read_state(run)
    assert found.state == "running" and "elsewhere" in found.notes[0]
    before = time.time() - 3600
    os.utime(run / "metrics.jsonl", (before, before))
    assert read_state(run).state == "stopped"
    with RunFolder.open(run, rank=0):
        found = read_state(run)
    assert found.state == "running" and "does it hang?" in found.notes[0]


def test_only_the_end_of_long_metrics_is_read(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", *range(1, 20_001), total=20_000)
    begin = time.perf_counter()
    assert read_state(run).state == "finished"
    assert time.perf_counter() - begin < 0.5


def test_a_look_refuses_no_start(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    assert is_owned(run) is False
    lock = os.open(run / ".lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    threading.Timer(0.1, os.close, [lock]).start()
    with RunFolder.open(run, rank=0):
        assert is_owned(run) is True


STATES = (
    RunState("x", "running", 20, 1600, 41234.5, 3723.0, 10, 65.0),
    RunState("x", "failed", last_error="out of memory", notes=("config.yaml cannot be read",)),
)


def test_lines_are_aligned_and_plain() -> None:
    head, running, failed = plain(["a", "[red]b\x1b[2J"], STATES).splitlines()
    assert running == ("a           running  20/1,600     41.2k  1:02:03  10, 0:01:05 ago")
    assert failed.endswith("  out of memory; config.yaml cannot be read")
    assert "[red]b?[2J" in failed and "\x1b" not in failed
    assert head.index("state") == running.index("running") == failed.index("failed")


@pytest.mark.parametrize("width", [20, 40, 65, 80, 200])
def test_a_table_is_as_wide_as_the_terminal(width: int) -> None:
    console = Console(width=width, force_terminal=True, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    show(["a", "[red]b"], STATES, console)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    text = "".join("".join(lines).split())
    if width >= 40:
        assert "[red]b" in text and "20/1,600" in text
    assert ("checkpoint" in text) == (width >= 90)


def test_the_command_for_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, step in (("a", 100), ("deep/b", 10)):
        make_run(tmp_path / name, step)
    assert status.main(["--json", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    told = {run["run"]: (run["state"], run["step"]) for run in found["runs"]}
    assert told == {"a": ("finished", 100), "deep/b": ("stopped", 10)}
    assert status.main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    (tmp_path / "none").mkdir()
    assert status.main([str(tmp_path / "none")]) == 0
    assert "no run in" in capsys.readouterr().out
    assert status.main([str(tmp_path / "absent")]) == 3


def test_it_answers_without_torch_in_plain_letters(tmp_path: Path) -> None:
    make_run(tmp_path / "\u00e9", 10)
    script = (
        "import sys; from trainers.status import main\n"
        f"code = main([{str(tmp_path)!r}])\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("?")


def test_a_terminal_without_colour(tmp_path: Path) -> None:
    make_run(tmp_path / "a", 10)
    ours, theirs = os.openpty()
    environment = os.environ | {"NO_COLOR": "1", "COLUMNS": "60", "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "trainers.status", str(tmp_path)]
    done = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the terminal hangs up when the process ends
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert done.wait(timeout=30) == 0
    text = shown.decode()
    assert "stopped" in text and "\u2503" in text, "no table was drawn"
    assert "\x1b[33m" not in text
    assert max(len(re.sub("\x1b\\[[0-9;]*m", "", line)) for line in text.splitlines()) <= 60


def test_what_the_launcher_refuses_is_found_in_a_folder_that_was_there(tmp_path: Path) -> None:
    """A mistyped data.path once left a new folder, and a row of a run that never was."""
    words = ["data=text", f"data.path={tmp_path / 'no.txt'}", f"run.dir={tmp_path / 'run'}"]
    for is_there in (False, True):
        if is_there:
            (tmp_path / "run").mkdir()
        command = [sys.executable, "-m", "trainers.pretrain", *words]
        command += [f"data.cache_dir={tmp_path / 'cache'}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 3, done.stderr
        assert (tmp_path / "run").exists() == is_there
    found = read_state(tmp_path / "run")
    assert found.state == "failed" and "no.txt" in str(found.last_error)
