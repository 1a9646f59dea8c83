"""Seeds are repetitions, settings are groups, questions are sections; means are of what ended."""

import math
from pathlib import Path

import numpy as np
import pytest

from tests.trainers.reports.run_folders import write_run
from trainers.reports.groups import MOST_DRAWN, sort_runs
from trainers.reports.runs import Run, read_runs
from trainers.reports.series import Series
from trainers.reports.spread import Band, Spread, last, middle
from trainers.reports.tables import final_table, notes


def runs_of(tmp_path: Path, *several: dict[str, object]) -> list[Run]:
    return read_runs([write_run(tmp_path / f"run-{i}", **one) for i, one in enumerate(several)])


def test_seeds_and_what_is_idle_make_no_group(tmp_path: Path) -> None:
    runs = runs_of(
        tmp_path,
        {"seed": 1, "eval__every": 5},
        {"optimizer": "adamw"},
        {"seed": 0, "logging__project": "another", "data__workers": 3},
        {"optimizer": "adamw", "seed": 1, "checkpoint__every": 7},
    )
    (section,) = sort_runs(runs)
    assert [group.label for group in section.groups] == ["CAME", "AdamW"]
    assert [[run.seed for run in group.runs] for group in section.groups] == [[0, 1], [0, 1]]


def test_labels_tell_what_differs_and_no_more(tmp_path: Path) -> None:
    runs = runs_of(
        tmp_path, {}, {"optimizer__lr": 0.001}, {"optimizer": "adamw", "batch__global_size": 64}
    )
    (section,) = sort_runs(runs)
    assert [group.label for group in section.groups] == [
        "CAME, batch 32, lr 0.0003",
        "CAME, batch 32, lr 0.001",
        "AdamW, batch 64",
    ]
    assert [group.place for group in section.groups] == [0, 1, 0]


def test_a_label_tells_what_is_on_and_what_is_off(tmp_path: Path) -> None:
    key = "optimizer__bias_correction"
    (section,) = sort_runs(runs_of(tmp_path, {key: False}, {key: True}))
    found = [group.label for group in section.groups]
    assert found == ["CAME, no bias correction", "CAME, bias correction"]


def test_another_question_is_another_section(tmp_path: Path) -> None:
    gpt2 = {"experiment": "quickstart_gpt2", "task": "lm"}
    runs = runs_of(tmp_path, {}, gpt2, {"eval__samples": 64}, {"optimizer": "sm3"})
    sections = sort_runs(runs)
    assert [len(section.runs) for section in sections] == [2, 1, 1]
    titles = [section.title for section in sections]
    assert len(set(titles)) == 3 and "eval.samples 64" in titles[2]


def test_a_sweep_is_drawn_as_one_line(tmp_path: Path) -> None:
    rates = [
        {"optimizer__lr": 0.001 * i, "final": 5.0 - i / 10, "seed": seed}
        for i in range(1, MOST_DRAWN + 2)
        for seed in ((0, 1) if i < 4 else (0,))
    ]
    (section,) = sort_runs(runs_of(tmp_path, *rates, {"optimizer": "adamw"}))
    assert len(section.groups) == MOST_DRAWN + 2
    assert [group.settings["optimizer.lr"] for group in section.drawn] == [0.003, 0.002]
    assert notes(section)[0].startswith("pictures show 2 of 10 settings")


def test_means_are_of_runs_that_came_to_their_end(tmp_path: Path) -> None:
    runs = runs_of(
        tmp_path,
        {"seed": 0, "final": 4.0},
        {"seed": 1, "final": 5.0},
        {"seed": 2, "final": 9.0, "stopped": 20},
        {"seed": 3, "final": None},
    )
    (section,) = sort_runs(runs)
    (row,) = [row for row in final_table(section, None).rows if row[2:3] == ("4.5000",)]
    assert row == ("CAME", "2 of 4", "4.5000", f"{math.sqrt(0.5):.4f}", "4.0000", "5.0000")
    (told,) = notes(section)
    assert "run-2: stopped at step 20 of 40" in told and "run-3: train/loss ended" in told


def test_a_seed_twice_is_no_repetition(tmp_path: Path) -> None:
    (section,) = sort_runs(runs_of(tmp_path, {}, {}))
    assert notes(section) == [
        "CAME: seeds 0, 0: runs of one seed are no independent repetitions",
    ]


def test_spread() -> None:
    assert Spread.of([]) is None
    assert Spread.of([2.0]) == Spread(1, 2.0, None, 2.0, 2.0)
    spread = Spread.of([1.0, 2.0, 6.0])
    assert spread == Spread(3, 3.0, pytest.approx(math.sqrt(7)), 1.0, 6.0)


def test_a_band_has_the_steps_that_all_have() -> None:
    one = Series(np.array([1, 2, 3, 4]), np.array([1.0, 2.0, 3.0, 4.0]))
    other = Series(np.array([2, 4, 5]), np.array([4.0, 8.0, 9.0]))
    band = Band.of([one, other])
    assert band is not None and band.steps.tolist() == [2, 4] and band.n == 2
    assert (band.mean.tolist(), band.low.tolist(), band.high.tolist()) == ([3, 6], [2, 4], [4, 8])
    assert Band.of([]) is None
    assert Band.of([one, Series(np.array([9]), np.array([1.0]))]) is None


def test_the_first_line_is_no_step_time() -> None:
    rows = tuple({"step": i, "train/seconds": s} for i, s in enumerate([90.0, 1.0, 3.0]))
    run = Run("a", {}, rows, (), None, None)
    lone = Run("b", {}, rows[:1], (), None, None)
    assert middle([run, lone], "train/seconds") == [2.0, 90.0]
    assert last([run], "train/seconds") == [3.0] and last([run], "eval/loss") == []
