"""Whole runs on a full disk, and from damaged checkpoints (make test-faults)."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import STEPS
from tests.faults.runs import STARTING, Started, learned, losses, state
from tests.trainers.run.checkpoints import rewrite_manifest
from trainers.run.step_folders import committed

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
    """Each commit is the state of its step, where one rank copies a second later than the other."""
    run_dir = tmp_path / "run"
    ended = Started(corpus, run_dir, STEPS, fault="sleep=1@copy:rank1").end()
    ended.must(code=0, within=STARTING, words=[], commits=[14, 12])
    assert ended.output.count("fault: sleep") == len(range(3, 14, 3)) + 1
    for step in (14, 12):
        assert state(run_dir, step) == state(unbroken, step)


def test_a_full_disk_and_damaged_checkpoints(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    """Rows 8, 9, 10 to 13 and 22: one run that suffers them all."""
    run_dir = tmp_path / "run"
    checkpoints = run_dir / "checkpoints"
    full = "enospc@part step-00000006*/rank-00001.safetensors:rank1"
    full += ",enospc@write step-00000009*/rank-00001.part:rank1"
    full += ",enospc@write step-00000012*/manifest.json"
    ended = Started(corpus, run_dir, STEPS, fault=full).end()
    words = [
        "step-00000006 could not be saved: rank 1: [Errno 28] No space left",
        "step-00000009 could not be saved: rank 1: it could not write",
        "step-00000012 could not be saved: [Errno 28] No space left",
        "the last 3 checkpoints could not be saved: [Errno 28] No space left",
    ]
    ended.must(code=6, within=60, words=words, commits=[3])
    assert {told["exit_code"] for told in ended.last_words} == {6}
    assert {path.name for path in checkpoints.iterdir()} == {"step-00000003", "latest"}
    assert list(losses(run_dir)) == list(range(1, max(losses(run_dir)) + 1))
    assert max(losses(run_dir)) >= 12  # it went on until there

    # Row 9: the pointer cannot be written, which costs nothing; the old one is not followed.
    ended = Started(corpus, run_dir, STEPS, fault="enospc@write */latest").end()
    ended.must(
        code=0,
        within=STARTING,
        words=["goes on from step 3", "latest of step-00000014 could not"],
        commits=[14, 12],
    )
    assert ended.output.count("fault: ") == 4, ended.output
    assert (checkpoints / "latest").read_text() == "step-00000003\n"
    assert state(run_dir, 14) == state(unbroken, 14)

    # Row 13 with each: a pointer that leads out of the folder is never followed.
    for name, (damage, words) in DAMAGE.items():
        damage(checkpoints / "step-00000014")
        (checkpoints / "latest").write_text("../../elsewhere\n")
        ended = Started(corpus, run_dir, STEPS).end()
        said = ["step-00000014: ", words, "goes on from step 12", "step 13/14"]
        ended.must(code=0, within=60, words=said, commits=[14, 12])
        assert "step 12/14" not in ended.output, f"{name}\n{ended.output}"
        assert state(run_dir, 14) == state(unbroken, 14), name
        assert learned(run_dir) == learned(unbroken), name

    for folder in committed(checkpoints):
        flip(folder)
    before = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    said = ["no checkpoint in", f"{OTHER} has other content", "start again with another run.dir"]
    Started(corpus, run_dir, STEPS).end().must(code=4, within=60, words=said, commits=[14, 12])
    after = {path: path.read_bytes() for path in checkpoints.rglob("*") if path.is_file()}
    assert before == after


def test_another_run_is_refused_and_another_setting_told(
    corpus: Path, unbroken: Path, tmp_path: Path
) -> None:
    """Rows 16 and 17, each with both values, and nothing in the folder is changed by a refusal."""
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    other = tmp_path / "other"
    shutil.copytree(corpus, other, ignore=lambda folder, names: set(names) - {"text.txt"})
    content = (other / "text.txt").read_bytes()
    (other / "text.txt").write_bytes(content.replace(b"wind", b"mind", 1))
    longer = "train.steps=15"
    before = {path: path.read_bytes() for path in (run_dir / "checkpoints").rglob("*.*")}
    for text, word, said in (
        (corpus, "model.hidden=64", "model.hidden: 32 when saved, 64 now"),
        (corpus, "run.seed=5", "run.seed: 0 when saved, 5 now"),
        (other, longer, "data (fingerprint): "),
    ):
        ended = Started(text, run_dir, longer, word).end()
        ended.must(code=4, within=60, words=["belongs to another run", said], commits=[14, 12])
    assert before == {path: path.read_bytes() for path in (run_dir / "checkpoints").rglob("*.*")}
    words = ["with another setting: zero.stage: 1 when saved, 2 now", "goes on from step 14"]
    Started(corpus, run_dir, longer, "zero.stage=2").end().must(
        code=0, within=STARTING, words=words, commits=[15, 14]
    )
