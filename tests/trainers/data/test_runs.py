import numpy as np

from tests.trainers.data.corpus import SPECIAL, VOCAB_SIZE, objective_config, random_store
from trainers.data import runs
from trainers.data.masked import MaskedLMBatches
from trainers.data.pairs import build_chunks


def test_what_is_kept_is_what_was_cut(tmp_path, monkeypatch):
    store = random_store(tmp_path / "s")
    positions = np.arange(500)
    before = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), 3).batch(positions)
    assert not list((tmp_path / "s").glob("runs-*"))  # a small store is cut in a moment
    monkeypatch.setattr(runs, "MANY_SENTENCES", 0)
    first = runs.open_chunks(store, 61, 0.1)
    monkeypatch.setattr(runs, "build_chunks", None)  # from now on they are read
    kept, cut = runs.open_chunks(store, 61, 0.1), build_chunks(store, 61, 0.1)
    for chunks in (first, kept):
        for name in ("start", "end", "document"):
            assert np.array_equal(getattr(chunks, name), getattr(cut, name))
    after = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), 3).batch(positions)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_other_limits_are_other_runs_and_damage_is_mended(tmp_path, monkeypatch):
    store = random_store(tmp_path / "s")
    monkeypatch.setattr(runs, "MANY_SENTENCES", 0)
    one, other = (runs.open_chunks(store, limit, 0.1) for limit in (61, 40))
    assert len(one.start) < len(other.start)
    for file in (tmp_path / "s").glob("runs-*/end.npy"):
        file.unlink()  # it is mapped: to write into it would end this process
        file.write_bytes(b"")
    assert np.array_equal(runs.open_chunks(store, 61, 0.1).end, one.end)
