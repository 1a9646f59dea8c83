"""One builder, a whole folder or none, whatever happens meanwhile."""

import multiprocessing
import os
import signal
import time

import pytest

from trainers.data.publish import build_once
from trainers.errors import DataError, StorageError

SPAWN = multiprocessing.get_context("spawn")


def is_whole(folder):
    return (folder / "done").exists()


def build(folder):
    """Leaves a file beside the folder, so that builds can be counted."""
    (folder.parent / f"built-by-{os.getpid()}").touch()
    (folder / "content").write_text("content")
    time.sleep(0.5)
    (folder / "done").touch()


def build_forever(folder):
    (folder / "content").write_text("half")
    (folder.parent / "started").touch()
    time.sleep(600)


def start(folder, how):
    process = SPAWN.Process(target=build_once, args=(folder, how, is_whole, 60.0), daemon=True)
    process.start()
    return process


def wait_for(path):
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_three_builders_build_once(tmp_path):
    processes = [start(tmp_path / "data", build) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("built-by-*"))) == 1
    assert names(tmp_path / "data") == ["content", "done"]


def test_a_whole_folder_is_left_alone(tmp_path):
    build_once(tmp_path / "data", build, is_whole, 1.0)
    before = (tmp_path / "data").stat().st_mtime_ns
    build_once(tmp_path / "data", build, is_whole, 1.0)
    assert (tmp_path / "data").stat().st_mtime_ns == before


def test_a_killed_builder_leaves_nothing_that_is_used(tmp_path, capfd):
    builder = start(tmp_path / "data", build_forever)
    wait_for(tmp_path / "started")
    assert not (tmp_path / "data").exists()

    with pytest.raises(DataError, match=f"process {builder.pid} has been preparing"):
        build_once(tmp_path / "data", build, is_whole, timeout_seconds=0.3)
    assert f"waiting for process {builder.pid}" in capfd.readouterr().err

    os.kill(builder.pid, signal.SIGKILL)
    builder.join(60)
    build_once(tmp_path / "data", build, is_whole, timeout_seconds=60)
    assert names(tmp_path) == [f"built-by-{os.getpid()}", "data", "started"]
    assert names(tmp_path / "data") == ["content", "done"]


def test_a_waiting_process_uses_what_the_other_has_built(tmp_path):
    builder = start(tmp_path / "data", build)
    wait_for(tmp_path / "data.lock")
    build_once(tmp_path / "data", build, is_whole, timeout_seconds=60)
    builder.join(60)
    assert len(list(tmp_path.glob("built-by-*"))) == 1


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "content").touch()
        raise DataError("no text")

    with pytest.raises(DataError):
        build_once(tmp_path / "data", fail, is_whole, 1.0)
    assert names(tmp_path) == []


def test_a_build_that_is_interrupted_goes_on_from_there(tmp_path):
    def interrupted(folder):
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(tmp_path / "data", interrupted, is_whole, 1.0)
    assert not (tmp_path / "data").exists()
    build_once(tmp_path / "data", build, is_whole, 1.0)
    assert names(tmp_path / "data") == ["content", "done", "half"]
    assert names(tmp_path) == [f"built-by-{os.getpid()}", "data"]


def test_a_damaged_folder_is_built_again(tmp_path, capfd):
    build_once(tmp_path / "data", build, is_whole, 1.0)
    (tmp_path / "data" / "done").unlink()
    build_once(tmp_path / "data", build, is_whole, 1.0)
    assert is_whole(tmp_path / "data")
    assert "is damaged and is built again" in capfd.readouterr().err


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"data\.cache_dir=.*file: cannot prepare"):
        build_once(tmp_path / "file" / "data", build, is_whole, 1.0)

    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        build_once(tmp_path / "data", full, is_whole, 1.0)
