"""Blocks of a stream: nothing lost, nothing twice, borders where the documents have theirs."""

import numpy as np
import pytest

from tests.trainers.data.corpus import random_store
from trainers.config import ObjectiveConfig
from trainers.data.causal import CausalBatches
from trainers.errors import DataError

LENGTH, EOS = 32, 0


def objective(document_mask: bool = True, length: int = LENGTH) -> ObjectiveConfig:
    return ObjectiveConfig(name="causal_lm", sequence_length=length, document_mask=document_mask)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return random_store(tmp_path_factory.mktemp("store") / "s", num_documents=40)


@pytest.fixture
def batches(store):
    return CausalBatches(store, EOS, objective(), seed=1)


def the_stream(store) -> np.ndarray:
    """The stream, the slow way."""
    borders = store.sentence_starts[store.document_starts]
    parts = [np.array([EOS])]
    for start, end in zip(borders[:-1], borders[1:], strict=True):
        parts += [store.tokens[start:end].astype(np.int64), np.array([EOS])]
    return np.concatenate(parts)


def test_an_epoch_is_the_stream_in_blocks(store, batches):
    stream = the_stream(store)
    count = (len(stream) - 1) // LENGTH
    assert batches.num_samples == count > 100
    blocks = stream[: count * LENGTH].reshape(count, LENGTH)
    following = stream[1 : count * LENGTH + 1].reshape(count, LENGTH)
    wanted = sorted(np.concatenate([blocks, following], axis=1).tolist())
    orders = []
    for epoch in (0, 2):
        batch = batches.batch(np.arange(count) + epoch * count)
        found = np.concatenate([batch["input_ids"], batch["labels"]], axis=1).tolist()
        assert sorted(found) == wanted
        orders.append(found)
    assert orders[0] != orders[1]


def test_positions_restart_with_each_document(batches):
    batch = batches.batch(np.arange(batches.num_samples))
    for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
        place = 0
        for token, position in zip(ids, positions, strict=True):
            place = 0 if token == EOS else place
            assert position == place
            place += 1
    restarts = (batch["position_ids"][:, 1:] == 0).sum()
    assert restarts == (batch["input_ids"][:, 1:] == EOS).sum() > 20


def test_the_last_token_of_a_document_is_followed_by_the_end(batches):
    batch = batches.batch(np.arange(batches.num_samples))
    ends = batch["labels"][:, :-1] == EOS
    assert (batch["position_ids"][:, 1:][ends] == 0).all()
    assert np.array_equal(batch["labels"][:, :-1], batch["input_ids"][:, 1:])
    assert not (ends & (batch["input_ids"][:, :-1] == EOS)).any()  # no document is empty


def test_without_borders_there_are_no_positions(store):
    batch = CausalBatches(store, EOS, objective(document_mask=False), seed=1).batch(np.arange(3))
    assert batch.keys() == {"input_ids", "labels"}


def test_a_sample_does_not_depend_on_the_batch_it_is_in(batches):
    positions = np.random.default_rng(0).integers(0, 4 * batches.num_samples, 40)
    together = batches.batch(positions)
    for index, position in enumerate(positions):
        alone = batches.batch(np.array([position]))
        for name, array in together.items():
            assert np.array_equal(alone[name][0], array[index]), name
            assert array.dtype == np.int64 and array.flags.c_contiguous


def test_labels_and_tokens_are_counted_beforehand(batches):
    batch = batches.batch(np.arange(9))
    assert batches.num_labels(np.arange(9)) == {"lm": batch["labels"].size}
    assert batches.num_tokens(np.arange(9)) == batch["input_ids"].size


def test_less_than_a_block_is_refused(store):
    with pytest.raises(DataError, match="less than one block of objective.sequence_length=100000"):
        CausalBatches(store, EOS, objective(length=100_000), seed=0)
