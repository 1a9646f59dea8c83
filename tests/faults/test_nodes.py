"""Two machines, each with an agent of torchrun, on this one; and the deepspeed launcher."""

import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.local import free_port
from tests.faults.conftest import STEPS
from tests.faults.runs import STARTING, Started, learned, losses

TOGETHER = ("launch.processes=1", "launch.nodes=2", "launch=torchrun")


def machine_of(corpus: Path, run_dir: Path, *words: str) -> Callable[[], Started]:
    """Each call is one machine of the same job; the first is where they meet."""
    port = free_port()
    meet = f"launch.torchrun.rendezvous=127.0.0.1:{port}"

    def start() -> Started:
        started = Started(corpus, run_dir, *TOGETHER, meet, *words)
        while not answers(port):
            assert started.process.poll() is None, started.output
            time.sleep(0.05)
        return started

    return start


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.faults
def test_two_machines_are_one_run(corpus: Path, tmp_path: Path, unbroken: Path) -> None:
    """The same words on both; the losses of two processes on one machine, bit for bit."""
    run_dir = tmp_path / "run"
    machine = machine_of(corpus, run_dir, STEPS)
    for ended in [node.end() for node in (machine(), machine())]:
        ended.must(code=0, within=STARTING, words=[], commits=[14, 12])
    assert learned(run_dir) == learned(unbroken)


@pytest.mark.faults
@pytest.mark.parametrize("comes_back", [False, True])
def test_a_machine_dies_in_the_middle(corpus: Path, tmp_path: Path, comes_back: bool) -> None:
    """The other one goes on alone from the last commit, or waits until it is there again."""
    run_dir, steps = tmp_path / "run", ("train.steps=60", "model.dropout=0")
    words = (*steps, f"launch.torchrun.min_nodes={2 if comes_back else 1}")
    machine = machine_of(corpus, run_dir, *words)
    first, second = machine(), machine()
    first.wait_for(run_dir / "checkpoints" / "step-00000009")
    second.kill()
    assert second.end().code != 0
    nodes = [first]
    if comes_back:
        first.wait_for('"exit_code": 7}')
        nodes.append(machine())
    for node in nodes:
        ended = node.end()
        words = ["goes on from step"] if node is first else []
        ended.must(code=0, within=2 * STARTING, words=words, commits=[60, 57])
    alone = Started(corpus, tmp_path / "unbroken", *steps).end()
    alone.must(code=0, within=STARTING, words=[], commits=[60, 57])
    wanted = losses(tmp_path / "unbroken")
    assert losses(run_dir) == (wanted if comes_back else pytest.approx(wanted, abs=1e-4))
    assert "peer" in first.output


@pytest.mark.faults
def test_the_deepspeed_launcher_trains(corpus: Path, tmp_path: Path, unbroken: Path) -> None:
    run_dir = tmp_path / "run"
    ended = Started(corpus, run_dir, STEPS, "launch=deepspeed").end()
    ended.must(code=0, within=STARTING, words=[], commits=[14, 12])
    assert learned(run_dir) == learned(unbroken)
