"""The rest of the list of faults, a start or more for each (make test-faults)."""

import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.faults.runs import OURS, TORCHRUN, Ended, Started, commits, losses, state

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

LONG = "train.steps=100000"
GRACE = 25.0
DEEPSPEED = (
    *("-m", "deepspeed.launcher.runner", "--num_accelerators=2"),
    *("--master_port={port}", "--module", "trainers.pretrain"),
)
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def saves_and_leaves(started: Started, run_dir: Path, signum: int, pids: list[int]) -> Ended:
    """Signal `pids` in the middle of a run; the run must save once more, and go on from there."""
    started.wait_for(run_dir / "checkpoints" / "step-00000006")
    told = time.monotonic()
    for pid in pids:
        os.kill(pid, signum)
    ended = started.end()
    assert time.monotonic() - told < GRACE, ended.output
    newest = commits(run_dir)[0]
    words = f"stopped by {signal.Signals(signum).name} after step {newest}; the same command goes"
    assert ended.output.count(words) == 2, ended.output  # in words and as JSON, by one rank
    print(f"{signal.Signals(signum).name} to {len(pids)}: {time.monotonic() - told:.1f} s")
    return ended


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("whom", ["launcher", "last rank", "all"])
def test_a_signal_to_anybody_stops_all_after_one_step(
    corpus: Path, tmp_path: Path, signum: int, whom: str
) -> None:
    """Rows 5 and 7."""
    run_dir = tmp_path / "run"
    started = Started(corpus, run_dir, LONG)
    started.wait_for("step ")
    ranks, launcher = started.ranks(), started.process.pid
    pids = {"launcher": [launcher], "last rank": ranks[-1:], "all": [launcher, *ranks]}[whom]
    ended = saves_and_leaves(started, run_dir, signum, pids)
    assert ended.code == (130 if signum == signal.SIGINT else 75), ended.output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("whom", ["agent", "all"])
def test_torchrun_passes_signals_on(corpus: Path, tmp_path: Path, signum: int, whom: str) -> None:
    """Row 5; torchrun ends with a code of its own."""
    run_dir = tmp_path / "run"
    command = (*TORCHRUN[:2], "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", *TORCHRUN[2:])
    started = Started(corpus, run_dir, LONG, command=command)
    started.wait_for("step ")
    pids = [started.process.pid, *(started.ranks() if whom == "all" else [])]
    assert saves_and_leaves(started, run_dir, signum, pids).code != 0


@pytest.mark.parametrize("whom", ["launcher", "last rank"])
def test_the_deepspeed_launcher_passes_sigterm_on(corpus: Path, tmp_path: Path, whom: str) -> None:
    """Row 5; to the process that starts the ranks: `deepspeed` itself passes nothing on."""
    run_dir = tmp_path / "run"
    command = tuple(word.format(port=free_port()) for word in DEEPSPEED)
    started = Started(corpus, run_dir, LONG, command=command)
    started.wait_for("step ")
    ranks = started.ranks()
    launcher = int(Path(f"/proc/{ranks[0]}/stat").read_text().rsplit(") ", 1)[1].split()[1])
    pids = {"launcher": [launcher], "last rank": ranks[-1:]}[whom]
    assert saves_and_leaves(started, run_dir, signal.SIGTERM, pids).code != 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_request_that_comes_twice_and_too_early_is_obeyed(corpus: Path, tmp_path: Path) -> None:
    """Row 5: the ranks have only just been started."""
    started = Started(corpus, tmp_path / "run", LONG, "runtime.grace_seconds=100")
    while len(started.ranks()) < 2:
        time.sleep(0.01)
    for _ in range(2):
        os.kill(started.process.pid, signal.SIGTERM)
        time.sleep(0.05)
    ended = started.end()
    assert ended.code == 75 and "stopped by SIGTERM after step 1;" in ended.output, ended.output
    assert commits(tmp_path / "run") == [1]


