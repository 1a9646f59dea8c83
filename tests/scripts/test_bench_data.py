"""The benchmark of the data runs, and says what it measured."""

import json

import pytest

from scripts.bench_data import main, make_store
from tests.trainers.data.corpus import write_text
from trainers.data.store import Store


@pytest.mark.parametrize("by_sentence", [True, False])
def test_the_store_that_is_resumed_is_a_store(tmp_path, by_sentence):
    make_store(tmp_path / "s", 1000, by_sentence)
    store = Store.open(tmp_path / "s")
    assert store.meta.num_documents == 10
    assert store.sentence_starts[-1] == store.meta.num_tokens
    assert store.document_starts[-1] == store.meta.num_sentences


def test_a_small_run_is_kept_and_told(tmp_path, capsys):
    text = write_text(tmp_path / "a.txt", num_documents=6000)
    words = [
        *("data=text", f"data.path={text}", f"data.cache_dir={tmp_path / 'cache'}"),
        *("data.vocab_size=300", "data.workers=1"),
    ]
    out = tmp_path / "data.json"
    main([*words, "--rounds", "2", "--samples", "30000", "--out", str(out)])
    told = capsys.readouterr().out
    main(["--table", str(out)])
    assert capsys.readouterr().out == told
    record = json.loads(out.read_text())
    for found in record["loaders"]:
        # The same tokens on both sides, but for what a batch pads.
        assert found["tokens"]["ours"] == pytest.approx(found["tokens"]["theirs"], rel=0.15)
        assert len(found["seconds"]["ours"]) == 2 and found["ratio"]["median"] > 1
    assert [found["num_samples"] >= 29_000 for found in record["resume"]] == [True, True]
    assert "masked words: tokens/s of one thread" in told and "<= 1 s" in told
