"""What becomes a commit: only what can be loaded, and whatever has been told as one."""

import math
import os
from pathlib import Path

import pytest
import torch

from tests.trainers.run.checkpoints import load, names, random_state, same_bits, save
from trainers import durable
from trainers.errors import CheckpointError, StorageError
from trainers.run import commits, parts
from trainers.run import manifest as manifests
from trainers.run import snapshot as snapshots
from trainers.run.manifest import Manifest, RefusedError
from trainers.run.step_folders import folder_name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_what_load_would_refuse_is_never_committed(
    dtype: torch.dtype, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commits of numbers that are none took the places of the good ones."""
    monkeypatch.setattr(snapshots, "_LOOK", 64)  # it lies in a later piece
    largest = torch.full((3, 50), torch.finfo(dtype).max, dtype=dtype)
    for step in (1, 2):
        save(tmp_path, step, random_state(step))
    bad = largest.clone()
    bad[2, 7] = value
    with pytest.raises(StorageError, match=r"param/more\[0:150\] has values that are not finite"):
        save(tmp_path, 3, random_state(3) | {"param/more": bad})
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    good = {"param/more": largest, "buffer/mask": bad, "param/none": torch.zeros(0)}
    save(tmp_path, 3, random_state(3) | good)
    live = random_state(0) | {name: torch.zeros_like(tensor) for name, tensor in good.items()}
    assert load(tmp_path, live) is not None
    assert same_bits(live, random_state(3) | good)


def test_a_folder_that_cannot_be_forced_to_the_disk_is_a_commit_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sync = durable.sync

    def fail(path: Path) -> None:
        if path == tmp_path:
            raise OSError(5, "Input/output error")
        sync(path)

    monkeypatch.setattr(durable, "sync", fail)
    for step in (1, 2, 3):
        save(tmp_path, step, random_state(step))
    assert "step-00000001 is committed, a power cut may undo that: [Errno 5]" in caplog.text
    live = random_state(0)
    assert load(tmp_path, live) is not None and same_bits(live, random_state(3))
    assert names(tmp_path)[0] == "step-00000001", "no older one is removed for it"


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere"])
def test_checkpoints_that_are_no_folder_are_no_new_run(tmp_path: Path, kind: str) -> None:
    """A disk that is not mounted, say: nothing may begin at the first step then."""
    place = tmp_path / "checkpoints"
    if kind == "a file":
        place.write_text("")
    else:
        place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"checkpoints is there, but is no folder"):
        load(place, random_state(0))


def test_a_best_commit_that_cannot_be_read_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step, random_state(step), keep=9, extra={"metrics": {"eval/loss": step}})
    best, read = commits.Best("eval/loss"), manifests.read

    def fail(folder: Path) -> Manifest:
        if folder.name == folder_name(1):
            raise RefusedError("Input/output error")
        return read(folder)

    monkeypatch.setattr(manifests, "read", fail)
    commits.prune(tmp_path, 5, 2, best)
    assert names(tmp_path) == [folder_name(step) for step in (1, 2, 4, 5)], (
        "2 is the best of the others"
    )


def test_a_part_that_is_told_is_not_told_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rank 0 takes it, and renames the folder, before the other rank has come back."""
    replace, staging = os.replace, tmp_path / "step-00000001.tmp-1"
    staging.mkdir()

    def replace_and_commit(source: Path, target: Path) -> None:
        replace(source, target)
        os.rename(staging, tmp_path / "step-00000001")

    monkeypatch.setattr(os, "replace", replace_and_commit)
    parts.leave_part(staging, 1, {})
    assert caplog.text == "" and names(tmp_path / "step-00000001") == ["rank-00001.part"]
