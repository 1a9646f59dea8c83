"""metrics.jsonl keeps what was measured, once, whatever breaks around it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from trainers.compose import compose
from trainers.run import metrics
from trainers.run.metrics import JsonLines, Metrics


def lines(folder: Path) -> list[dict[str, Any]]:
    text = (folder / metrics.FILE_NAME).read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def open_metrics(folder: Path, rank: int = 0, resume_step: int = 0) -> Metrics:
    return Metrics(folder, compose(["experiment=quickstart"], 1), rank, resume_step=resume_step)


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    values = {"step": 1, "tokens": 2**53 + 1, "train/loss": 0.1 + 0.2, "train/lr": 1e-300}
    with open_metrics(tmp_path) as written:
        written.log(values)
        assert lines(tmp_path) == [values], "a line must be in the file at once"
        written.log({"step": 1, "eval/loss": torch.tensor(2.5)})
    assert lines(tmp_path)[1] == {"step": 1, "eval/loss": 2.5}


def test_not_finite_is_null_because_json_has_no_word_for_it(tmp_path: Path) -> None:
    with open_metrics(tmp_path) as written:
        written.log({"step": 1, "train/loss": float("nan"), "eval/loss": torch.tensor(-torch.inf)})
    assert lines(tmp_path) == [{"step": 1, "train/loss": None, "eval/loss": None}]


def test_steps_never_fall(tmp_path: Path) -> None:
    with open_metrics(tmp_path) as written:
        written.log({"step": 2})
        with pytest.raises(AssertionError, match="1 after 2"):
            written.log({"step": 1})


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with open_metrics(tmp_path, rank=1) as written:
        written.log({"step": 1})
    assert list(tmp_path.iterdir()) == []


def test_resuming_cuts_the_lines_that_are_trained_again(tmp_path: Path) -> None:
    with open_metrics(tmp_path) as written:
        for step in range(1, 8):
            written.log({"step": step, "train/loss": step / 3})
    kept = (tmp_path / metrics.FILE_NAME).read_bytes().splitlines(keepends=True)[:4]
    with open(tmp_path / metrics.FILE_NAME, "a") as file:
        file.write('{"step": 8, "train/lo')  # a kill in the middle of a write
    with open_metrics(tmp_path, resume_step=4) as written:
        assert (tmp_path / metrics.FILE_NAME).read_bytes() == b"".join(kept)
        written.log({"step": 5})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_run_without_a_checkpoint_starts_over(tmp_path: Path) -> None:
    for _ in range(2):
        with open_metrics(tmp_path) as written:
            written.log({"step": 1})
    assert len(lines(tmp_path)) == 1


def test_reading_leaves_out_what_is_garbled(tmp_path: Path) -> None:
    path = tmp_path / metrics.FILE_NAME
    assert list(metrics.read(path)) == []
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n[1]\n{"loss": 2}\n{"step": "3"}\n{"step": 4}\n{"st')
    assert [line["step"] for line in metrics.read(path)] == [1, 4]


def test_a_full_disk_drops_whole_lines_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / metrics.FILE_NAME
    written = JsonLines(path, resume_step=0)
    written.log({"step": 1})
    real_write = os.write
    with monkeypatch.context() as patch:
        patch.setattr("os.write", lambda file, line: real_write(file, line[:5]))
        written.log({"step": 2})
        written.log({"step": 3})
    written.log({"step": 4})
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'
    assert written.dropped == 2
    assert caplog.text.count("training goes on") == 1
    written.close()
    assert "lacks 2 lines" in caplog.text


def test_a_file_that_cannot_be_opened_does_not_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / metrics.FILE_NAME).mkdir()
    with open_metrics(tmp_path) as written:
        for step in (1, 2):
            written.log({"step": step})
    assert caplog.text.count("training goes on") == 1
    assert "lacks 2 lines" in caplog.text
