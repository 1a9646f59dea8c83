"""The run folder: proven before work starts, owned by one run, and telling where that came from."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.rights import as_a_user
from trainers.compose import compose
from trainers.errors import FolderInUseError, StorageError
from trainers.run import folder as folders
from trainers.run.folder import RunFolder

ROOT = Path(__file__).parents[3]


def test_open_makes_the_folder_and_leaves_only_the_lock(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "runs" / "a", rank=0) as folder:
        assert folder.path == (tmp_path / "runs" / "a").resolve()
        assert [path.name for path in folder.path.iterdir()] == [".lock"]
        assert folder.checkpoints == folder.path / "checkpoints"


def test_other_ranks_touch_nothing(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "a", rank=1) as folder:
        folder.write("x", "y")
    assert not (tmp_path / "a").exists()


def test_a_file_in_its_place_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StorageError, match=f"{path} cannot be written"):
            RunFolder.open(path, rank=0)


def test_a_folder_that_cannot_be_written_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left.*run.dir="):
        folders.check(tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_folder_without_rights_is_a_storage_error() -> None:
    with as_a_user() as place:
        (place / "closed").mkdir(mode=0o555)
        for path in (place / "closed", place / "closed" / "new"):
            with pytest.raises(StorageError, match=r"closed.* cannot be written: .*denied") as end:
                RunFolder.open(path, rank=0)
            assert end.value.exit_code == 6
        assert list((place / "closed").iterdir()) == []


def test_what_killed_runs_were_writing_is_removed(tmp_path: Path) -> None:
    old, new = tmp_path / ".config.yaml.tmp-41", tmp_path / ".config.yaml.tmp-42"
    names = (".probe-1a", "..probe-1a.tmp-41", "mine.txt", ".mine")
    for path in (old, new, *(tmp_path / name for name in names)):
        path.write_text("")
        if path != new:
            os.utime(path, (path.stat().st_mtime - 3600,) * 2)
    folders.check(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "mine.txt", ".mine", new.name}


def test_writing_fails_in_words(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, rank=0) as folder:
        (tmp_path / "taken").mkdir()
        with pytest.raises(StorageError, match="taken cannot be written"):
            folder.write("taken", "text")


def test_a_second_run_is_told_the_owner_and_a_dead_owner_is_none(tmp_path: Path) -> None:
    script = f"""
import sys
from trainers.run.folder import RunFolder
folder = RunFolder.open({str(tmp_path)!r}, rank=0)
print("open", flush=True)
sys.stdin.read()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "open\n"
        with pytest.raises(FolderInUseError, match=f"process {owner.pid} on .*, started 20"):
            RunFolder.open(tmp_path, rank=0)
    finally:
        owner.kill()
        owner.communicate(timeout=20)
    folders.check(tmp_path)
    RunFolder.open(tmp_path, rank=0).close()


def test_the_lock_is_not_inherited_by_programs_that_outlive_the_run(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path, rank=0)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=ROOT)
    try:
        folder.close()
        folders.check(tmp_path)
    finally:
        child.communicate(b"\n", timeout=20)


def test_describe_writes_settings_and_one_provenance_per_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-in-the-environment")
    monkeypatch.setattr(
        sys, "argv", ["came-train", "data.path=https://me:canary@host/x", "a.token=canary"]
    )
    config = compose(["experiment=quickstart", "logging.project=canary-in-the-environment"], 2)
    with RunFolder.open(tmp_path, rank=0) as folder:
        folder.describe(config, device="cpu", world_size=1)
        folder.describe(config, device="cpu", world_size=2)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["model"]["hidden"] == config.model.hidden
    assert settings["optimizer"]["betas"] == list(config.optimizer.betas)
    starts = folders.read_starts(tmp_path)
    assert [start["world_size"] for start in starts] == [1, 2]
    assert starts[1]["versions"]["torch"] and starts[1]["python"]
    assert starts[0]["command"] == "came-train data.path=https://***@host/x a.token=***"
    for path in (tmp_path / "config.yaml", tmp_path / "provenance.json"):
        assert "canary" not in path.read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"starts": 3}', '{"starts": ["x"]}', "\u00e9{"])
def test_garbled_provenance_is_no_provenance(text: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(text)
    assert folders.read_starts(tmp_path) == []


def test_git_state_is_of_a_checkout_that_tracks_this_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy installed inside somebody's repository must not be given that repository's commit."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    code = tmp_path / "folder.py"
    code.write_text("x = 1\n")
    monkeypatch.setattr(folders, "__file__", str(code))
    assert folders.git_state() == {}
    git("add", ".")
    git("commit", "-qm", "first")
    assert folders.git_state() == {"commit": git("rev-parse", "HEAD"), "dirty": False}
    code.write_text("x = 2\n")
    assert folders.git_state()["dirty"] is True


def test_the_launcher_can_check_without_torch() -> None:
    script = "import sys, trainers.run.folder; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_owner_is_json(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, rank=0):
        assert set(json.loads((tmp_path / ".lock").read_text())) == {"host", "pid", "start"}
