"""Checkpoints: what comes back is bit for bit what was saved, or nothing does."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainers.run.checkpoints import (
    IDENTITY,
    SETTING,
    load,
    names,
    random_state,
    same_bits,
    save,
)
from trainers.errors import CheckpointError
from trainers.run import checkpoint, commits

# Saved and loaded ------------------------------------------------------------------------------


def test_load_gives_back_every_bit_and_the_extra(tmp_path: Path) -> None:
    saved, live = random_state(1), random_state(2)
    folder = save(tmp_path, 100, saved)
    loaded = load(tmp_path, live)
    assert loaded == checkpoint.Loaded(100, {"samples": 1600}, folder)
    assert same_bits(live, random_state(1))


def test_no_checkpoints_is_no_error(tmp_path: Path) -> None:
    assert load(tmp_path / "checkpoints", random_state(1)) is None
    (tmp_path / "checkpoints").mkdir()
    assert load(tmp_path / "checkpoints", random_state(1)) is None


def test_checkpoints_that_are_gone_are_no_silent_start_from_nothing(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step, random_state(step))
    assert (tmp_path / "latest").read_text() == "step-00000020\n"
    (tmp_path / "latest").write_text("step-00000010\n")
    loaded = load(tmp_path, random_state(1))
    assert loaded is not None and loaded.step == 20, "a hint that is old is not followed"
    for name in names(tmp_path):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(CheckpointError, match="no step folder any more.*remove latest"):
        load(tmp_path, random_state(1))


@pytest.mark.parametrize(
    "hint", ["", "step-00000010\n", "step-99999999\n", "../x\n", "/etc", "\x00\n"]
)
def test_the_hint_is_never_followed(hint: str, tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path / "checkpoints", step, random_state(step))
    save(tmp_path / "x" / "checkpoints", 30, random_state(30))
    (tmp_path / "checkpoints" / "latest").write_text(hint)
    live = random_state(0)
    loaded = load(tmp_path / "checkpoints", live)
    assert loaded is not None and loaded.step == 20
    assert same_bits(live, random_state(20))


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, step, random_state(step % 7))
    os.utime(tmp_path / "step-100000000", (0, 0))
    loaded = load(tmp_path, random_state(0))
    assert loaded is not None and loaded.step == 100_000_000


def test_prune_keeps_the_newest_commits(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, random_state(step), keep=3)
    assert names(tmp_path) == ["step-00000020", "step-00000030", "step-00000040"]


def test_a_refused_newer_commit_does_not_count_as_kept_and_is_replaced(tmp_path: Path) -> None:
    for step in (10, 20, 40):
        save(tmp_path, step, random_state(step), keep=3)
    (tmp_path / "step-00000040" / "rank-00000.safetensors").unlink()
    save(tmp_path, 30, random_state(30))
    assert names(tmp_path) == ["step-00000020", "step-00000030", "step-00000040"]
    save(tmp_path, 40, random_state(41))
    live = random_state(0)
    load(tmp_path, live)
    assert same_bits(live, random_state(41))
    assert [path.name for path in commits.committed(tmp_path)] == ["step-00000040", "step-00000030"]
    (aside,) = tmp_path.glob("*.refused-*")  # it may have been the disk: nothing refused is removed
    assert aside.name.startswith("step-00000040.")


def test_a_hint_that_was_being_written_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, random_state(1))
    (tmp_path / ".latest.tmp-41").write_text("step-0")
    load(tmp_path, random_state(0))
    assert names(tmp_path) == ["step-00000001"]


def test_keeping_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep = 1"):
        save(tmp_path, 1, random_state(1), keep=1)


def test_old_commits_that_cannot_be_removed_do_not_fail_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rename = os.rename

    def refuse_trash(old: Path, new: Path) -> None:
        if ".trash-" in new.name:
            raise PermissionError("not yours")
        rename(old, new)

    monkeypatch.setattr(os, "rename", refuse_trash)
    for step in (1, 2, 3):
        save(tmp_path, step, random_state(step))
    assert "not yours" in caplog.text
    assert len(commits.committed(tmp_path)) == 3


# Another run -----------------------------------------------------------------------------------


def test_another_run_is_refused_with_old_and_new_value(tmp_path: Path) -> None:
    save(tmp_path, 1, random_state(1))
    live = random_state(0)
    other = IDENTITY | {"model.hidden": 16, "run.seed": 3}
    with pytest.raises(CheckpointError) as error:
        load(tmp_path, live, identity=other)
    assert "model.hidden: 8 when saved, 16 now" in str(error.value)
    assert "run.seed: absent when saved, 3 now" in str(error.value)
    assert "betas" not in str(error.value)
    assert same_bits(live, random_state(0))


def test_another_setting_is_told_and_accepted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, random_state(1))
    assert load(tmp_path, random_state(0), setting=SETTING | {"zero.stage": 3}) is not None
    assert "zero.stage: 1 when saved, 3 now" in caplog.text


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("param/emb", torch.zeros(5, 7), "param/emb: .*7, 5.* when saved, .*5, 7"),
        ("param/emb", torch.zeros(7, 5).double(), "float32.*float64"),
        ("param/more", torch.zeros(1), "param/more is not in the checkpoint"),
    ],
)
def test_tensors_that_do_not_fit_leave_the_state_untouched(
    name: str, tensor: Tensor, words: str, tmp_path: Path
) -> None:
    save(tmp_path, 1, random_state(1))
    live = random_state(0) | {name: tensor}
    before = {key: value.clone() for key, value in live.items()}
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path, live)
    assert same_bits(live, before)


def test_a_tensor_too_many_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1, random_state(1) | {"param/more": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="param/more is not in the model"):
        load(tmp_path, random_state(0))
