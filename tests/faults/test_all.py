"""The rest of the list of faults, a start or more for each (make test-faults)."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.faults.runs import (
    OURS,
    STARTING,
    Started,
    commits,
    learned,
    lines,
    losses,
    state,
)

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

LONG = "train.steps=100000"


def test_twenty_kills_at_random_instants_change_nothing(corpus: Path, tmp_path: Path) -> None:
    """Row 4: all processes at once, wherever they are; the weights are those of an unbroken run."""
    words = ("train.steps=500", "checkpoint.every=5", "train.log_every=5")
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    Started(corpus, unbroken, *words).end().must(
        code=0, within=STARTING, words=[], commits=[500, 495]
    )
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
        found = commits(broken)  # the newest two, and those that a kill kept from being removed
        assert all(step % 5 == 0 for step in found), found
        ended.must(code=-signal.SIGKILL, within=5, words=[], commits=found)
        seen.append(max(found, default=0))
        assert seen[-1] >= seen[-2], "a commit was lost"
        print(f"kill {kill}: step {seen[-1]} is safe")
    last = Started(corpus, broken, *words).end()
    last.must(code=0, within=STARTING, words=[f"goes on from step {seen[-1]}"], commits=[500, 495])
    assert state(broken, 500) == state(unbroken, 500)
    assert learned(broken) == learned(unbroken)


def wait_for_steps(started: Started, run_dir: Path, before: int) -> None:
    limit = time.monotonic() + 240
    while started.process.poll() is None and time.monotonic() < limit:
        if (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > before:
            return
        time.sleep(0.01)


def test_a_rank_without_memory_is_told_as_such(corpus: Path, tmp_path: Path) -> None:
    """Row 39, and 31: the thread that makes batches has failed."""
    fault = "sleep=1@data:rank1:step8,memory@data:rank1:step8"  # until step 6 is saved
    ended = Started(corpus, tmp_path / "run", LONG, fault=fault).end()
    words = ["batch.micro_size", "rank 1 did not answer: rank 0 waited in"]
    ended.must(code=8, within=10, words=words, commits=[6, 3])
    assert [told["rank"] for told in ended.told(8)] == [1]
    assert [told["rank"] for told in ended.told(7)] == [0], "the other one has lost it"


def test_a_rank_that_gets_no_more_memory_is_told_as_such(corpus: Path, tmp_path: Path) -> None:
    """Row 39, by the kernel: it gets nothing more. Whatever has 64 kB is asked of the kernel."""
    run_dir = tmp_path / "run"
    run = Started(corpus, run_dir, LONG, "checkpoint.every=5", MALLOC_MMAP_THRESHOLD_="65536")
    run.wait_for(run_dir / "checkpoints" / "step-00000010")
    run.starve(run.ranks()[1])
    words = ["can't allocate memory", "set a smaller batch.micro_size", "rank 1 did not answer"]
    ended = run.end()
    ended.must(code=8, within=10, words=words, commits=commits(run_dir))
    assert max(commits(run_dir)) >= 10
    assert [told["rank"] for told in ended.told(7)] == [0]


def test_a_rank_that_is_killed_while_the_model_is_dealt_out(corpus: Path, tmp_path: Path) -> None:
    """Row 1 before the first step: the other one, which waits in DeepSpeed, is not left there."""
    fault = "sleep=3@engine:rank1,kill@engine:rank1"  # until the other one waits for it
    ended = Started(corpus, tmp_path / "run", LONG, fault=fault).end()
    ended.must(code=137, within=10, words=["rank 1 was killed by SIGKILL"], commits=[])
    assert "DeepSpeed cannot run" not in ended.output


def test_no_wandb_that_can_be_reached_costs_a_line(corpus: Path, tmp_path: Path) -> None:
    """Row 37: nobody listens there; everything is in metrics.jsonl."""
    words = ("logging=wandb", "logging.mode=online", "train.steps=7")
    nobody = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    ended = Started(corpus, tmp_path / "run", *words, **nobody).end()
    ended.must(code=0, within=STARTING, words=["W&B"], commits=[7, 6])
    assert list(losses(tmp_path / "run")) == list(range(1, 8))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_stands_still_is_named(corpus: Path, tmp_path: Path, rank: int) -> None:
    """Row 40; rank 0 keeps the store that the others ask."""
    fault = f"sleep=1@step:rank{rank}:step8,stop@backward:rank{rank}:step8"
    ended = Started(corpus, tmp_path / "run", LONG, "runtime.timeout_seconds=5", fault=fault).end()
    words = [f"rank {rank} did not answer: rank {1 - rank} waited in all_reduce"]
    ended.must(code=7, within=5 + 5, words=words, commits=[6, 3])
    assert [told["step"] for told in ended.last_words] == [8]


def test_a_rank_that_does_something_else_is_told_as_such(corpus: Path, tmp_path: Path) -> None:
    """Row 40: it sleeps through a collective, and lives."""
    fault = "sleep=60@step:rank1:step8"
    ended = Started(corpus, tmp_path / "run", LONG, "runtime.timeout_seconds=5", fault=fault).end()
    words = ["rank 1 did not answer: rank 0 waited in all_reduce"]
    ended.must(code=7, within=5 + 5, words=words, commits=[6, 3])
    assert [told["step"] for told in ended.last_words] == [8]


def test_a_rank_that_gloo_has_ended_is_named(corpus: Path, tmp_path: Path) -> None:
    """Row 40: gloo aborts a process that receives another shape than it asked for."""
    fault = "sleep=1@step:rank1:step8,abrt@backward:rank1:step8"
    ended = Started(corpus, tmp_path / "run", LONG, fault=fault).end()
    words = ["rank 1 was killed by SIGABRT", "rank 1 did not answer: rank 0 waited in"]
    ended.must(code=134, within=10, words=words, commits=[6, 3])
    assert [told["rank"] for told in ended.told(7)] == [0]


def test_a_rank_that_never_comes_is_waited_for_as_long_as_asked(
    corpus: Path, tmp_path: Path
) -> None:
    """Row 41."""
    words = (LONG, "runtime.timeout_seconds=5")
    ended = Started(corpus, tmp_path / "run", *words, fault="stop@init:rank1").end()
    said = ["1 of 2 ranks joined within runtime.timeout_seconds=5"]
    ended.must(code=7, within=5 + 5, words=said, commits=[])


def test_a_second_run_in_the_folder_is_refused_at_once(corpus: Path, tmp_path: Path) -> None:
    """Row 45."""
    run_dir = tmp_path / "run"
    first = Started(corpus, run_dir, LONG, fault="sleep=300@step:rank0:step8")
    first.wait_for("fault: ")
    first.wait_for(run_dir / "checkpoints" / "step-00000006")
    words = [f"run.dir {run_dir} is in use by process {first.ranks()[0]} on ", ", started 20"]
    Started(corpus, run_dir, LONG).end().must(code=9, within=15, words=words, commits=[6, 3])
    assert first.process.poll() is None
    first.kill()
    first.end().must(code=-signal.SIGKILL, within=5, words=[], commits=[6, 3])
    Started(corpus, run_dir, "train.steps=8").end().must(  # who died owns nothing
        code=0, within=STARTING, words=["goes on from step 6"], commits=[8, 6]
    )


def test_not_a_number_on_one_rank_is_passed_over_and_counted(corpus: Path, tmp_path: Path) -> None:
    """Rows 18 and 20, in a whole run."""
    fault = "times=nan@loss:rank1:step3,times=inf@loss:rank0:step4,times=1e4@loss:step40"
    words = [
        "the loss of rank 1 is not finite at step 3, samples 48 to 71: no rank updates anything",
        "the loss of rank 0 is not finite at step 4, samples 72 to 95: no rank updates anything",
    ]
    Started(corpus, tmp_path / "run", "train.steps=42", fault=fault).end().must(
        code=0, within=STARTING, words=words, commits=[42, 39]
    )
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found if line["train/loss"] is None] == [3, 4]
    assert [line["train/skipped_steps"] for line in found[:6]] == [0, 0, 1, 2, 2, 2]
    assert [line["train/loss_spikes"] for line in found[-4:]] == [0, 1, 1, 1]


def test_a_bad_batch_in_the_last_step_is_no_dead_end(corpus: Path, tmp_path: Path) -> None:
    """Row 18: every start ended with 5 in the same step."""
    run_dir, words = tmp_path / "run", "train.steps=7"
    said = ["the run ends with the parameters of step 6, the last good one"]
    Started(corpus, run_dir, words, fault="times=nan@loss:rank1:step7").end().must(
        code=0, within=STARTING, words=said, commits=[7, 6]
    )
    kept, last = state(run_dir, 6), state(run_dir, 7)
    assert {name: last[name] for name in kept} == kept
    Started(corpus, run_dir, words).end().must(
        code=0, within=STARTING, words=["already complete"], commits=[7, 6]
    )


def test_faults_are_refused_outside_tests(corpus: Path, tmp_path: Path) -> None:
    started = Started(corpus, tmp_path / "run", fault="kill@step", CAME_FAULT_TEST="0")
    started.end().must(code=2, within=10, words=["unset it"], commits=[])
    assert not (tmp_path / "run").exists()


def test_a_reader_that_went_away_stops_nothing(corpus: Path, tmp_path: Path) -> None:
    """Row 54: stdout and stderr are pipes that nobody reads any more."""
    started = Started(corpus, tmp_path / "run", "train.steps=6", command=(*PIPED, *OURS))
    started.end().must(code=0, within=STARTING, words=[], commits=[6, 3])
    assert len(losses(tmp_path / "run")) == 6


# Starts its arguments with output into a pipe whose reader has gone, and keeps what is written for
# a while, as Python does if nobody says otherwise.
PIPED = (
    "-c",
    "import os, subprocess, sys\n"
    "reader, writer = os.pipe(); os.close(reader)\n"
    "os.environ.pop('PYTHONUNBUFFERED', None)\n"
    "sys.exit(subprocess.call([sys.executable, *sys.argv[1:]], stdout=writer, stderr=writer))",
)
