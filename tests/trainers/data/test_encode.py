"""Tasks of a shard: each reads what is its own."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from trainers.data import encode
from trainers.data.shards import Shard


def shard(folder: Path, sizes: list[int] | np.ndarray) -> Shard:
    """A shard of one document in units of so many bytes; its text is not looked at."""
    folder.mkdir()
    (folder / "texts.bin").write_bytes(b"")
    np.save(folder / "units.npy", np.cumsum(sizes, dtype=np.int64))
    np.save(folder / "documents.npy", np.array([[len(sizes), 7]], np.uint64))
    (folder / "meta.json").write_text(json.dumps({"num_bad": 0, "first_bad": ""}))
    return Shard.open(folder)


def test_units_are_encoded_in_batches_of_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_BYTES_AT_ONCE", 10)
    monkeypatch.setattr(encode, "_UNITS_AT_ONCE", 3)
    given = shard(tmp_path / "s", [4, 6, 1, 50, 2, 2, 2, 2, 9])
    assert list(encode._batches(given, np.arange(9))) == [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8),
                                                          (8, 9)]  # fmt: skip
    # Without units 1 to 3, whose document is not taken.
    assert list(encode._batches(given, np.array([0, 4, 5, 6, 7, 8]))) == [(0, 3), (3, 5), (5, 6)]
    assert list(encode._batches(given, np.zeros(0, np.int64))) == []


def test_a_task_of_a_large_shard_holds_its_own_part_in_memory(tmp_path: Path) -> None:
    """A file of 100 GB has 10^9 sentences, and each task read and held where all of them end."""
    shard(tmp_path / "s", np.full(2**20, 8))
    tracemalloc.start()
    given = Shard.open(tmp_path / "s")
    assert list(encode._batches(given, np.arange(5000, 5100))) == [(0, 100)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18  # all ends are 2**23 bytes


def test_a_shard_without_text_can_be_opened(tmp_path: Path) -> None:
    assert len(shard(tmp_path / "s", []).unit_ends) == 0