def test_a_second_signal_during_the_save_ends_it_at_once(corpus: Path, tmp_path: Path) -> None:
    """Rows 5 and 6: nothing half written is ever a commit."""
    run_dir = tmp_path / "run"
    fault = "sleep=60@write step-00000006*/manifest.json:rank0"
    started = Started(corpus, run_dir, LONG, fault=fault)
    started.wait_for("fault: ")
    os.kill(started.process.pid, signal.SIGTERM)
    time.sleep(2)
    begin = time.monotonic()
    os.kill(started.process.pid, signal.SIGTERM)
    ended = started.end()
    assert ended.code == 143, ended.output
    assert time.monotonic() - begin < 5
    assert commits(run_dir) == [3]
    assert Started(corpus, run_dir, "train.steps=7").end().code == 0
    assert commits(run_dir) == [7, 6]


def test_a_run_that_cannot_save_within_the_grace_leaves_without(
    corpus: Path, tmp_path: Path
) -> None:
    """Row 5: the bound holds whatever happens."""
    run_dir = tmp_path / "run"
    fault = "sleep=60@write step-00000006*/manifest.json:rank0"
    started = Started(corpus, run_dir, LONG, "runtime.grace_seconds=3", fault=fault)
    started.wait_for("fault: ")
    begin = time.monotonic()
    os.kill(started.process.pid, signal.SIGTERM)
    ended = started.end()
    assert ended.code == 75 and time.monotonic() - begin < 10, ended.output
    assert "not done after runtime.grace_seconds=3" in ended.output
    assert commits(run_dir) == [3]


def test_twenty_kills_at_random_instants_change_nothing(corpus: Path, tmp_path: Path) -> None:
    """Row 4: all processes at once, wherever they are; the weights are those of an unbroken run."""
    words = ("train.steps=500", "checkpoint.every=5", "train.log_every=5")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    assert Started(corpus, unbroken, *words).end().code == 0
    chance = random.Random(0)
    seen = [0]
    for kill in range(20):
        started = Started(corpus, broken, *words)
        if kill % 4:  # after some steps, the others before
            before = len(losses(broken)) if (broken / "metrics.jsonl").exists() else 0
            started.wait_for("step ")
            wait_for_steps(started, broken, before)
        time.sleep(chance.uniform(0, 1.0))
        started.kill()
        ended = started.end()
        assert ended.code == -signal.SIGKILL, ended.output
        seen.append(max(commits(broken), default=0))
        assert seen[-1] >= seen[-2], "a commit was lost"
        print(f"kill {kill}: step {seen[-1]} is safe")
    ended = Started(corpus, broken, *words).end()
    assert ended.code == 0, ended.output
    assert state(broken, 500) == state(unbroken, 500)
    assert losses(broken) == losses(unbroken)


