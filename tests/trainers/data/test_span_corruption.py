"""Batches of corrupted spans, from a store: the text comes back, whole and in its documents."""

import numpy as np
import pytest

from tests.trainers.data.corpus import VOCAB_SIZE, random_store
from tests.trainers.data.test_spans import restore
from trainers.config import ObjectiveConfig
from trainers.data.span_corruption import SpanCorruptionBatches
from trainers.data.stream import DocumentStream
from trainers.data.tokenizer import SpecialIds
from trainers.errors import ConfigError, DataError

EOS = 1
SPECIAL = SpecialIds(pad=0, eos=EOS, unk=2, sentinels=tuple(range(1099, 999, -1)))


def objective(**changes) -> ObjectiveConfig:
    settings: dict = {
        "name": "span_corruption",
        "sequence_length": 64,
        "noise_fraction": 0.15,
        "mean_span": 3.0,
    }
    return ObjectiveConfig(**(settings | changes))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    assert VOCAB_SIZE == 1000  # sentinels lie above
    return random_store(tmp_path_factory.mktemp("store") / "s", num_documents=120)


@pytest.fixture(scope="module")
def batches(store):
    return SpanCorruptionBatches(store, SPECIAL, objective(), seed=1)


def texts(batch):
    """The text of each sample, from its inputs and labels."""
    pairs = zip(batch["input_ids"], batch["labels"], strict=True)
    return [restore(inputs, labels[:-1]) for inputs, labels in pairs]


def whole_stream(store):
    starts = store.sentence_starts[store.document_starts]
    documents = [store.tokens[a:b] for a, b in zip(starts, starts[1:], strict=False)]
    return np.concatenate([np.concatenate([[EOS], document]) for document in documents])


def test_the_stream_can_be_read_at_any_place(store):
    stream, wanted = DocumentStream(store, EOS), whole_stream(store)
    assert stream.num_tokens == len(wanted)
    first = np.random.default_rng(0).integers(0, len(wanted) - 100, 200)
    windows = stream.windows(first, 100)
    tokens, offset = stream.tokens(windows), stream.offsets(windows)
    assert np.array_equal(tokens, np.stack([wanted[place : place + 100] for place in first]))
    assert np.array_equal(offset == 0, tokens == EOS)
    assert (offset[:, 1:] == np.where(tokens[:, 1:] == EOS, 0, offset[:, :-1] + 1)).all()


def test_an_epoch_is_the_whole_stream_in_an_order_of_its_own(store, batches):
    length = batches.lengths.text
    wanted = whole_stream(store)[: batches.num_samples * length].reshape(-1, length)
    orders = []
    for epoch in (0, 1):
        found = texts(batches.batch(np.arange(batches.num_samples) + epoch * batches.num_samples))
        assert sorted(map(tuple, found)) == sorted(map(tuple, wanted))
        orders.append(found)
    assert not np.array_equal(*orders)


def test_shapes_and_counts_are_known_beforehand(batches):
    batch = batches.batch(np.arange(7))
    assert {name: array.shape for name, array in batch.items()} == {
        "input_ids": (7, 64),
        "labels": (7, batches.lengths.targets),
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    assert batches.num_labels(np.arange(7)) == {"span": batch["labels"].size}
    assert batches.num_tokens(np.arange(7)) == sum(array.size for array in batch.values())


def test_no_span_is_of_two_documents(tmp_path):
    store = random_store(tmp_path / "s", num_documents=50)
    starts = store.sentence_starts[store.document_starts]
    document = np.full(VOCAB_SIZE, -1)
    for number, (begin, end) in enumerate(zip(starts, starts[1:], strict=False)):
        assert (document[store.tokens[begin:end]] == -1).all()  # a token tells its document
        document[store.tokens[begin:end]] = number
    batches = SpanCorruptionBatches(store, SPECIAL, objective(), seed=1)
    labels = batches.batch(np.arange(10 * batches.num_samples))["labels"][:, :-1]
    assert not (labels == EOS).any()
    row, column = np.nonzero((labels[:, 1:] < 1000) & (labels[:, :-1] < 1000))
    assert np.array_equal(document[labels[row, column]], document[labels[row, column + 1]])
    assert len(row) > 10_000


def test_a_sample_does_not_depend_on_the_batch_it_is_in(batches):
    positions = np.random.default_rng(0).integers(0, 5 * batches.num_samples, 60)
    together = batches.batch(positions)
    for pieces in (7, 60):
        parts = [batches.batch(part) for part in np.array_split(positions, pieces)]
        for name, array in together.items():
            assert np.array_equal(array, np.concatenate([part[name] for part in parts])), name


def test_spans_are_drawn_anew_by_seed_and_epoch(store, batches):
    other = SpanCorruptionBatches(store, SPECIAL, objective(), seed=2)
    first = batches.batch(np.arange(20))["labels"]
    assert not np.array_equal(first, other.batch(np.arange(20))["labels"])
    # The same text in the next epoch has other spans.
    size = batches.num_samples
    by_text = [
        {tuple(text): labels.tobytes() for text, labels in zip(texts(b), b["labels"], strict=True)}
        for b in (batches.batch(np.arange(size) + epoch * size) for epoch in (0, 1))
    ]
    assert by_text[0].keys() == by_text[1].keys()
    assert sum(by_text[0][text] == by_text[1][text] for text in by_text[0]) < 0.02 * size


def test_too_few_sentinels_and_too_little_text(tmp_path, store):
    special = SpecialIds(pad=0, eos=EOS, sentinels=(5, 4))
    with pytest.raises(ConfigError, match="has 3 spans, and the vocabulary 2 sentinels"):
        SpanCorruptionBatches(store, special, objective(), seed=0)
    small = random_store(tmp_path / "s", num_documents=1)
    with pytest.raises(DataError, match="sequence_length=4096 is made of 4725"):
        SpanCorruptionBatches(small, SPECIAL, objective(sequence_length=4096, mean_span=9.0), 0)
