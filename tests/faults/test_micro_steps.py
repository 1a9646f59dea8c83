"""Row 52: stopped or killed at every boundary in a window of micro batches."""

import re
from pathlib import Path

import pytest

from tests.faults.runs import STARTING, Started, learned, state

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

WINDOW = 4  # micro batches of a step on each rank
# Nothing is saved but what the signals ask for, and the end.
WORDS = ("train.steps=12", "batch.micro_size=3", "checkpoint.every=0")


def test_a_window_of_micro_batches_is_whole_or_not_there(corpus: Path, tmp_path: Path) -> None:
    """Commits lie between steps, and with dropout each start goes on bit for bit."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    Started(corpus, unbroken, *WORDS).end().must(code=0, within=STARTING, words=[], commits=[12])
    found: list[int] = []
    for micro in range(1, WINDOW + 1):
        step = 2 * micro
        fault = f"term@micro {micro}:rank1:step{step}"
        ended = Started(corpus, broken, *WORDS, fault=fault).end()
        told = re.search(r"stopped by SIGTERM after step (\d+);", ended.output)
        # The ranks ask each other during the last micro batch, or else in the next step.
        assert told and int(told[1]) in ((step, step + 1) if micro < WINDOW else (step + 1,))
        words = [f"goes on from step {found[0]}"] if found else []
        found = [int(told[1]), *found[:1]]
        ended.must(code=75, within=25, words=words, commits=found)
    fault = f"kill@micro 3:rank0:step{found[0] + 1}"
    ended = Started(corpus, broken, *WORDS, fault=fault).end()
    ended.must(code=137, within=10, words=["rank 0 was killed by SIGKILL"], commits=found)
    words = [f"goes on from step {found[0]}"]
    Started(corpus, broken, *WORDS).end().must(
        code=0, within=STARTING, words=words, commits=[12, found[0]]
    )
    assert state(broken, 12) == state(unbroken, 12)
    assert learned(broken) == learned(unbroken)