def wait_for_steps(started: Started, run_dir: Path, before: int) -> None:
    limit = time.monotonic() + 240
    while started.process.poll() is None and time.monotonic() < limit:
        if (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > before:
            return
        time.sleep(0.01)


def test_a_rank_without_memory_is_told_as_such(corpus: Path, tmp_path: Path) -> None:
    """Row 39."""
    ended = Started(corpus, tmp_path / "run", LONG, fault="memory@data:rank1:step8").end()
    assert ended.code == 8, ended.output
    assert "batch.micro_size" in ended.output and "rank 1 did not answer" in ended.output
    assert ended.seconds < 10 and commits(tmp_path / "run")[-1] == 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_is_named(corpus: Path, tmp_path: Path, rank: int) -> None:
    """Row 40; rank 0 keeps the store that the others ask."""
    words = (LONG, "runtime.timeout_seconds=5")
    ended = Started(corpus, tmp_path / "run", *words, fault=f"stop@backward:rank{rank}:step8").end()
    assert ended.code == 7, ended.output
    assert f"rank {rank} did not answer: rank {1 - rank} waited in" in ended.output
    assert [told["step"] for told in ended.last_words] == [8]
    assert ended.seconds < 5 + 5 and commits(tmp_path / "run")[-1] == 3


def test_a_rank_that_does_something_else_is_told_as_such(corpus: Path, tmp_path: Path) -> None:
    """Row 40: it sleeps through a collective, and lives."""
    words = (LONG, "runtime.timeout_seconds=5")
    ended = Started(corpus, tmp_path / "run", *words, fault="sleep=60@step:rank1:step8").end()
    assert ended.code == 7, ended.output
    assert "rank 1 did not answer" in ended.output and ended.seconds < 5 + 5


def test_a_rank_that_never_comes_is_waited_for_as_long_as_asked(
    corpus: Path, tmp_path: Path
) -> None:
    """Row 41."""
    words = (LONG, "runtime.timeout_seconds=5")
    ended = Started(corpus, tmp_path / "run", *words, fault="stop@init:rank1").end()
    assert ended.code == 7, ended.output
    assert "1 of 2 ranks joined within runtime.timeout_seconds=5" in ended.output
    assert ended.seconds < 5 + 5 and commits(tmp_path / "run") == []


def test_a_second_run_in_the_folder_is_refused_at_once(corpus: Path, tmp_path: Path) -> None:
    """Row 45."""
    run_dir = tmp_path / "run"
    first = Started(corpus, run_dir, LONG)
    first.wait_for("step ")
    second = Started(corpus, run_dir, LONG).end()
    assert second.code == 9 and "is in use by process" in second.output, second.output
    first.kill()
    first.end()
    assert Started(corpus, run_dir, "train.steps=6").end().code == 0


def test_not_a_number_on_one_rank_is_passed_over_and_counted(corpus: Path, tmp_path: Path) -> None:
    """Rows 18 and 20, in a whole run."""
    fault = "times=nan@loss:rank1:step3,times=inf@loss:rank0:step4,times=1e4@loss:step40"
    ended = Started(corpus, tmp_path / "run", "train.steps=42", fault=fault).end()
    assert ended.code == 0, ended.output
    assert "the loss of rank 1 is not finite at step 3, samples 48 to 71" in ended.output
    found = losses(tmp_path / "run")
    assert [step for step, loss in found.items() if loss is None] == [3, 4]
    assert '"train/skipped_steps": 2' in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"train/loss_spikes": 1' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_bad_batch_in_the_last_step_is_no_dead_end(corpus: Path, tmp_path: Path) -> None:
    """Row 18: every start ended with 5 in the same step."""
    run_dir, words = tmp_path / "run", "train.steps=7"
    ended = Started(corpus, run_dir, words, fault="times=nan@loss:rank1:step7").end()
    assert ended.code == 0, ended.output
    assert "the run ends with the parameters of step 6, the last good one" in ended.output
    assert commits(run_dir) == [7, 6]
    kept, last = state(run_dir, 6), state(run_dir, 7)
    assert {name: last[name] for name in kept} == kept
    ended = Started(corpus, run_dir, words).end()
    assert ended.code == 0 and "already complete" in ended.output, ended.output


def test_faults_are_refused_outside_tests(corpus: Path, tmp_path: Path) -> None:
    started = Started(corpus, tmp_path / "run", fault="kill@step", CAME_FAULT_TEST="0")
    ended = started.end()
    assert ended.code == 2 and "unset it" in ended.output


def test_a_reader_that_went_away_stops_nothing(corpus: Path, tmp_path: Path) -> None:
    """Row 54: stdout and stderr are pipes that nobody reads any more."""
    started = Started(corpus, tmp_path / "run", "train.steps=6", command=(*PIPED, *OURS))
    assert started.end().code == 0
    assert len(losses(tmp_path / "run")) == 6


# Starts its arguments with output into a pipe whose reader has gone.
PIPED = (
    "-c",
    "import os, subprocess, sys\n"
    "reader, writer = os.pipe(); os.close(reader)\n"
    "sys.exit(subprocess.call([sys.executable, *sys.argv[1:]], stdout=writer, stderr=writer))",
)
