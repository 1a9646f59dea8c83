import numpy as np
import pytest

from trainers.data.store import Store, StoreWriter
from trainers.errors import DataError


def write(folder, documents, vocab_size=1000, limit=10):
    writer = StoreWriter(folder, vocab_size, limit)
    for document in documents:
        for sentence in document:
            writer.add_sentence(sentence)
        writer.end_document()
    writer.close()
    return Store.open(folder)


def read(store):
    return [
        [
            store.tokens[store.sentence_starts[s] : store.sentence_starts[s + 1]].tolist()
            for s in range(store.document_starts[d], store.document_starts[d + 1])
        ]
        for d in range(store.meta.num_documents)
    ]


def test_round_trip_of_random_documents(tmp_path):
    generator = np.random.default_rng(0)
    documents = [
        [generator.integers(0, 1000, generator.integers(1, 11)).tolist() for _ in range(count)]
        for count in generator.integers(1, 20, 100)
    ]
    store = write(tmp_path / "s", documents)
    assert read(store) == documents
    assert store.tokens.dtype == np.uint16 and not store.tokens.flags.writeable
    assert store.meta.num_tokens == sum(len(s) for d in documents for s in d)


def test_long_sentences_are_cut_and_empty_ones_vanish(tmp_path):
    store = write(tmp_path / "s", [[[], list(range(25))], [], [[]], [[7]]])
    assert read(store) == [[list(range(10)), list(range(10, 20)), list(range(20, 25))], [[7]]]


def test_large_vocabularies_need_four_bytes(tmp_path):
    assert write(tmp_path / "a", [[[65_534]]], 65_535).tokens.dtype == np.uint16
    store = write(tmp_path / "b", [[[65_536]]], 70_000)
    assert store.tokens.dtype == np.uint32 and read(store) == [[[65_536]]]


def test_writing_in_portions_is_the_same(tmp_path, monkeypatch):
    documents = [[[i, i + 1]] * 5 for i in range(50)]
    whole = write(tmp_path / "a", documents)
    monkeypatch.setattr("trainers.data.store._FLUSH_TOKENS", 7)
    assert write(tmp_path / "b", documents).meta == whole.meta


def test_digest_sees_tokens_and_borders(tmp_path):
    variants = [[[[1, 2], [3]]], [[[1], [2, 3]]], [[[1, 2]], [[3]]], [[[1, 2], [4]]]]
    digests = {write(tmp_path / str(i), v).meta.sha256 for i, v in enumerate(variants)}
    assert len(digests) == 4


@pytest.mark.parametrize(
    "name", ["tokens.bin", "sentence_starts.npy", "document_starts.npy", "meta.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "longer"])
def test_damaged_files_are_refused(tmp_path, name, damage):
    write(tmp_path / "s", [[[1, 2, 3]], [[4, 5]]])
    file = tmp_path / "s" / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        changed = {"empty": b"", "cut": content[:-2], "longer": content + b"[]"}[damage]
        file.write_bytes(changed)
    if (damage, name[-3:]) == ("longer", "npy"):
        assert read(Store.open(tmp_path / "s")) == [[[1, 2, 3]], [[4, 5]]]  # numpy knows its length
    else:
        with pytest.raises(DataError, match=str(tmp_path / "s")):
            Store.open(tmp_path / "s")
