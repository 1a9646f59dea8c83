"""Damage of any kind to a folder of commits; each kind takes a source of chance."""

import contextlib
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from came.pieces import Entry
from tests.trainers.run.checkpoints import (
    IDENTITY,
    PARAMS,
    SETTING,
    cut,
    cut_world,
    random_state,
    rewrite_manifest,
    write_world,
)
from trainers.errors import CheckpointError
from trainers.run import commits
from trainers.run.checkpoint import load_latest
from trainers.run.step_folders import step_of

TRIALS = 600


def paths(checkpoints: Path) -> list[Path]:
    """All files, folders and links; nothing behind a link."""
    return sorted(checkpoints.rglob("*"))


def is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def kind_of(path: Path) -> str:
    return "folder" if path.is_dir() else "file"


def any_path(checkpoints: Path, chance: random.Random) -> Path:
    """A file as often as a folder, the hint `latest` among the files."""
    kind = chance.choice(["file", "folder"])
    return chance.choice([path for path in paths(checkpoints) if kind_of(path) == kind])


def any_file(checkpoints: Path, chance: random.Random) -> Path:
    return chance.choice([path for path in paths(checkpoints) if is_plain(path)])


def any_commit(checkpoints: Path, chance: random.Random) -> Path:
    """One whose files are files: who edits it would wait for a pipe."""
    folders = [path for path in paths(checkpoints) if path.is_dir() and not path.is_symlink()]
    return chance.choice([f for f in folders if all(map(is_plain, f.iterdir()))])


# Each says what it has damaged; nothing, or an error, if it found nothing to damage.


def change_bytes(checkpoints: Path, chance: random.Random) -> str:
    path = any_file(checkpoints, chance)
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    content[place : place + chance.choice([1, 1, 8])] = chance.randbytes(chance.choice([1, 1, 8]))
    path.write_bytes(content)
    return "file"


def flip_bit(checkpoints: Path, chance: random.Random) -> str:
    path = any_file(checkpoints, chance)
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    return "file"


def truncate(checkpoints: Path, chance: random.Random) -> str:
    path = any_file(checkpoints, chance)
    os.truncate(path, chance.randrange(path.stat().st_size + 1))
    return "file"


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def delete(checkpoints: Path, chance: random.Random) -> str:
    path = any_path(checkpoints, chance)
    kind = kind_of(path)
    remove(path)
    return kind


def swap(checkpoints: Path, chance: random.Random) -> str:
    one, other = any_path(checkpoints, chance), any_path(checkpoints, chance)
    if one == other or one in other.parents or other in one.parents:
        return ""
    kinds = sorted({kind_of(one), kind_of(other)})
    aside = checkpoints.parent / "aside"
    one.rename(aside)
    other.rename(one)
    aside.rename(other)
    return " and ".join(kinds)


def rename(checkpoints: Path, chance: random.Random) -> str:
    path = any_path(checkpoints, chance)
    new = ["step-00000099", "step-99", "x", "rank-00007.safetensors", "step-00000100.tmp-1"]
    target = path.with_name(chance.choice([*new, "\u2028"]))
    if os.path.lexists(target):
        return ""
    path.rename(target)
    return kind_of(target)


def duplicate(checkpoints: Path, chance: random.Random) -> str:
    path = any_path(checkpoints, chance)
    target = path.with_name(chance.choice(["step-00000200", "rank-00002.safetensors", "copy"]))
    if os.path.lexists(target):
        return ""
    shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    return kind_of(target)


def copy_over(checkpoints: Path, chance: random.Random) -> str:
    """A file takes the content of another one, and keeps its name."""
    one, other = any_file(checkpoints, chance), any_file(checkpoints, chance)
    if one.read_bytes() == other.read_bytes():
        return ""
    shutil.copy(one, other)
    return "file"


def link(checkpoints: Path, chance: random.Random) -> str:
    """To a good commit of another run, outside."""
    path = any_path(checkpoints, chance)
    kind = kind_of(path)
    outside = checkpoints.parents[1] / "outside" / "step-00000100"
    remove(path)
    path.symlink_to(outside if kind == "folder" else outside / path.name)
    return kind


def special(checkpoints: Path, chance: random.Random) -> str:
    path = any_file(checkpoints, chance)
    path.unlink()
    path.mkdir() if chance.random() < 0.5 else os.mkfifo(path)
    return "file"


def forge(checkpoints: Path, chance: random.Random) -> str:
    """A value of the manifest is replaced or removed, and its digest made anew."""

    def change(body: dict[str, Any]) -> None:
        table, is_body = body, True
        while True:
            key = chance.choice(sorted(table))
            if not isinstance(table[key], dict) or not table[key] or chance.random() < 0.2:
                break
            table, is_body = table[key], False
        # What the run itself put there is its own; a forger may write another run's.
        if is_body and key in ("step", "extra", "identity", "setting", "versions"):
            return
        if chance.random() < 0.2:
            del table[key]
            return
        values = [None, "../x", [], {}, 3, -1, "NaN", True, [1, "a"], 10**30, "int8", "sign"]
        table[key] = chance.choice([*values, "plain", "float32", "bfloat16", [5, 700], [3500]])

    rewrite_manifest(any_commit(checkpoints, chance), change, files=False)
    return "manifest"


