"""Rows 5 to 7: whoever is told to stop, all ranks save once and leave (make test-faults)."""

import re
import signal
import time
from pathlib import Path

import pytest

from launch.local import free_port
from tests.faults.runs import STARTING, TORCHRUN, Ended, Started, halves

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

LONG = "train.steps=100000"
GRACE = 25.0
DEEPSPEED = (
    *("-m", "deepspeed.launcher.runner", "--num_accelerators=2"),
    *("--master_port={port}", "--module", "trainers.pretrain"),
)
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def saves_and_leaves(
    started: Started, run_dir: Path, signum: int, pids: list[int], code: int | None = None
) -> Ended:
    """Signal `pids` in the middle of a run; it must save once, and say that it goes on from there.

    code: None for that of another launcher, which is none of ours and not 0.
    """
    started.wait_for(run_dir / "checkpoints" / "step-00000006")
    started.signal(signum, pids)
    ended = started.end()
    name = signal.Signals(signum).name
    found = re.search(rf"stopped by {name} after step (\d+)", ended.output)
    assert found and (code is not None or ended.code != 0), ended.output
    step = int(found[1])
    words = f"stopped by {name} after step {step}; the same command goes on from step {step}"
    ended.must(
        code=ended.code if code is None else code,
        within=GRACE,
        words=[words],
        commits=[step, (step - 1) // 3 * 3],  # the last one that was due, and one more
    )
    assert ended.output.count(words) == 2, ended.output  # in words and as JSON, by one rank
    assert len(ended.told(130 if signum == signal.SIGINT else 75)) == 1, ended.output
    print(f"{name} to {len(pids)}: {ended.seconds:.1f} s")
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
    saves_and_leaves(started, run_dir, signum, pids, 130 if signum == signal.SIGINT else 75)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("whom", ["agent", "all"])
def test_torchrun_passes_signals_on(corpus: Path, tmp_path: Path, signum: int, whom: str) -> None:
    """Row 5; torchrun ends with a code of its own."""
    run_dir = tmp_path / "run"
    command = (*TORCHRUN[:2], "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", *TORCHRUN[2:])
    started = Started(corpus, run_dir, LONG, command=command)
    started.wait_for("step ")
    pids = [started.process.pid, *(started.ranks() if whom == "all" else [])]
    saves_and_leaves(started, run_dir, signum, pids)


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
    saves_and_leaves(started, run_dir, signal.SIGTERM, pids)


def test_a_request_that_comes_twice_and_too_early_is_obeyed(corpus: Path, tmp_path: Path) -> None:
    """Row 5: the ranks have only just been started."""
    started = Started(corpus, tmp_path / "run", LONG, "runtime.grace_seconds=100")
    while len(started.ranks()) < 2:
        time.sleep(0.01)
    for _ in range(2):
        started.signal(signal.SIGTERM)
        time.sleep(0.05)
    words = ["stopped by SIGTERM after step 1; the same command goes on from step 1"]
    started.end().must(code=75, within=100, words=words, commits=[1])


def test_a_second_signal_during_the_save_ends_it_at_once(corpus: Path, tmp_path: Path) -> None:
    """Rows 5 and 6: nothing half written is ever a commit."""
    run_dir = tmp_path / "run"
    fault = "sleep=60@write step-00000006*/manifest.json:rank0"
    started = Started(corpus, run_dir, LONG, fault=fault)
    started.wait_for("fault: ")
    started.signal(signal.SIGTERM)
    time.sleep(2)
    started.signal(signal.SIGTERM)
    started.end().must(code=143, within=5, words=["stopped by SIGTERM; the same"], commits=[3])
    assert halves(run_dir) != frozenset()  # of the save that was ended: the next start removes it
    Started(corpus, run_dir, "train.steps=7").end().must(
        code=0, within=STARTING, words=["goes on from step 3"], commits=[7, 6]
    )


def test_a_run_that_cannot_save_within_the_grace_leaves_without(
    corpus: Path, tmp_path: Path
) -> None:
    """Row 5: the bound holds whatever happens."""
    run_dir = tmp_path / "run"
    fault = "sleep=60@write step-00000006*/manifest.json:rank0"
    started = Started(corpus, run_dir, LONG, "runtime.grace_seconds=3", fault=fault)
    started.wait_for("fault: ")
    started.signal(signal.SIGTERM)
    words = ["not done after runtime.grace_seconds=3", "goes on from the last checkpoint"]
    started.end().must(code=75, within=10, words=words, commits=[3])
