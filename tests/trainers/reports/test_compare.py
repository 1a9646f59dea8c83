"""The pictures carry the numbers of the runs and of the paper, and labels that do not touch."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.trainers.reports.run_folders import write_run
from trainers.reports.bars import draw_bars, in_units
from trainers.reports.compare import color_of, draw_curves, metrics_of, spread_out, two_lines
from trainers.reports.groups import Section, sort_runs
from trainers.reports.paper import paper_figure
from trainers.reports.runs import read_runs
from trainers.reports.series import GUESSED
from trainers.reports.style import LIGHT
from trainers.reports.tables import final_table

ACCURACY = "eval/mlm_accuracy"


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Section:
    top = tmp_path_factory.mktemp("runs")
    came = [write_run(top / f"came-{seed}", seed=seed, final=4.0 + seed) for seed in (0, 1)]
    killed = write_run(top / "killed", "lamb", stopped=20)
    (only,) = sort_runs(read_runs([*came, killed]))
    return only


def test_mean_band_and_the_run_that_was_stopped(section: Section) -> None:
    assert metrics_of(section) == [ACCURACY, "eval/loss"]
    (axes,) = draw_curves(section, "eval/loss", LIGHT, paper=None, as_fraction=False).axes
    came, lamb = axes.lines
    assert came.get_xdata().tolist() == [10, 20, 30, 40] and came.get_ydata()[-1] == 4.5
    band, *_ = axes.collections
    assert (band.get_paths()[0].vertices[:, 1].min(), band.get_alpha()) == (4.0, 0.2)
    assert lamb.get_xdata().tolist() == [10, 20] and lamb.get_linestyle() != "-"
    texts = [words for text in axes.texts if (words := text.get_text())]
    assert axes.get_xscale() == "linear"
    assert texts == ["CAME  4.50", "unfinished LAMB  5.69"]


@pytest.mark.parametrize(("family", "task"), [("gpt2", "lm"), ("llama", "lm"), ("t5", "span")])
def test_other_families(family: str, task: str, tmp_path: Path) -> None:
    write_run(tmp_path / "a", experiment=f"quickstart_{family}", task=task)
    (other,) = sort_runs(read_runs([tmp_path / "a"]))
    assert metrics_of(other) == [f"eval/{task}_accuracy", "eval/loss"]
    (axes,) = draw_curves(other, f"eval/{task}_accuracy", LIGHT, paper=None, as_fraction=True).axes
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(0.1)
    assert [row[0] for row in final_table(other, None).rows if len(row) == 1][0] == (
        GUESSED[f"eval/{task}_accuracy"].capitalize()
    )


def test_over_the_fraction_of_the_run(section: Section) -> None:
    (axes,) = draw_curves(section, "eval/loss", LIGHT, paper=None, as_fraction=True).axes
    came, lamb = axes.lines
    assert came.get_xdata().tolist() == [0.25, 0.5, 0.75, 1.0]
    assert lamb.get_xdata().tolist() == [0.25, 0.5]


@pytest.mark.parametrize(
    ("as_fraction", "end", "scale"), [(False, 20_000, "log"), (True, 1, "linear")]
)
def test_the_paper_beside_it(section: Section, as_fraction: bool, end: int, scale: str) -> None:
    paper = paper_figure("bert_large_32k")
    (axes,) = draw_curves(section, ACCURACY, LIGHT, paper=paper, as_fraction=as_fraction).axes
    (theirs,) = [line for line in axes.lines if line.get_ydata()[-1] == pytest.approx(0.6805)]
    assert theirs.get_xdata()[-1] == end and theirs.get_linestyle() == "--"
    assert theirs.get_color() == axes.lines[0].get_color() == LIGHT.of("came")
    assert axes.get_xscale() == scale and axes.get_ylim()[0] == 0
    assert "paper: LAMB  68.9%" in [text.get_text() for text in axes.texts]


def test_labels_are_apart_and_in_order() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 5, 9):
        heights, sizes = generator.uniform(0, 0.4, count), generator.uniform(0.05, 0.1, count)
        placed = np.array(spread_out(heights.tolist(), sizes.tolist()))
        order = np.argsort(heights)
        assert np.array_equal(np.argsort(placed), order)
        needed = (sizes[order][1:] + sizes[order][:-1]) / 2
        assert np.all(np.diff(placed[order]) > needed - 1e-9)
        assert placed.min() > -1e-9 and placed.max() < 1 + 1e-9
    assert spread_out([0.2, 0.8], [0.1, 0.1]) == [0.2, 0.8], "what is apart stays"
    assert spread_out([0.5, 0.5], [0.1, 0.1]) == pytest.approx([0.45, 0.55])
    assert spread_out([0.0, 0.0], [0.1, 0.2]) == pytest.approx([0.05, 0.2]), "nor as low as a step"
    assert spread_out([1.0], [0.2]) == [0.9], "a label is not as high as the title"
    crowded = spread_out([0.5] * 30, [0.1] * 30)
    assert np.diff(crowded) == pytest.approx(0.1), "too many for the height still do not touch"


def test_a_label_has_two_short_lines() -> None:
    assert two_lines("CAME", "4.50") == "CAME  4.50"
    assert two_lines("CAME, lr 0.1, batch 32", "1.0%") == "CAME  1.0%\nlr 0.1, batch 32"
    assert max(map(len, two_lines(f"{'x' * 99}, {'y' * 99}").split("\n"))) <= 28
    long = two_lines("Adafactor, betas [0.9], scale parameter, relative step, lr 0.05")
    assert long == "Adafactor\nbetas [0.9], sca..., lr 0.05", "the rate is never cut off"


def test_labels_have_the_markers_of_their_lines_and_stay_below_the_title(tmp_path: Path) -> None:
    """Eight settings beside the paper's curves: the highest label stood over the title."""
    folders = [write_run(tmp_path / str(i), optimizer__lr=i * 1e-3) for i in range(1, 9)]
    (section,) = sort_runs(read_runs(folders))
    paper = paper_figure("bert_large_32k")
    picture = draw_curves(section, ACCURACY, LIGHT, paper=paper, as_fraction=True)
    (axes,) = picture.axes
    picture.draw_without_rendering()
    texts = [text for text in axes.texts if "lr 0" in text.get_text() or "paper" in text.get_text()]
    boxes = sorted((text.get_window_extent() for text in texts), key=lambda box: box.y0)
    assert len(boxes) == 8 + len(paper.curves)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    assert boxes[-1].y1 < axes.title.get_window_extent().y0
    beside = [dots for dots in axes.collections if dots.get_offsets().tolist() != [[0, 0]]]
    assert len(beside) == 8 and len({tuple(dots.get_facecolor()[0]) for dots in beside}) > 2


