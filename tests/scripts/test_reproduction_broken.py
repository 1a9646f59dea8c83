"""Runs of a plan that came to a bad end, broken files, and commands that would break some."""

import contextlib
import dataclasses
import os
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from launch.local import ECHO
from scripts import reproduce
from scripts.reproduction import drive
from scripts.reproduction.order import Run
from scripts.reproduction.plan import Contestant, Plan, Task
from scripts.reproduction.tables import tables

TASK = Task("t", "A task", "eval/loss", (), (Contestant("came", (), 1.0),), beside="eval/other")
PLAN = Plan(jobs=2, seeds=3, factor=2.0, max_rates=3, words=(), tasks=(TASK,))
FIRST = Run("t", "came", 0, 0)
METRICS = '{"step": 1, "eval/loss": 9.0}\n{"step": 2, "eval/loss": 2.5, "eval/other": 7}\n'


def finished(out: Path, name: str = "lr+0_seed0") -> Path:
    folder = out / "t/came" / name
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text(METRICS)
    (folder / "config.yaml").write_text("train:\n  steps: 2\n")
    (folder / "outcome.json").write_text('{"exit_code": 0}')
    return folder


@pytest.fixture
def interrupts():
    """SIGINT raises, as `reproduce.main` has it, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def trainer(code: str, monkeypatch) -> None:
    monkeypatch.setattr(drive, "POLL", 0.02)
    monkeypatch.setattr(drive, "TRAIN", (sys.executable, "-c", textwrap.dedent(code)))


def test_a_lost_last_evaluation_is_not_replaced_by_the_one_before(tmp_path):
    """A line that the disk had no room for is left out, and the run goes on."""
    folder = finished(tmp_path)
    assert drive.read_results(PLAN, tmp_path) == {FIRST: 2.5}
    (folder / "metrics.jsonl").write_text(METRICS.splitlines()[0] + "\n")
    with pytest.raises(
        ValueError, match=r"lr\+0_seed0/metrics.jsonl ends at step 1 of 2: .*remove"
    ):
        drive.read_results(PLAN, tmp_path)


@pytest.mark.parametrize("content", ["", "[1]", "train: {", "train: {lr: 1}"])
def test_broken_settings_are_told_by_their_file(content, tmp_path):
    (finished(tmp_path) / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"seed0/config.yaml does not tell train.steps: "):
        drive.read_results(PLAN, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "outcome.json is no JSON: "),
        ("[1]", "outcome.json holds a list, not a dict"),
        ("{}", "outcome.json has no exit code: remove it"),
    ],
)
def test_a_broken_outcome_is_told_by_its_name(content, said, tmp_path, capsys):
    folder = tmp_path / "gpt2/came/lr+0_seed0"
    folder.mkdir(parents=True)
    (folder / "outcome.json").write_text(content)
    assert reproduce.main(["cpu", "--table", "--out", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_told(tmp_path):
    finished(tmp_path, "lr+0_seed0.bak")
    with pytest.raises(
        ValueError, match=r"lr\+0_seed0.bak has no name of a run: move it elsewhere"
    ):
        drive.read_results(PLAN, tmp_path)


def test_a_plan_in_which_all_diverge_is_done(tmp_path, monkeypatch):
    trainer("raise SystemExit(5)", monkeypatch)
    assert drive.drive(PLAN, tmp_path)
    assert "| came | - | 0 | diverged | - | - | - | 0.5: diverged" in tables(
        PLAN, drive.read_results(PLAN, tmp_path), drive.read_beside(PLAN, tmp_path)
    )


def test_what_is_beside_the_metric_is_of_the_same_runs(tmp_path):
    for name in ("lr+0_seed0", "lr+0_seed1", "lr-1_seed0", "lr+1_seed0"):
        folder = finished(tmp_path, name)
        lines = METRICS.replace("2.5", "1.0").replace("7", name[-1]) if "+0" in name else METRICS
        (folder / "metrics.jsonl").write_text(lines)
    table = tables(PLAN, drive.read_results(PLAN, tmp_path), drive.read_beside(PLAN, tmp_path))
    assert "| min to max | eval/other, std | sweep (seed 0) |" in table
    assert (
        "| came | 1 | 2 | 1.0000 | 0.0000 | 1.0000 to 1.0000 | 0.500, 0.707 | 0.5: 2.5000" in table
    )


def test_a_table_of_a_try_says_so(tmp_path):
    plan = dataclasses.replace(PLAN, overrides=("train.steps=2",))
    assert "### A task, with train.steps=2\n" in tables(plan, {}, {})
    assert "### A task\n" in tables(PLAN, {}, {})


@pytest.mark.usefixtures("interrupts")
def test_a_run_that_ends_while_it_is_to_stop_is_done(tmp_path, monkeypatch, capsys):
    trainer(
        f"""
        import signal, sys, time
        from pathlib import Path
        words = dict(word.split("=", 1) for word in sys.argv[1:])
        def last(*_):
            Path(words["run.dir"], "metrics.jsonl").write_text({METRICS!r})
            sys.exit(0)
        signal.signal(signal.SIGTERM, last)
        Path(words["run.dir"], "begun").touch()
        time.sleep(60)
        """,
        monkeypatch,
    )
    one = dataclasses.replace(PLAN, jobs=1)

    def stop() -> None:
        while not list(tmp_path.rglob("begun")):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        drive.drive(one, tmp_path)
    assert "done   t  came  rate +0  seed 0  2.5000" in capsys.readouterr().out
    assert drive.read_results(one, tmp_path) == {FIRST: 2.5}


@pytest.mark.usefixtures("interrupts")
def test_a_second_interrupt_leaves_no_run_behind(tmp_path, monkeypatch):
    trainer(
        """
        import os, signal, sys, time
        from pathlib import Path
        words = dict(word.split("=", 1) for word in sys.argv[1:])
        folder = Path(words["run.dir"])
        signal.signal(signal.SIGTERM, lambda *_: (folder / "saving").touch())
        (folder / "begun").write_text(str(os.getpid()))
        time.sleep(120)
        """,
        monkeypatch,
    )

    def stop() -> None:
        for name in ("begun", "saving"):
            while not list(tmp_path.rglob(name)):
                time.sleep(0.01)
            time.sleep(1.5 * ECHO)  # a request that is no echo
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        drive.drive(dataclasses.replace(PLAN, jobs=1), tmp_path)
    (begun,) = tmp_path.rglob("begun")
    with contextlib.suppress(ChildProcessError):  # waited for before
        assert os.waitpid(int(begun.read_text()), 0)[1] == signal.SIGKILL
    assert drive.read_results(PLAN, tmp_path) == {}


@pytest.mark.usefixtures("interrupts")
def test_the_same_request_twice_lets_the_runs_save(tmp_path, monkeypatch, capsys):
    """make hands on to its command what reaches this too, from a terminal or a service."""
    trainer(
        """
        import signal, sys, time
        from pathlib import Path
        words = dict(word.split("=", 1) for word in sys.argv[1:])
        def save(*_):
            Path(words["run.dir"], "saving").touch()
            time.sleep(0.5)
            sys.exit(75)
        signal.signal(signal.SIGTERM, save)
        Path(words["run.dir"], "begun").touch()
        time.sleep(60)
        """,
        monkeypatch,
    )

    def stop() -> None:
        for name in ("begun", "saving"):
            while not list(tmp_path.rglob(name)):
                time.sleep(0.01)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    monkeypatch.setattr(drive, "ECHO", 60.0)  # however slow the machine is
    with pytest.raises(KeyboardInterrupt):
        drive.drive(dataclasses.replace(PLAN, jobs=1), tmp_path)
    assert "saved  t  came  rate +0  seed 0" in capsys.readouterr().out


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_no_jobs_are_refused(jobs, capsys):
    """-1 started nearly all runs at once, and never came to an end."""
    with pytest.raises(SystemExit):
        reproduce.main(["cpu", "--jobs", jobs])
    assert f"{jobs} is not at least 1" in capsys.readouterr().err


def test_runs_are_not_kept_over_themselves(tmp_path, capsys):
    """Their ledgers lost the lines of the parameters."""
    out = str(tmp_path)
    assert reproduce.main(["cpu", "--out", out, "--keep", f"{out}/../{tmp_path.name}"]) == 1
    assert "is the folder of the runs, which would be stripped" in capsys.readouterr().err


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert reproduce.main(["cpu", "--task", "t5", "--out", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_home_is_known_in_out(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(reproduce, "drive", lambda plan, out, minutes: seen.append(out) or True)
    assert reproduce.main(["cpu", "--out=~/runs"]) == 0
    assert seen == [tmp_path / "runs"]