def forge_numbers(checkpoints: Path, chance: random.Random) -> str:
    """A number becomes no number, and all digests are made anew."""
    folder = any_commit(checkpoints, chance)
    path = chance.choice(sorted(folder.glob("rank-*.safetensors")))
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    table = json.loads(content[8:start])
    places = [r["data_offsets"] for r in table.values() if r["dtype"] == "F32" and r["shape"][0]]
    first, last = chance.choice(places)
    place = start + chance.randrange(first, last, 4)
    content[place : place + 4] = b"\xff" * 4
    path.write_bytes(content)
    rewrite_manifest(folder, lambda body: None)
    return "numbers"


DAMAGES: dict[Callable[[Path, random.Random], str], tuple[str, ...]] = {
    **dict.fromkeys((delete, rename, duplicate, link), ("file", "folder")),
    **dict.fromkeys((change_bytes, flip_bit, truncate, copy_over, special), ("file",)),
    swap: ("file", "folder", "file and folder"),
    forge: ("manifest",),
    forge_numbers: ("numbers",),
}
SPOILS_BOTH = (swap, forge)  # two commits at once, or says that they are of another run


def make_world(seed: int) -> list[list[Entry]]:
    """Two ranks: momentum in pieces of int8, the rest in plain ones and in whole tensors."""
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(param.shape, generator=generator) for param in PARAMS]
    ranks = cut_world("int8", 2, values)
    return [own + cut(random_state(seed), rank, 2) for rank, own in enumerate(ranks)]


def bits(world: list[list[Entry]]) -> list[bytes]:
    return [
        part.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for own in world
        for entry in own
        for piece in entry.pieces
        for _, part in sorted(piece.parts.items())
    ]


def clear(world: list[list[Entry]]) -> None:
    for entry in (entry for own in world for entry in own):
        for piece in entry.pieces:
            for part in piece.parts.values():
                part.zero_()


def names_left(checkpoints: Path) -> list[str]:
    """What says that there have been commits."""
    return [p.name for p in checkpoints.iterdir() if step_of(p) or p.name == commits.HINT]


def test_random_damage_is_refused_or_harmless(tmp_path: Path) -> None:
    """A bit-equal load of a commit, or a refusal in words; never a third outcome."""
    whole, saved = tmp_path / "whole", {step: make_world(step) for step in (50, 100)}
    for step, world in saved.items():
        write_world(whole, world, step)
    write_world(tmp_path / "outside", make_world(7), 100)
    assert len(paths(whole)) == 2 * (1 + 3) + 1  # folders of three files, and the hint
    outside = {path: path.read_bytes() for path in (tmp_path / "outside").rglob("*.*")}
    live, chance = make_world(0), random.Random(0)
    clear(live)
    nothing, wanted = bits(live), {step: bits(world) for step, world in saved.items()}
    happened: Counter[tuple[str, str]] = Counter()
    outcomes: Counter[Any] = Counter()
    for trial in range(TRIALS):
        checkpoints = tmp_path / str(trial) / "checkpoints"
        shutil.copytree(whole, checkpoints)
        damages = chance.choices(list(DAMAGES), k=chance.choice([1, 1, 2, 3]))
        for damage in damages:
            with contextlib.suppress(OSError, IndexError, KeyError, ValueError):
                happened[damage.__name__, damage(checkpoints, chance)] += 1
        words = f"trial {trial}: {[damage.__name__ for damage in damages]}"
        clear(live)
        try:
            loaded = load_latest(checkpoints, sum(live, []), identity=IDENTITY, setting=SETTING)
        except CheckpointError as error:
            assert len(str(error)) > 20 and bits(live) == nothing, words
            assert len(damages) > 1 or damages[0] in SPOILS_BOTH, f"{words}: {error}"
            outcomes["refused"] += 1
        else:
            assert bits(live) == (wanted[loaded.step] if loaded else nothing), words
            assert loaded or not names_left(checkpoints), f"{words}: a silent first step"
            outcomes[loaded.step if loaded else "first step"] += 1
        shutil.rmtree(checkpoints)
    assert outside == {path: path.read_bytes() for path in outside}
    for damage, kinds in DAMAGES.items():
        for kind in kinds:
            assert happened[damage.__name__, kind] >= 5, (damage.__name__, kind, happened)
    assert all(outcomes[kind] > 50 for kind in (50, 100, "refused")), outcomes
    # Both commits and the hint, by three damages: nothing is left that could tell.
    assert outcomes["first step"] <= TRIALS // 100, outcomes


def test_a_hint_that_leads_nowhere_still_says_that_there_were_commits(tmp_path: Path) -> None:
    shutil.rmtree(write_world(tmp_path, make_world(1), 50))
    (tmp_path / commits.HINT).unlink()
    (tmp_path / commits.HINT).symlink_to(tmp_path / "gone")
    live = sum(make_world(0), [])
    try:
        loaded = load_latest(tmp_path, live, identity=IDENTITY, setting=SETTING)
    except CheckpointError as error:
        assert "no step folder any more" in str(error)
    else:
        raise AssertionError(f"loaded {loaded}")