def test_a_curve_that_ends_early_is_not_joined_to_its_label(section: Section) -> None:
    """A line across the picture passes for a curve; CAME's markers tell whose the label is."""
    paper = paper_figure("bert_large_32k")
    for as_fraction, ours in ((False, 1), (True, 2)):
        (axes,) = draw_curves(section, ACCURACY, LIGHT, paper=paper, as_fraction=as_fraction).axes
        joined = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
        assert len(joined) == len(paper.curves) + ours


def test_a_second_setting_of_an_optimizer_is_paler(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / str(lr), optimizer__lr=lr) for lr in (1e-3, 2e-3)]
    (section,) = sort_runs(read_runs(folders))
    first, second = (color_of(group, LIGHT) for group in section.groups)
    assert first == LIGHT.of("came") != second


def test_bars(section: Section) -> None:
    (axes,) = draw_bars(section, "time", LIGHT).axes
    came, lamb = axes.patches
    assert (came.get_width(), lamb.get_width()) == (0.75, 0.25)
    assert axes.get_xlim()[0] == 0
    assert [text.get_text().strip() for text in axes.texts] == ["750 ms", "250 ms"]
    (axes,) = draw_bars(section, "state", LIGHT).axes
    assert [text.get_text().strip() for text in axes.texts] == ["4.80 kB", "4.80 kB"]


def test_a_bar_without_a_value_keeps_its_place(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, name) for name in ("came", "adamw", "sm3")]
    for folder in (folders[0], folders[2]):
        (folder / "ledger.json").unlink()
    (only,) = sort_runs(read_runs(folders))
    (axes,) = draw_bars(only, "state", LIGHT).axes
    assert axes.get_ylim() == (2.5, -0.5)
    texts = [(text.get_text().strip(), text.get_position()[1]) for text in axes.texts]
    assert texts == [("not recorded", 0), ("4.80 kB", 1), ("not recorded", 2)]


def test_a_run_that_was_stopped_early_makes_no_log_scale(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", steps=80), write_run(tmp_path / "b", stopped=10, steps=80)]
    (only,) = sort_runs(read_runs(runs))
    (axes,) = draw_curves(only, "eval/loss", LIGHT, paper=None, as_fraction=False).axes
    assert axes.get_xscale() == "linear" and axes.get_xlim() == (0, 80)


def test_units() -> None:
    assert in_units("state", 2_689_600_000) == "2.69 GB" and in_units("memory", 12) == "12 bytes"
    assert in_units("time", 12.5) == "12.50 s" and in_units("time", 0.0312) == "31 ms"
