"""When a run saves, which checkpoints it keeps, and what it does when it cannot."""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainers.run.checkpoints import names
from tests.trainers.run.test_formats import engine_of
from trainers.compose import compose
from trainers.errors import ConfigError, NonFiniteError, StorageError
from trainers.run import commits, manifest
from trainers.run import saver as savers
from trainers.run.console import short
from trainers.run.folder import RunFolder
from trainers.run.saver import Progress, Saver
from trainers.run.snapshot import Snapshot

DATA: Any = SimpleNamespace(fingerprint="f00d", tokenizer_fingerprint="beef")


@dataclass(frozen=True)
class Alone:
    rank = 0
    world_size = 1
    device = torch.device("cpu")

    def sum(self, values: Tensor) -> Tensor:
        return values


def saver_of(folder: RunFolder, *words: str) -> Saver:
    config = compose(["experiment=quickstart", "data.cache_dir=x", *words], 1)
    return Saver(config, DATA, folder, Alone())  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    with RunFolder.open(tmp_path, 0) as opened:
        yield opened


def save(saver: Saver, step: int, **metrics: float) -> None:
    values = {"step": step} | {f"eval/{name}": value for name, value in metrics.items()}
    saver.save(engine_of("bfloat16", steps=1), step, Progress(step * 8, step * 99), values)


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_commit_is_told_in_one_line(
    background: str, folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder.path.parent)
    with saver_of(folder, f"checkpoint.background={background}") as saver:
        save(saver, 200)
    (told,) = capsys.readouterr().out.splitlines()
    commit = folder.checkpoints / "step-00000200"
    num_bytes = sum(file.stat().st_size for file in commit.glob("*.safetensors"))
    path = commit.relative_to(folder.path.parent)
    assert told == f"saved step 200: {path}, {short(num_bytes)}B"


def test_by_steps_and_by_minutes(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = saver_of(folder, "checkpoint.every=4", "checkpoint.every_minutes=2")
    assert [saver.is_due(step, waits=True) for step in (1, 4, 6, 8)] == [False, True, False, True]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 121)
    # The wall clock may jump as it likes; between logged steps nobody asks the others.
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert saver.is_due(5, waits=True) and not saver.is_due(5, waits=False)
    save(saver, 5)
    assert not saver.is_due(6, waits=True)
    with saver:
        pass
    assert not saver_of(folder, "checkpoint.every=0").is_due(500, waits=True)


@pytest.mark.parametrize(("best", "kept"), [("eval/loss", 2), ("max:eval/loss", 1)])
def test_the_best_stays_beside_the_newest(folder: RunFolder, best: str, kept: int) -> None:
    losses = {1: 5.0, 2: 2.0, 3: 3.0, 4: 4.0, 5: float("nan")}
    with saver_of(folder, f"checkpoint.best={best}") as saver:
        for step, loss in losses.items():
            better = saver.is_better({"step": step, "eval/loss": loss})
            assert better == (step == 1 or (step == 2 and kept == 2))
            save(saver, step, loss=loss)
    assert names(folder.checkpoints) == [f"step-0000000{step}" for step in (kept, 4, 5)]
    again = saver_of(folder, f"checkpoint.best={best}")
    assert again.resume(engine_of("bfloat16", seed=2, steps=0)) == 5
    assert not again.is_better({"eval/loss": losses[kept]})
    assert again.is_better({"eval/loss": -1.0 if kept == 2 else 9.0})
    assert not again.is_better({"train/loss": 0.0})
    again.expect(["eval/loss"])
    with pytest.raises(ConfigError, match="eval/loss is none of eval/nsp_loss"):
        again.expect(["eval/nsp_loss"])


def test_skipped_steps_are_counted_over_all_starts(folder: RunFolder) -> None:
    engine = engine_of("bfloat16", steps=1)
    engine.skipped_steps = 3
    with saver_of(folder) as saver:
        saver.save(engine, 5, Progress(5, 5), {"step": 5})
    again = engine_of("bfloat16", steps=0)
    assert saver_of(folder).resume(again) == 5
    assert again.skipped_steps == 3


