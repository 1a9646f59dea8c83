"""Preparation in several processes, killed and started again: the same bytes as in one go."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.trainers.data.corpus import data_config, sentences, write_text
from trainers.data import encode, prepare, sources, workers
from trainers.errors import DataError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Six files, each a part of its own, and several tasks in each part."""
    monkeypatch.setattr(sources, "_PART_BYTES", 1)
    monkeypatch.setattr(encode, "TASK_BYTES", 3000)
    (tmp_path / "texts").mkdir()
    for number in range(6):
        write_text(tmp_path / "texts" / f"{number}.txt", num_documents=20, seed=number)
    return tmp_path / "texts"


def content(folder):
    """Every byte of what was prepared."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(files)}


def built(folder, cache, num_workers=1):
    config = data_config(folder, cache, workers=num_workers)
    return content(prepare.prepare(config, sentences(32)).folder)


def test_the_result_is_the_same_with_any_number_of_workers(tmp_path, folder, monkeypatch):
    one = built(folder, tmp_path / "one")
    monkeypatch.setattr(workers, "LITTLE", 0)
    assert built(folder, tmp_path / "two", 2) == one
    # ... and however the work is cut.
    monkeypatch.setattr(encode, "TASK_BYTES", 2**25)
    monkeypatch.setattr(sources, "_PART_BYTES", 2**26)
    assert built(folder, tmp_path / "whole") == one
    assert set(one) == {
        "meta.json", "tokenizer.json",
        *(f"{part}/{name}" for part in ("train", "heldout") for name in (
            "meta.json", "tokens.bin", "sentence_starts.npy", "document_starts.npy",
        )),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "after"), [("write_shard", 4), ("encode_task", 5)])
def test_what_is_finished_is_not_done_again(tmp_path, folder, monkeypatch, capfd, name, after):
    whole = built(folder, tmp_path / "whole")
    original, calls = getattr(prepare, name), []

    def interrupted(*arguments):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(prepare, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        built(folder, tmp_path / "cache")
    first, calls[:] = list(calls), []
    monkeypatch.setattr(prepare, name, lambda *a: calls.append(a) or original(*a))
    capfd.readouterr()
    assert built(folder, tmp_path / "cache") == whole
    assert f"{after} of {after + len(calls)} " in capfd.readouterr().err
    assert not set(map(str, first)) & set(map(str, calls))


PROGRAM = """
import os, sys
from trainers.data import prepare, sources
from tests.trainers.data.corpus import data_config, sentences
from pathlib import Path
sources._PART_BYTES = 1
original = prepare.write_shard
def slow(part, units, bad, folder):
    if folder.name == "000003":
        Path(sys.argv[3]).touch()
        import time; time.sleep(600)
    return original(part, units, bad, folder)
prepare.write_shard = slow
prepare.prepare(data_config(Path(sys.argv[1]), Path(sys.argv[2])), sentences(32))
"""


def test_killed_with_9_and_started_again(tmp_path, folder, capfd):
    words = [str(folder), str(tmp_path / "cache"), str(tmp_path / "reached")]
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], cwd=os.getcwd())
    deadline = time.monotonic() + 120
    while not (tmp_path / "reached").exists():
        assert time.monotonic() < deadline and program.poll() is None
        time.sleep(0.05)
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    [part] = (tmp_path / "cache").glob("*.part")
    before = {file: file.stat().st_mtime_ns for file in part.rglob("texts.bin")}
    assert len(before) == 3
    resumed = built(folder, tmp_path / "cache")
    assert "3 of 6 parts have been read before" in capfd.readouterr().err
    assert resumed == built(folder, tmp_path / "whole")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def bad():
    raise DataError("the first bad part")


def fine():
    return 1


def test_a_killed_worker_and_a_bad_part_are_told(monkeypatch):
    monkeypatch.setattr(workers, "LITTLE", 0)
    with pytest.raises(DataError, match="was killed, .*data.workers"):
        list(workers.run_all([fine, die], 2, 1))
    with pytest.raises(DataError, match="the first bad part"):
        list(workers.run_all([fine, bad, fine], 2, 1))
