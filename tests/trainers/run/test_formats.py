"""Momentum in its storage format: as it was in the same world, by value where ranks cut anew."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from came import CAME
from came.layout import Param
from came.pieces import Entry, StoredPiece
from came.state import entries, gather
from tests.trainers.run.checkpoints import (
    IDENTITY,
    PARAMS,
    SETTING,
    cut_world,
    save_entries,
    write_world,
)
from trainers.errors import CheckpointError
from trainers.run import tensors
from trainers.run.checkpoint import load_latest
from trainers.run.manifest import Manifest

SCHEMA_1 = Path(__file__).parent / "schema_1"


def engine_of(momentum: str, seed: int = 1, steps: int = 3) -> Any:
    """A tiny model and its optimizer, without an engine around them."""
    torch.manual_seed(seed)
    module = torch.nn.Sequential(torch.nn.Linear(10, 6), torch.nn.Linear(6, 3))
    optimizer = CAME(module.parameters(), lr=1e-2, momentum=momentum, kernel="eager")
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.randn(4, 10)).square().sum().backward()
        optimizer.step()
    return SimpleNamespace(
        module=module, basic_optimizer=optimizer, optimizer=optimizer, skipped_steps=0
    )


def stored_state(engine: Any) -> list[Tensor]:
    state = engine.basic_optimizer.state
    return [state[p][key] for p in engine.module.parameters() for key in sorted(state[p])]


@pytest.mark.parametrize("momentum", ["float32", "bfloat16", "int8", "sign"])
def test_what_comes_back_is_what_was_stored(momentum: str, tmp_path: Path) -> None:
    saved, live = engine_of(momentum), engine_of(momentum, seed=2, steps=0)
    folder = save_entries(tmp_path, 3, entries(saved))
    assert load_latest(tmp_path, entries(live), identity=IDENTITY, setting=SETTING) is not None
    for found, wanted in zip(stored_state(live), stored_state(saved), strict=True):
        assert torch.equal(found, wanted)
    with tensors.Files(folder, Manifest.from_json((folder / "manifest.json").read_text())) as files:
        key = "exp_avg_sign/0.weight" if momentum == "sign" else "exp_avg/0.weight"
        sizes = [part.nbytes for part in files.parts(files.pieces[key][0]).values()]
    # 6 x 10: one block of 16 rows and up to 256 columns; two bytes of signs a row.
    assert sizes == {"float32": [240], "bfloat16": [120], "int8": [60, 4], "sign": [12]}[momentum]


@pytest.mark.parametrize("momentum", ["int8", "sign"])
def test_schema_1_is_read(momentum: str, tmp_path: Path) -> None:
    shutil.copytree(SCHEMA_1 / momentum, tmp_path / "old")
    live = engine_of(momentum, seed=2, steps=0)
    identity = {"optimizer.momentum": momentum}
    loaded = load_latest(tmp_path / "old", entries(live), identity=identity, setting=SETTING)
    assert loaded is not None and loaded.extra == {"samples": 48}
    file = load_file(tmp_path / "old" / "step-00000003" / "rank-00000.safetensors")
    found = {f"{entry.key}/{entry.name}": gather(entry) for entry in entries(live)}
    assert found.keys() == file.keys()
    assert all(torch.equal(found[name], file[name]) for name in file)


# Cut by ranks ----------------------------------------------------------------------------------


def read_world(folder: Path, world: list[list[Entry]]) -> None:
    manifest, _ = tensors.verify(folder)
    for own in world:
        with tensors.Files(folder, manifest) as files:
            assert tensors.misfits(files, manifest, own) == []
            for entry in own:
                tensors.read_entry(files, entry)


def whole_of(world: list[list[Entry]]) -> list[Tensor]:
    found = [torch.zeros(param.numel) for param in PARAMS]
    for own in world:
        for whole, entry in zip(found, own, strict=True):
            for piece in entry.pieces:
                whole[piece.start : piece.start + piece.numel] = piece.read().float()
    return found


@pytest.mark.parametrize("momentum", ["int8", "sign"])
@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("second", [1, 2, 4, 7])
def test_another_world_reads_the_same_numbers(
    momentum: str, first: int, second: int, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(param.shape, generator=generator) for param in PARAMS]
    saved, live = cut_world(momentum, first, values), cut_world(momentum, second, None)
    read_world(write_world(tmp_path / "first", saved), live)
    for found, wanted in zip(whole_of(live), whole_of(saved), strict=True):
        if momentum == "sign" or first == second:
            assert torch.equal(found, wanted)
        else:  # half a code of the largest in a block that is cut anew
            assert (found - wanted).abs().max() <= wanted.abs().max() / 254 * 1.001
            assert (found == wanted).double().mean() > 0.6
    # And again: nothing is quantised twice where nothing is cut anew.
    again = cut_world(momentum, second, None)
    read_world(write_world(tmp_path / "second", live), again)
    for own, wanted_own in zip(again, live, strict=True):
        for entry, wanted_entry in zip(own, wanted_own, strict=True):
            for piece, wanted_piece in zip(entry.pieces, wanted_entry.pieces, strict=True):
                for suffix, part in piece.parts.items():
                    assert torch.equal(part, wanted_piece.parts[suffix])


def test_pieces_that_are_no_boxes_of_the_parameter_are_refused(tmp_path: Path) -> None:
    values = [torch.ones(param.shape) for param in PARAMS]
    folder = write_world(tmp_path, cut_world("int8", 2, values))
    manifest, _ = tensors.verify(folder)
    own = cut_world("int8", 1, None)[0]
    wrong = Param("wide", (7, 500))
    piece = own[0].pieces[0]
    assert isinstance(piece, StoredPiece)
    other = StoredPiece(0, piece.field, wrong, piece.box, piece.stored)
    own[0] = Entry("wide", "exp_avg", (5, 700), torch.float32, True, (other,), None, format="int8")
    with tensors.Files(folder, manifest) as files:
        (line,) = tensors.misfits(files, manifest, own)
    assert "exp_avg/wide: its pieces in format int8 do not fit" in line


def test_another_format_is_refused_in_words(tmp_path: Path) -> None:
    save_entries(tmp_path, 1, entries(engine_of("int8")))
    for other, words in (("sign", "exp_avg_sign/0.weight is not in"), ("bfloat16", "bfloat16")):
        live = entries(engine_of(other, steps=0))
        with pytest.raises(CheckpointError, match=words):
            load_latest(tmp_path, live, identity=IDENTITY, setting=SETTING)
