"""What lies in a run folder may be damaged, half written or hostile: told, never raised."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.test_status import add_checkpoint, make_run
from trainers.run_state import read_state


def damage_settings(run: Path) -> None:
    (run / "config.yaml").write_bytes(b"train: [\xff")


def damage_metrics(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"step": "x"}\n{"st')


def damage_kinds(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()


def damage_checkpoint(run: Path) -> None:
    (add_checkpoint(run, 90) / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "note"),
    [
        (damage_settings, "config.yaml cannot be read"),
        (damage_metrics, "metrics.jsonl has no line"),
        (damage_kinds, "metrics.jsonl cannot be read"),
        (damage_checkpoint, "step-00000090 has no manifest"),
    ],
)
def test_damage_is_a_note_in_the_row(damage: Any, note: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 10)
    damage(run)
    found = read_state(run)
    assert found.state == "stopped"
    assert any(note in told for told in found.notes), found.notes


def test_what_is_half_written_or_hostile_raises_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 10)
    (run / "metrics.jsonl").write_text('{"step": 7, "train/seconds": "fast"}\n{"step": 8, "tra')
    (run / "ended.json").write_text('{"reason": 3}')
    (run / "checkpoints").write_text("")
    (run / ".lock").unlink()
    os.mkfifo(run / ".lock")
    found = read_state(run)
    assert (found.state, found.step, found.tokens_per_second) == ("stopped", 7, None)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "provenance.json", "ended.json"])
def test_a_fifo_is_not_waited_for(name: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", 10)
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    found = read_state(run)
    assert found.state == "stopped"
    assert name.endswith(".json") or f"{name} cannot be read" in found.notes[0]
