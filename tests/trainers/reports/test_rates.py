"""A sweep of learning rates is drawn over them, and its best is marked."""

from pathlib import Path

import pytest

from tests.trainers.reports.run_folders import write_run
from trainers.reports.groups import Section, sort_runs
from trainers.reports.rates import draw_rates, in_words, sweeps, swept_metric, ticks_of
from trainers.reports.runs import read_runs
from trainers.reports.style import LIGHT
from trainers.reports.tables import final_table

ENDS = {1e-4: 5.0, 4e-4: 4.0, 1.6e-3: 6.0}


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Section:
    top = tmp_path_factory.mktemp("sweep")
    folders = [
        write_run(top / f"{lr}-{seed}", seed=seed, final=end + 0.1 * seed, optimizer__lr=lr)
        for lr, end in ENDS.items()
        for seed in (0, 1)
    ]
    for lr in (1e-3, 2e-3):
        folders.append(write_run(top / f"a{lr}", "adamw", final=100 * lr, optimizer__lr=lr))
    folders.append(write_run(top / "nan", "adamw", final=None, optimizer__lr=4e-3))
    folders.append(write_run(top / "one", "lamb"))
    (found,) = sort_runs(read_runs(folders))
    return found


def test_a_line_for_each_optimizer_with_more_than_one_rate(section: Section) -> None:
    assert [sweep.label for sweep in sweeps(section)] == ["CAME", "AdamW"]
    metric = swept_metric(section)
    assert metric == "eval/loss"
    picture = draw_rates(section, metric, LIGHT)
    (axes,) = picture.axes
    assert axes.get_xscale() == "log"
    lines = {str(line.get_label()): line for line in axes.lines}
    came = lines["CAME: best 4e-4, 4.050"]
    assert list(came.get_xdata()) == sorted(ENDS)
    assert list(came.get_ydata()) == pytest.approx([5.05, 4.05, 6.05])
    adamw = lines["AdamW: best 1e-3, 0.100"]
    assert len(adamw.get_xdata()) == 2, "what ended as no number has no place"
    dots = [line for line in axes.lines if line.get_marker() == "." and len(line.get_xdata()) == 2]
    assert len(dots) == 3, "each seed is a dot"
    rings = [line.get_xdata()[0] for line in axes.lines if line.get_markersize() == 10]
    assert rings == [4e-4, 1e-3]


def test_the_best_is_marked_in_the_table(section: Section) -> None:
    marked = [row[0] for row in final_table(section, None).rows if "(best)" in row[0]]
    assert marked.count("CAME, lr 0.0004 (best)") == 2  # loss and perplexity; accuracies are equal
    assert not any(label.startswith("LAMB") for label in marked)


def test_one_rate_is_no_sweep(tmp_path: Path) -> None:
    (alone,) = sort_runs(read_runs([write_run(tmp_path / "a"), write_run(tmp_path / "b", "lamb")]))
    assert sweeps(alone) == [] and swept_metric(alone) is None


def test_rates_in_words() -> None:
    assert [in_words(rate) for rate in (1e-4, 1.6e-3, 2.5e-5, 1)] == [
        *("1e-4", "1.6e-3", "2.5e-5", "1e0"),
    ]


def test_ticks_can_be_read() -> None:
    assert ticks_of([1e-4, 4e-4, 1.6e-3, 1.7e-3]) == [1e-4, 4e-4, 1.6e-3]
    assert ticks_of([1e-4, 2e-4]) == [1e-4, 2e-4]
