"""TensorBoard shows what metrics.jsonl has, once, and stops no run."""

from importlib import util
from pathlib import Path

import pytest

from trainers.compose import compose
from trainers.errors import ConfigError
from trainers.run.metrics import Metrics
from trainers.run.tensorboard_mirror import FOLDER, TensorBoardMirror

WORDS = ["experiment=quickstart", "logging=tensorboard"]


def train(folder: Path, resume_step: int, *steps: int, seed: float = 0.0) -> None:
    with Metrics(folder, compose(WORDS, 1), 0, resume_step=resume_step) as metrics:
        for step in steps:
            values = {"step": step, "train/loss": step / 4 + seed, "eval/loss": float("nan")}
            metrics.log(values)
        metrics.publish(folder)


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / FOLDER)).Reload()
    names = found.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in names}


def test_a_resumed_run_is_shown_without_the_steps_that_were_trained_again(tmp_path: Path) -> None:
    train(tmp_path, 0, 1, 2, 3)
    train(tmp_path, 2, 3, 4, seed=10.0)
    losses = [(1, 0.25), (2, 0.5), (3, 10.75), (4, 11.0)]
    assert shown(tmp_path) == {"train/loss": losses}, "what is no number is left out"


def test_a_run_that_had_another_logger_is_shown_from_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train/loss": 2.0}\n')
    train(tmp_path, 5, 6)
    assert shown(tmp_path) == {"train/loss": [(5, 2.0), (6, 1.5)]}


def test_a_step_is_on_the_disk_when_it_is_logged(tmp_path: Path) -> None:
    mirror = TensorBoardMirror(tmp_path, 0, list)
    mirror.log({"step": 1, "train/loss": 0.5})
    assert shown(tmp_path) == {"train/loss": [(1, 0.5)]}
    mirror.close()


def test_a_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("")
    train(tmp_path, 0, 1, 2)
    assert len(caplog.records) == 1 and "TensorBoard gets no numbers" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text().count("train/loss") == 2


def test_a_writer_that_breaks_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mirror = TensorBoardMirror(tmp_path, 0, list)
    mirror._writer.close()
    mirror._writer.flush = lambda: 1 / 0
    for step in (1, 2):
        mirror.log({"step": step, "train/loss": 0.5})
    mirror.close()
    assert len(caplog.records) == 1


def test_a_missing_package_is_told_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.validate.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="logging=tensorboard needs.*pip install tensorboard"):
        compose(WORDS, 1)
    compose(WORDS, planned=True)  # who only plans it needs no logger
    assert util.find_spec("tensorboard") is not None, "the tests themselves need it"
