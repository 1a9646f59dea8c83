"""The report of one run: the numbers of its metrics, in a picture and a page."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from trainers.compose import compose
from trainers.errors import DataError, StorageError
from trainers.report import main
from trainers.reports.curves import draw
from trainers.reports.series import Series
from trainers.reports.single import results, summarize, write_report
from trainers.run.folder import RunFolder


def rows_of_a_run(num_steps: int = 100) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, num_steps + 1):
        row = {
            "step": step,
            "samples": step * 16,
            "tokens": step * 2048,
            "train/loss": 5 + 4 * math.exp(-step / 20),
            "train/lr": 3e-4 * (1 - step / num_steps),
            "train/tokens_per_second": 40_000.0 + step,
        }
        if step % 25 == 0:
            row |= {"eval/loss": 5.5, "eval/mlm_accuracy": 0.155 * step / num_steps}
            row |= {"eval/commonest_token_accuracy": 0.062}
        rows.append(row)
    return rows


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


def test_report_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "my-run"
    config = compose(["experiment=quickstart"], 2)
    with RunFolder.open(run, rank=0) as folder:
        folder.describe(config, device="cpu (2 threads)", world_size=2)
    write_metrics(run, rows_of_a_run())
    summary = write_report(run)
    assert summary == run / "report" / "summary.md"
    text = summary.read_text()
    for line in (
        "# my-run",
        "![curves](curves.png)",
        "| steps | 100 |",
        "| tokens | 204,800 |",
        "| masked words guessed right | 15.50% |",
        "| always the commonest token | 6.20% |",
        "| times the commonest token | 2.50 |",
        "| tokens per second, median | 40,050 |",
        f"| optimizer.lr | {config.optimizer.lr} |",
        "| device | `cpu (2 threads)` |",
        "| world size | `2` |",
    ):
        assert line in text.splitlines()
    image = imread(run / "report" / "curves.png")
    assert image.shape[:2] == (930, 1500)
    assert image[..., :3].std() > 0.05, "the picture is blank"


def test_what_stands_in_a_cell_ends_neither_the_cell_nor_the_row(tmp_path: Path) -> None:
    """A | in the command made a third column."""
    rows = rows_of_a_run(3)
    start = {"command": "came-train 'data.path=a|b'", "device": "a\nb"}
    (tmp_path / "provenance.json").write_text(json.dumps({"starts": [start]}))
    lines = summarize(tmp_path, rows).splitlines()
    assert "| command | `came-train 'data.path=a\\|b'` |" in lines
    assert "| device | `a b` |" in lines


def test_curves_carry_the_numbers(tmp_path: Path) -> None:
    rows = rows_of_a_run()
    loss, accuracy, rate, speed = draw(rows, "a run").axes
    raw, smooth, held_out = (line.get_ydata() for line in loss.lines)
    assert np.array_equal(raw, [row["train/loss"] for row in rows])
    assert len(smooth) == 100 and list(held_out) == [5.5] * 4
    model, commonest = accuracy.lines
    assert model.get_ydata()[-1] == pytest.approx(0.155)
    assert commonest.get_ydata()[0] == pytest.approx(0.062)
    assert accuracy.get_ylim()[1] > 0.155
    assert rate.lines[0].get_ydata()[0] == rows[0]["train/lr"]
    assert speed.lines[0].get_ydata()[-1] == 40_100


def test_a_long_title_and_what_stands_below_it_are_apart() -> None:
    """The name of a run of a sweep once stood on the words beside it."""
    figure = draw(rows_of_a_run(), "optimizer.lr=0.0004," * 5, "x" * 70)
    figure.canvas.draw()
    title, below = (text.get_window_extent() for text in figure.texts)
    assert title.y0 > below.y1 and max(title.x1, below.x1) < figure.bbox.x1
    assert below.y0 > max(axes.title.get_window_extent().y1 for axes in figure.axes)


@pytest.mark.parametrize(
    ("count", "words", "value"),
    [(5, "the last log", "5.0000"), (80, "mean of the last 3 logs", "79.0000")],
)
def test_the_training_loss_is_called_what_it_is(count: int, words: str, value: str) -> None:
    rows = [{"step": step, "train/loss": float(step)} for step in range(1, count + 1)]
    assert results(rows)[f"training loss, {words}"] == value


def test_smoothing_keeps_lines_and_means() -> None:
    steps = np.arange(1, 401)
    straight = Series(steps, 3.0 * steps)
    inner = straight.smooth().values[:-10]
    assert np.allclose(inner, straight.values[:-10]), "a straight line must not be shifted"
    noisy = Series(steps, np.random.default_rng(0).normal(5, 1, 400))
    assert noisy.smooth().values[20:].std() < 0.35
    assert noisy.smooth().values[0] == pytest.approx(noisy.values[0])


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 1}],
        [{"step": 0, "train/loss": None}],
        [{"step": 1, "train/loss": 9.0}],
        [{"step": 3, "eval/loss": 9.0, "eval/mlm_accuracy": 0.0}],
        [{"step": 3, "eval/mlm_accuracy": 0.1, "eval/commonest_token_accuracy": 0.0}],
    ],
)
def test_a_run_that_measured_little_has_a_report_all_the_same(
    rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    write_metrics(tmp_path, rows)
    text = write_report(tmp_path).read_text()
    assert "nan" not in text and "times the commonest" not in text
    assert (tmp_path / "report" / "curves.png").stat().st_size > 10_000


def test_a_null_is_left_out() -> None:
    rows = [{"step": 1, "eval/loss": 2.0}, {"step": 2, "eval/loss": None}]
    assert results(rows)["held-out loss"] == "2.0000"


def test_garbled_companions_do_not_matter(tmp_path: Path) -> None:
    write_metrics(tmp_path, rows_of_a_run(3))
    (tmp_path / "config.yaml").write_bytes(b"a: [\xff")
    (tmp_path / "provenance.json").write_text("{")
    assert "| steps | 3 |" in write_report(tmp_path).read_text()


@pytest.mark.parametrize("content", [None, "", "garbage\n"])
def test_a_folder_without_metrics_is_refused(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(DataError, match="has no metrics"):
        write_report(tmp_path)
    assert main([str(tmp_path)]) == DataError.exit_code
    assert capsys.readouterr().err.startswith("error: ")


def test_a_file_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was a NotADirectoryError with its traceback."""
    write_metrics(tmp_path, rows_of_a_run(3))
    assert main([str(tmp_path / "metrics.jsonl")]) == DataError.exit_code
    told = f"error: there is no run in {tmp_path / 'metrics.jsonl'}: name run folders, or folders"
    assert told in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    write_metrics(tmp_path, rows_of_a_run(3))
    (tmp_path / "report").write_text("a file")
    with pytest.raises(StorageError, match="report cannot be written"):
        write_report(tmp_path)


def test_the_command_prints_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_metrics(tmp_path, rows_of_a_run(3))
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path.resolve() / "report" / "summary.md")
