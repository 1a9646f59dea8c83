"""A damaged checkpoint: an older one is loaded bit for bit, or it is refused in words."""

import hashlib
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.run.checkpoints import load, random_state, rewrite_manifest, same_bits, save
from trainers.errors import CheckpointError

DATA = "rank-00000.safetensors"


def edit_bytes(folder: Path, change: Callable[[bytearray], Any], name: str = DATA) -> None:
    content = bytearray((folder / name).read_bytes())
    change(content)
    (folder / name).write_bytes(content)


def set_byte(content: bytearray, place: int) -> None:
    content[place] ^= 1


def link_file(folder: Path) -> None:
    shutil.move(folder / DATA, folder.parent.parent / "elsewhere")
    (folder / DATA).symlink_to(folder.parent.parent / "elsewhere")


def link_folder(folder: Path) -> None:
    shutil.move(folder, folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def name_outside(folder: Path) -> None:
    shutil.copy(folder / DATA, folder.parent / "outside")

    def change(body: dict[str, Any]) -> None:
        body["files"]["../outside"] = body["files"].pop(DATA)

    rewrite_manifest(folder, change)


def plant_nan(folder: Path) -> None:
    edit_bytes(folder, lambda content: content.__setitem__(slice(-4, None), b"\xff" * 4))
    rewrite_manifest(folder, lambda body: None)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "half": (lambda f: edit_bytes(f, lambda c: c.__delitem__(slice(len(c) // 2, None))), "bytes"),
    "short": (lambda f: edit_bytes(f, lambda c: c.__delitem__(slice(-100, None))), "bytes instead"),
    "empty": (lambda f: edit_bytes(f, lambda c: c.clear()), "0 bytes instead"),
    "one bit": (lambda f: edit_bytes(f, lambda c: set_byte(c, -1)), "sha256"),
    "zeroed": (
        lambda f: edit_bytes(f, lambda c: c.__setitem__(slice(-300, None), bytes(300))),
        "sha256",
    ),
    "missing": (lambda f: (f / DATA).unlink(), "missing"),
    "folder": (lambda f: ((f / DATA).unlink(), (f / DATA).mkdir()), "not a regular file"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "missing"),
    "empty manifest": (lambda f: (f / "manifest.json").write_text(""), "not a manifest"),
    "garbled": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe{"), "not text"),
    "list": (lambda f: (f / "manifest.json").write_text("[1]"), "not a manifest"),
    "deep": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "not a manifest"),
    "future": (lambda f: rewrite_manifest(f, lambda b: b.update(schema=3)), "schema 3"),
    "edited": (
        lambda f: edit_bytes(f, lambda c: set_byte(c, c.index(b"600")), "manifest.json"),
        "digest",
    ),
    "renamed": (lambda f: f.rename(f.with_name("step-00000300")), "is of step 100"),
    "linked file": (link_file, "not a regular file"),
    "linked folder": (link_folder, "symbolic link"),
    "path": (name_outside, "not a plain file name"),
    "lost tensor": (
        lambda f: rewrite_manifest(
            f, lambda b: b["tensors"].update({"param/x": b["tensors"]["param/emb"]})
        ),
        "in no file",
    ),
    "other shape": (
        lambda f: rewrite_manifest(f, lambda b: b["tensors"]["param/emb"].update(shape=[5, 8])),
        "not what manifest.json lists",
    ),
    "lost field": (lambda f: rewrite_manifest(f, lambda b: b.pop("extra")), "lacks a field"),
    "wrong type": (lambda f: rewrite_manifest(f, lambda b: b.update(identity=3)), "not a table"),
    "nan": (plant_nan, "not finite"),
}


OF_A_FILE = ("half", "short", "empty", "one bit", "zeroed", "missing", "folder", "linked file")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_commit_is_refused_in_words_and_the_older_one_loaded(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage, words = DAMAGE[kind]
    folder = tmp_path / "checkpoints"
    save(folder, 50, random_state(50))
    damage(save(folder, 100, random_state(100)))
    live = random_state(0)
    loaded = load(folder, live)
    assert loaded is not None and loaded.step == 50
    assert same_bits(live, random_state(50))
    (record,) = caplog.records
    assert words in record.getMessage()
    names = ("step-00000100: ", "step-00000300: ")
    assert any(name in record.getMessage() for name in names)
    if kind in OF_A_FILE:
        assert f"{DATA} " in record.getMessage()


def test_when_no_commit_is_good_nothing_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2):
        edit_bytes(save(tmp_path, step, random_state(step)), lambda c: set_byte(c, -1))
    live = random_state(0)
    with pytest.raises(CheckpointError, match="step-00000002.*sha256.*step-00000001.*run.dir"):
        load(tmp_path, live)
    assert same_bits(live, random_state(0))


def test_a_file_that_is_not_listed_is_only_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (save(tmp_path, 1, random_state(1)) / "notes.txt").write_text("mine")
    assert load(tmp_path, random_state(0)) is not None
    assert "notes.txt" in caplog.text


class Touch:
    """Unpickling it makes a file: the code that a stranger's checkpoint would run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_in_place_of_the_tensors_is_not_run(tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoints", 1, random_state(1))
    (folder / DATA).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    rewrite_manifest(folder, lambda body: None)
    with pytest.raises(CheckpointError):
        load(tmp_path / "checkpoints", random_state(0))
    assert not (tmp_path / "ran").exists()


PICKLED = ("mp_rank_00_model_states.pt", "optim_states.pt", "rng_state.pth", "loader.pkl")


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", [*PICKLED, ".metadata", "__0_0.distcp", "pytorch_model.bin"])
def test_pickles_beside_the_tensors_are_not_run(name: str, listed: bool, tmp_path: Path) -> None:
    """As others name what they save: told as not listed, or refused where the manifest has it."""
    folder = save(tmp_path / "checkpoints", 1, random_state(1))
    (folder / name).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    if listed:
        path = folder / name
        entry = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        entry |= {"bytes": path.stat().st_size}
        rewrite_manifest(folder, lambda body: body["files"].update({name: entry}))
        with pytest.raises(CheckpointError):
            load(tmp_path / "checkpoints", random_state(0))
    else:
        assert load(tmp_path / "checkpoints", random_state(0)) is not None
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "ran").exists(), "it would have been noticed"