def test_a_failed_save_is_told_and_training_goes_on(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    saver = saver_of(folder, "checkpoint.max_failed_saves=3")
    save(saver, 1)
    saver.settle()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "fsync", full)
        save(saver, 2)
        save(saver, 3)
        saver.settle()
    assert caplog.text.count("No space left on device") == 2
    assert names(folder.checkpoints) == ["step-00000001"]
    save(saver, 4)  # counted anew after one that works
    saver.settle()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for step in (5, 6, 7):
            save(saver, step)
        with pytest.raises(StorageError, match="the last 3 checkpoints could not.*No space") as end:
            save(saver, 8)
    assert end.value.exit_code == 6 and end.value.everywhere
    assert names(folder.checkpoints) == ["step-00000001", "step-00000004"]


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_run_whose_last_save_fails_did_not_end_well(
    folder: RunFolder, background: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        pytest.raises(StorageError, match="the last checkpoint could not be saved"),
        saver_of(folder, f"checkpoint.background={background}") as saver,
    ):
        save(saver, 1)
        saver.settle()
        monkeypatch.setattr(os, "fsync", full)
        save(saver, 2)


@pytest.mark.parametrize("everywhere", [True, False])
def test_an_error_of_all_ranks_waits_for_the_save_of_before(
    everywhere: bool, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a single rank does not: the launcher soon ends the others."""
    write = Snapshot.write
    monkeypatch.setattr(Snapshot, "write", lambda *args: (time.sleep(0.5), write(*args))[1])
    monkeypatch.setattr(savers, "_GRACE_SECONDS", 0.1)
    failure = NonFiniteError("")
    failure.everywhere = everywhere
    with pytest.raises(NonFiniteError), saver_of(folder) as saver:
        save(saver, 1)
        thread = saver._writer._save and saver._writer._save.thread
        raise failure
    assert thread is not None
    thread.join(30)
    assert names(folder.checkpoints) == (["step-00000001"] if everywhere else [])


def test_what_was_refused_at_load_counts_for_nothing(folder: RunFolder) -> None:
    words = ("checkpoint.keep=2", "checkpoint.best=eval/loss")
    with saver_of(folder, *words) as saver:
        save(saver, 90, loss=3.0)
        save(saver, 97, loss=1.0)
    with open(folder.checkpoints / "step-00000097" / "rank-00000.safetensors", "r+b") as file:
        file.truncate(100)
    again = saver_of(folder, *words)
    engine = engine_of("bfloat16", seed=2, steps=0)
    assert again.resume(engine) == 90
    assert again.is_better({"eval/loss": 2.0}), "than that of step 90"
    with again:
        save(again, 95, loss=2.0)
        again.settle()
        assert "step-00000097" in names(folder.checkpoints), "until the run comes by"
        save(again, 100, loss=2.5)
    kept, aside, newest = names(folder.checkpoints)
    assert (kept, newest) == ("step-00000095", "step-00000100")
    assert aside.startswith("step-00000097.refused-"), "never removed: maybe the disk was ill"


def test_a_refused_commit_that_is_saved_again_counts(folder: RunFolder) -> None:
    with saver_of(folder) as saver:
        save(saver, 90)
        save(saver, 97)
    (folder.checkpoints / "step-00000097" / "manifest.json").unlink()
    with saver_of(folder) as again:
        assert again.resume(engine_of("bfloat16", seed=2, steps=0)) == 90
        save(again, 97)
        save(again, 98)
    first, aside, last = names(folder.checkpoints)
    assert (first, last) == ("step-00000097", "step-00000098")
    assert aside.startswith("step-00000097.refused-")


def test_a_run_that_fails_waits_for_the_save_of_before(folder: RunFolder) -> None:
    with pytest.raises(KeyError), saver_of(folder) as saver:
        save(saver, 1)
        raise KeyError
    assert names(folder.checkpoints) == ["step-00000001"]


def test_what_a_checkpoint_tells_beside_the_state(folder: RunFolder) -> None:
    (folder.path / "wandb_id").write_text("abc123\n")
    with saver_of(folder) as saver:
        save(saver, 7, loss=2.5, perplexity=float("inf"))
    (path,) = commits.committed(folder.checkpoints)
    extra = manifest.read(path).extra
    assert extra == {
        **{"samples": 56, "tokens": 693, "skipped_steps": 0},
        **{"metrics": {"eval/loss": 2.5}, "wandb_id": "abc123"},
    }
    (folder.path / "wandb_id").unlink()  # the checkpoints alone were copied elsewhere
    again = saver_of(folder)
    assert again.resume(engine_of("bfloat16", seed=2, steps=0)) == 7
    assert again.tokens == 693
    assert (folder.path / "wandb_id").read_text() == "abc123\n"
