"""A damaged checkpoint: an older one is loaded bit for bit, or it is refused in words."""

import contextlib
import os
import pickle
import random
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


def test_when_no_commit_is_good_nothing_is_loaded(tmp_path: Path) -> None:
    for step in (1, 2):
        edit_bytes(save(tmp_path, step, random_state(step)), lambda c: set_byte(c, -1))
    live = random_state(0)
    with pytest.raises(CheckpointError, match="step-00000002.*sha256.*step-00000001.*run.dir"):
        load(tmp_path, live)
    assert same_bits(live, random_state(0))


# Damage of any kind to a folder of two commits; each takes a source of chance.


def any_path(checkpoints: Path, chance: random.Random) -> Path:
    found = sorted(
        path for path in checkpoints.rglob("*") if path.is_dir() and not path.is_symlink()
    )
    return chance.choice(found or [checkpoints])


def any_file(checkpoints: Path, chance: random.Random) -> Path:
    return chance.choice(sorted(p for p in checkpoints.rglob("*") if is_plain(p)))


def any_commit(checkpoints: Path, chance: random.Random) -> Path:
    """One whose files are files: who edits it would wait for a pipe."""
    folders = sorted(path for path in checkpoints.iterdir() if not path.is_symlink())
    return chance.choice([f for f in folders if all(map(is_plain, f.iterdir()))])


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def change_bytes(checkpoints: Path, chance: random.Random) -> None:
    path = any_file(checkpoints, chance)
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place : place + chance.choice([1, 1, 8])] = chance.randbytes(chance.choice([1, 1, 8]))
    path.write_bytes(content)


def flip_bit(checkpoints: Path, chance: random.Random) -> None:
    path = any_file(checkpoints, chance)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def truncate(checkpoints: Path, chance: random.Random) -> None:
    path = any_file(checkpoints, chance)
    os.truncate(path, chance.randrange(path.stat().st_size + 1))


def delete(checkpoints: Path, chance: random.Random) -> None:
    path = any_path(checkpoints, chance)
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def swap(checkpoints: Path, chance: random.Random) -> None:
    one, other = any_path(checkpoints, chance), any_path(checkpoints, chance)
    if one not in other.parents and other not in one.parents and one != other:
        aside = checkpoints.parent / "aside"
        one.rename(aside)
        other.rename(one)
        aside.rename(other)


def rename(checkpoints: Path, chance: random.Random) -> None:
    path = any_path(checkpoints, chance)
    new = [
        "step-00000099",
        "step-99",
        "x",
        "rank-00007.safetensors",
        "step-00000100.tmp-1",
        "\u2028",
    ]
    target = path.with_name(chance.choice(new))
    if not target.exists():
        path.rename(target)


def duplicate(checkpoints: Path, chance: random.Random) -> None:
    path = any_path(checkpoints, chance)
    target = path.with_name(chance.choice(["step-00000200", "rank-00002.safetensors", "copy"]))
    if not target.exists():
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)


def link(checkpoints: Path, chance: random.Random) -> None:
    """To a good commit of another run, outside."""
    path = any_path(checkpoints, chance)
    outside = checkpoints.parents[1] / "outside" / "step-00000100"
    target = outside if path.is_dir() else outside / path.name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(target)


def special(checkpoints: Path, chance: random.Random) -> None:
    path = any_file(checkpoints, chance)
    path.unlink()
    path.mkdir() if chance.random() < 0.5 else os.mkfifo(path)


def forge(checkpoints: Path, chance: random.Random) -> None:
    """A value of the manifest is replaced, and its digest made anew."""

    def change(body: dict[str, Any]) -> None:
        table, depth = body, 0
        while True:
            key = chance.choice(sorted(table))
            if not isinstance(table[key], dict) or not table[key] or chance.random() < 0.2:
                break
            table, depth = table[key], depth + 1
        # What the run itself put there is its own; a forger may write another run's.
        if table is not body or key not in ("step", "extra", "identity", "setting", "versions"):
            new = chance.choice([None, "../x", [], {}, 3, -1, "NaN", True, [1, "a"], 10**30])
            table[key] = new if table is not body.get("extra") else table[key]

    rewrite_manifest(any_commit(checkpoints, chance), change)


def forge_numbers(checkpoints: Path, chance: random.Random) -> None:
    """Numbers become no numbers, and all digests are made anew."""
    folder = any_commit(checkpoints, chance)
    edit_bytes(folder, lambda content: content.__setitem__(slice(-4, None), b"\xff" * 4))
    rewrite_manifest(folder, lambda body: None)


DAMAGES = (
    *(change_bytes, flip_bit, truncate, delete, swap, rename, duplicate, link, special),
    *(forge, forge_numbers),
)


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """A bit-equal load of a commit, or a refusal in words; never a third outcome."""
    whole = tmp_path / "whole"
    for step in (50, 100):
        save(whole, step, random_state(step))
    save(tmp_path / "outside", 100, random_state(7))
    files = {path: path.read_bytes() for path in (tmp_path / "outside").rglob("*.*")}
    chance = random.Random(0)
    outcomes = {50: 0, 100: 0, "refused": 0, "none": 0}
    for trial in range(520):
        checkpoints = tmp_path / str(trial) / "checkpoints"
        shutil.copytree(whole, checkpoints)
        damages = chance.choices(DAMAGES, k=chance.choice([1, 1, 2]))
        for damage in damages:
            with contextlib.suppress(OSError, IndexError, KeyError, ValueError):
                damage(checkpoints, chance)  # a second one may find nothing to damage
        live = random_state(0)
        words = f"trial {trial}: {[damage.__name__ for damage in damages]}"
        try:
            loaded = load(checkpoints, live)
        except CheckpointError as error:
            assert len(str(error)) > 20 and same_bits(live, random_state(0)), words
            outcomes["refused"] += 1
        else:
            found = loaded.step if loaded else "none"
            assert same_bits(live, random_state(loaded.step if loaded else 0)), words
            outcomes[found] += 1
    assert files == {path: path.read_bytes() for path in files}
    assert all(outcomes[kind] > 10 for kind in (50, 100)) and outcomes["refused"] > 5, outcomes


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
