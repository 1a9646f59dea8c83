"""One run that everything happens to, and that ends as if nothing had happened."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS
from tests.faults.runs import STARTING, Started, learned, state


@dataclass(frozen=True)
class Stage:
    """A start of the run: what is done to it, and what must be seen afterwards."""

    rows: str  # of the list of faults
    fault: str
    code: int
    words: tuple[str, ...]
    commits: list[int]
    seconds: float = 10.0  # from the fault to the end of all processes
    loser: int | None = None  # the rank that has lost the other one, and ends with 7


STAGES = [
    Stage(
        "42 a bug on one rank",
        "exception@step:rank1:step2",
        1,
        ("Traceback", "injected at step", "rank 1 did not answer: rank 0 waited in all_reduce"),
        [],
        loser=0,
    ),
    Stage(
        "1 killed in a step",
        # The commit of step 3, from which it goes on, is copied late: step 4 waits for that.
        "sleep=0.5@copy:rank1:step3,sleep=1@step:rank1:step5,kill@backward:rank1:step5",
        137,
        ("rank 1 was killed by SIGKILL", "rank 1 did not answer: rank 0 waited in"),
        [3],
        loser=0,
    ),
    Stage(
        "2 killed in a save",
        "kill@part step-00000006*/rank-00001.safetensors:rank1",
        137,
        ("rank 1 was killed by SIGKILL",),
        [3],
    ),
    Stage(
        "3 killed right after a commit",
        "kill@sync */checkpoints:rank0",
        137,
        ("rank 0 was killed by SIGKILL",),
        [6, 3],
    ),
    Stage(
        "5, 6 SIGTERM to one rank while the other writes a checkpoint",
        "term@save:rank1:step9,sleep=1@write step-00000009*/manifest.json:rank0",
        75,
        ("stopped by SIGTERM after step 10; the same command goes on from step 10",),
        [10, 9],
        25.0,
    ),
    Stage(
        "7 SIGINT",
        "int@step:rank0:step12",
        130,
        ("stopped by SIGINT after step 12; the same command goes on from step 12",),
        [12, 10],
        25.0,
    ),
]


@pytest.mark.timeout(1200)  # eight starts
def test_the_end_is_that_of_a_run_that_nothing_happened_to(
    corpus: Path, unbroken: Path, tmp_path: Path
) -> None:
    run_dir, before = tmp_path / "run", [0]
    for stage in STAGES:
        ended = Started(corpus, run_dir, STEPS, fault=stage.fault).end()
        found = (f"goes on from step {before[0]}",) if before[0] else ()
        words = (*stage.words, *found)
        ended.must(code=stage.code, within=stage.seconds, words=words, commits=stage.commits)
        where = f"{stage.rows}\n{ended.output}"
        assert ended.output.count("fault: ") == len(stage.fault.split(",")), where
        assert len(ended.told(stage.code)) == 1, where
        lost = [told["rank"] for told in ended.told(7)]
        assert stage.loser is None or lost == [stage.loser], where
        if "Traceback" in stage.words:  # before what anybody else says of it
            assert ended.output.index("Traceback") < ended.output.index("did not answer"), where
        if stage.rows.startswith("3"):
            assert (run_dir / "checkpoints" / "latest").read_text() == "step-00000003\n"
        before = stage.commits or [0]
        print(f"{stage.rows}: {ended.seconds:.1f} s")
    Started(corpus, run_dir, STEPS).end().must(
        code=0, within=STARTING, words=["goes on from step 12"], commits=[14, 12]
    )
    assert state(run_dir, 14) == state(unbroken, 14)
    assert learned(run_dir) == learned(unbroken)
