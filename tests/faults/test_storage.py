"""Whole runs on a full disk, and from damaged checkpoints (make test-faults)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import STEPS
from tests.faults.runs import Started, commits, losses, state
from tests.trainers.run.checkpoints import rewrite_manifest

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

DATA, OTHER = "rank-00000.safetensors", "rank-00001.safetensors"


def cut(folder: Path) -> None:
    (folder / OTHER).write_bytes((folder / OTHER).read_bytes()[:-100])


def flip(folder: Path) -> None:
    content = bytearray((folder / OTHER).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / OTHER).write_bytes(content)


def plant_nan(folder: Path) -> None:
    """With digests made anew: only a look at the numbers finds it."""
    content = bytearray((folder / DATA).read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    place = start + next(r["data_offsets"][0] for r in table.values() if r["dtype"] == "F32")
    content[place : place + 4] = b"\xff" * 4
    (folder / DATA).write_bytes(content)
    rewrite_manifest(folder, lambda body: None)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "10 cut": (cut, f"{OTHER} has "),
    "11 one bit": (flip, f"{OTHER} has other content than was saved: its sha256 differs"),
    "12 lost": (lambda folder: (folder / DATA).unlink(), f"{DATA} is missing"),
    "22 no number": (plant_nan, "has values that are not finite"),
}


def test_an_update_waits_for_a_copy_that_takes_long(
    corpus: Path, unbroken: Path, tmp_path: Path
) -> None:
    """What is saved is the state of its step, where one rank copies a second later than the other."""
    run_dir = tmp_path / "run"
    ended = Started(corpus, run_dir, STEPS, fault="sleep=1@copy:rank1").end()
    assert ended.code == 0, ended.output
    assert ended.output.count("fault: sleep") == len(range(3, 14, 3)) + 1
    newest = commits(run_dir)
    assert newest == commits(unbroken)
    for step in newest:
        assert state(run_dir, step) == state(unbroken, step)


def test_a_full_disk_and_damaged_checkpoints(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    """Rows 8, 9, 10 to 13 and 22: one run that suffers them all."""
    run_dir = tmp_path / "run"
    checkpoints = run_dir / "checkpoints"
    full = "enospc@write step-0000000[36]*/rank-00001.part:rank1,enospc@write step-*/manifest.json"
    ended = Started(corpus, run_dir, STEPS, fault=full).end()
    assert ended.code == 6, ended.output
    assert ended.output.count(" could not be saved: ") >= 3
    assert "rank 1: it could not write" in ended.output
    assert "the last 3 checkpoints could not be saved: [Errno 28] No space left" in ended.output
    assert {told["exit_code"] for told in ended.last_words} == {6}
    assert commits(run_dir) == [] and [path.name for path in checkpoints.iterdir()] == []
    assert min(losses(run_dir)) == 1 and 9 <= max(losses(run_dir)) <= 12  # it went on before

    # Row 9: the pointer cannot be written, which costs nothing.
    ended = Started(corpus, run_dir, STEPS, fault="enospc@write */latest").end()
    assert ended.code == 0 and ended.output.count("fault: ") == 5, ended.output
    assert commits(run_dir) == [14, 12] and not (checkpoints / "latest").exists()
    assert state(run_dir, 14) == state(unbroken, 14)

    # Row 13 with each: a pointer that leads out of the folder is never followed.
    for name, (damage, words) in DAMAGE.items():
        damage(checkpoints / "step-00000014")
        (checkpoints / "latest").write_text("../../elsewhere\n")
        ended = Started(corpus, run_dir, STEPS).end()
        where = f"{name}\n{ended.output}"
        assert ended.code == 0 and "step-00000014: " in ended.output and words in ended.output, (
            where
        )
        assert "step 13/14" in ended.output and "step 12/14" not in ended.output, where
        assert commits(run_dir) == [14, 12] and ended.seconds < 60, where
        assert state(run_dir, 14) == state(unbroken, 14), where
        assert losses(run_dir) == losses(unbroken), where

    for folder in checkpoints.glob("step-*"):
        flip(folder)
    before = {path: path.read_bytes() for path in checkpoints.rglob("*.*")}
    ended = Started(corpus, run_dir, STEPS).end()
    assert ended.code == 4, ended.output
    assert "no checkpoint in" in ended.output and "start again with another run.dir" in ended.output
    assert commits(run_dir) == [14, 12] and ended.seconds < 60
    assert before == {path: path.read_bytes() for path in checkpoints.rglob("*.*")}
