"""`came-checkpoint`: what it says of good and of damaged checkpoints, and with which exit code."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainers.run.checkpoints import random_state, rewrite_manifest, save
from trainers import checkpoint_command

DATA = "rank-00000.safetensors"


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = checkpoint_command.run([*words, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, found


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for step in (5, 10):
        metrics = {"eval/loss": 3.5 - step / 10}
        save(tmp_path / "checkpoints", step, random_state(step), extra={"metrics": metrics})
    return tmp_path


def test_good_ones(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (run_dir, run_dir / "checkpoints"):
        code, found = answer(capsys, "verify", str(folder))
        assert code == 0
        rows = [(row["checkpoint"], row["good"]) for row in found["checkpoints"]]
        assert rows == [("step-00000010", True), ("step-00000005", True)]
    code, found = answer(capsys, "list", str(run_dir / "checkpoints" / "step-00000005"))
    assert code == 0
    (row,) = found["checkpoints"]
    size = (run_dir / "checkpoints" / "step-00000005" / DATA).stat().st_size
    assert (row["step"], row["bytes"], row["tensors"]) == (5, size, 5)
    assert row["metrics"] == {"eval/loss": 3.0}


def test_a_damaged_one_is_told_and_the_older_one_exported(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_dir / "checkpoints" / "step-00000010" / DATA
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, found = answer(capsys, "verify", str(run_dir))
    assert code == 4
    assert "sha256" in found["checkpoints"][0]["reason"] and found["checkpoints"][1]["good"]
    assert checkpoint_command.run(["verify", str(run_dir)]) == 4
    assert "step-00000010  good False" in capsys.readouterr().out

    code, found = answer(capsys, "export", str(run_dir))
    assert (code, found["step"]) == (0, 5)
    weights, state = load_file(found["file"]), random_state(5)
    assert weights.keys() == {"emb", "half"}
    assert torch.equal(weights["emb"], state["param/emb"])
    assert torch.equal(weights["half"], state["param/half"].float())
    assert "step 5" in (run_dir / "export" / "NOTE.txt").read_text()


def test_nothing_to_read_is_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("verify", "list", "export"):
        for folder in (tmp_path, tmp_path / "absent"):
            code, found = answer(capsys, command, str(folder))
            assert code == 4 and "no checkpoint in" in found["error"]
    assert checkpoint_command.run(["list", str(tmp_path)]) == 4
    assert "no checkpoint" in capsys.readouterr().err
    assert checkpoint_command.run(["remove", str(tmp_path)]) == 2


class Touch:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_pickles_and_links_are_refused(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (5, 10):
        folder = run_dir / "checkpoints" / f"step-{step:08d}"
        (folder / DATA).write_bytes(pickle.dumps(Touch(run_dir / "ran")))
        rewrite_manifest(folder, lambda body: None)
    (run_dir / "checkpoints" / "step-00000020").symlink_to(folder)
    for command in ("verify", "export"):
        code, _ = answer(capsys, command, str(run_dir))
        assert code == 4 and not (run_dir / "ran").exists()
    code, found = answer(capsys, "list", str(run_dir / "checkpoints" / "step-00000020"))
    assert code == 4 and "symbolic link" in found["checkpoints"][0]["reason"]
