import numpy as np
import pytest

from tests.trainers.data.corpus import SPECIAL, VOCAB_SIZE, objective_config, random_store
from trainers.data.batches import IGNORED_LABEL
from trainers.data.masked import MaskedLMBatches
from trainers.data.tokenizer import SpecialIds
from trainers.errors import DataError

LENGTH, PREDICTIONS = 64, 10


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return random_store(tmp_path_factory.mktemp("store") / "s", num_documents=120)


@pytest.fixture(params=[True, False], ids=["pairs", "singles"])
def batches(store, request):
    objective = objective_config(next_sentence=request.param)
    return MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective, seed=1)


def originals(batch):
    """The inputs as they were before masking."""
    ids = batch["input_ids"].copy()
    row, slot = np.nonzero(batch["masked_labels"] != IGNORED_LABEL)
    ids[row, batch["masked_positions"][row, slot]] = batch["masked_labels"][row, slot]
    return ids


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert np.array_equal(one[name], other[name]), name


def test_shapes_and_types(batches):
    batch = batches.batch(np.arange(7))
    assert {name: array.shape for name, array in batch.items()} == {
        **dict.fromkeys(("input_ids", "token_type_ids", "attention_mask"), (7, LENGTH)),
        **dict.fromkeys(("masked_positions", "masked_labels"), (7, PREDICTIONS)),
        **({"next_sentence_label": (7,)} if "next_sentence_label" in batch else {}),
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}


def test_a_sample_does_not_depend_on_the_batch_it_is_in(batches):
    """Nor on the order, nor on what was asked before: so ranks and resuming are exact."""
    positions = np.random.default_rng(0).integers(0, 5 * batches.num_samples, 60)
    together = batches.batch(positions)
    apart = [batches.batch(positions[i : i + 1]) for i in range(60)]
    parts = [batches.batch(part) for part in np.array_split(positions, 7)]
    for pieces in (apart, parts):
        joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in together}
        assert_same(together, joined)


def test_layout(batches):
    """[CLS] first [SEP] or [CLS] first [SEP] second [SEP], then padding."""
    batch = batches.batch(np.arange(300))
    for ids, types, attention in zip(
        originals(batch), batch["token_type_ids"], batch["attention_mask"], strict=True
    ):
        length = attention.sum()
        assert attention[:length].all() and (ids[length:] == SPECIAL.pad).all()
        separators = np.flatnonzero(ids == SPECIAL.sep)
        assert ids[0] == SPECIAL.cls and separators[-1] == length - 1
        assert len(separators) == (2 if "next_sentence_label" in batch else 1)
        expected = np.zeros(LENGTH)
        expected[separators[0] + 1 : length] = 1
        assert np.array_equal(types, expected)
        text = np.delete(ids[1 : length - 1], separators[:-1] - 1)
        assert not np.isin(text, SPECIAL.sorted()).any()


def test_an_epoch_has_every_token_once_in_an_order_of_its_own(store):
    objective = objective_config(next_sentence=False)
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective, seed=1)
    size = batches.num_samples
    epochs = [originals(batches.batch(np.arange(size) + epoch * size)) for epoch in (0, 1)]
    counts = np.bincount(store.tokens, minlength=VOCAB_SIZE)
    for ids in epochs:
        seen = np.bincount(ids.ravel(), minlength=VOCAB_SIZE)
        seen[list(SPECIAL.sorted())] = 0
        assert np.array_equal(seen, counts)
    assert not np.array_equal(*epochs)
    assert sorted(map(tuple, epochs[0])) == sorted(map(tuple, epochs[1]))


def test_first_segments_of_an_epoch_of_pairs_start_every_sample_once(store):
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), seed=1)
    for epoch in (0, 3):
        positions = np.arange(batches.num_samples) + epoch * batches.num_samples
        _, spans = batches._spans(*batches._epochs.draw(positions))
        assert len(np.unique(spans.first)) == batches.num_samples


def test_seeds_and_epochs_differ(store):
    batches = [MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), s) for s in (1, 2)]
    first = batches[0].batch(np.arange(50))
    later = batches[0].batch(np.arange(50) + batches[0].num_samples)
    other = batches[1].batch(np.arange(50))
    assert not np.array_equal(first["input_ids"], other["input_ids"])
    assert not np.array_equal(first["input_ids"], later["input_ids"])


def test_masks_are_counted_beforehand_and_lie_in_the_text(batches):
    positions = np.arange(500)
    batch = batches.batch(positions)
    used = batch["masked_labels"] != IGNORED_LABEL
    assert batches.num_labels(positions)["mlm"] == used.sum()
    assert batches.num_tokens(positions) == batch["attention_mask"].sum()
    segments = 3 if "next_sentence_label" in batch else 2
    text = batch["attention_mask"].sum(axis=1) - segments
    expected = np.clip([round(0.15 * int(n)) for n in text], 1, PREDICTIONS)
    assert np.array_equal(used.sum(axis=1), expected)

    row, slot = np.nonzero(used)
    place = batch["masked_positions"][row, slot]
    assert batch["attention_mask"][row, place].all()
    assert not np.isin(originals(batch)[row, place], SPECIAL.sorted()).any()
    assert (batch["masked_positions"][~used] == 0).all()
    # Used slots come first, and positions ascend, so that none comes twice.
    assert (np.diff(used.astype(int), axis=1) <= 0).all()
    steps = np.diff(np.where(used, batch["masked_positions"], LENGTH + np.arange(PREDICTIONS)))
    assert (steps > 0).all()


def test_what_becomes_of_the_masked_tokens(store):
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), seed=3)
    batch = batches.batch(np.arange(20_000))
    row, slot = np.nonzero(batch["masked_labels"] != IGNORED_LABEL)
    label = batch["masked_labels"][row, slot]
    ids = batch["input_ids"][row, batch["masked_positions"][row, slot]]
    tolerance = 4 * 0.4 / len(label) ** 0.5
    assert len(label) > 100_000
    assert abs((ids == SPECIAL.mask).mean() - 0.8) < tolerance
    # A random token is the true one with odds 1 in 995.
    assert abs((ids == label).mean() - 0.1 - 0.1 / 995) < tolerance
    drawn = ids[(ids != SPECIAL.mask) & (ids != label)]
    assert abs(len(drawn) / len(label) - 0.1) < tolerance
    counts = np.bincount(drawn, minlength=VOCAB_SIZE)
    assert not counts[list(SPECIAL.sorted())].any()
    assert counts[5:].min() > 0 and len(counts) == VOCAB_SIZE


def test_every_position_is_masked_alike(store):
    objective = objective_config(next_sentence=False, short_fraction=0.0)
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective, seed=3)
    batch = batches.batch(np.arange(20_000))
    used = batch["masked_labels"] != IGNORED_LABEL
    masked = np.bincount(batch["masked_positions"][used], minlength=LENGTH)
    text = (batch["attention_mask"].sum(axis=0) - np.bincount(
        batch["attention_mask"].sum(axis=1) - 1, minlength=LENGTH
    ))  # fmt: skip
    share = masked[1:50] / text[1:50]
    assert abs(used.sum() / text[1:].sum() - 0.15) < 0.003
    assert abs(share - share.mean()).max() < 0.02
    assert masked[0] == 0


def test_special_tokens_may_have_any_ids(store):
    """In the published vocabularies they stand at 0 and 100 to 103."""
    special = SpecialIds(pad=0, unk=100, cls=101, sep=102, mask=999)
    batches = MaskedLMBatches(store, special, VOCAB_SIZE, objective_config(), seed=3)
    batch = batches.batch(np.arange(20_000))
    row, slot = np.nonzero(batch["masked_labels"] != IGNORED_LABEL)
    label = batch["masked_labels"][row, slot]
    ids = batch["input_ids"][row, batch["masked_positions"][row, slot]]
    counts = np.bincount(ids[(ids != special.mask) & (ids != label)], minlength=VOCAB_SIZE)
    assert np.flatnonzero(counts == 0).tolist() == [0, 100, 101, 102, 999]


def test_more_predictions_than_positions(store):
    objective = objective_config(mask_fraction=0.9, max_predictions=100)
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective, seed=3)
    batch = batches.batch(np.arange(100))
    assert batch["masked_labels"].shape == (100, 100)
    used = (batch["masked_labels"] != IGNORED_LABEL).sum()
    assert used == batches.num_labels(np.arange(100))["mlm"]
    assert used / (batch["attention_mask"].sum() - 300) == pytest.approx(0.9, abs=0.01)


def test_pairs_need_two_documents(tmp_path):
    store = random_store(tmp_path / "s", num_documents=1)
    with pytest.raises(DataError, match="next_sentence=true needs 2 documents"):
        MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), seed=0)
    objective = objective_config(next_sentence=False)
    assert MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective, seed=0).num_samples > 0


def test_labels_of_pairs_say_what_the_second_segment_is(tmp_path):
    """0 it goes on where the first ends, 1 it is of another document; as often one as the other."""
    store = random_store(tmp_path / "s", num_documents=50)
    document = np.empty(VOCAB_SIZE, dtype=np.int64)  # a token tells its sentence and its document
    starts = store.sentence_starts[store.document_starts]
    document[store.tokens] = np.repeat(np.arange(50), np.diff(starts))
    batches = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, objective_config(), seed=1)
    batch = batches.batch(np.arange(40 * batches.num_samples))
    ids, is_second = originals(batch), batch["token_type_ids"] == 1
    is_text = ~np.isin(ids, SPECIAL.sorted())
    place = np.arange(LENGTH)
    end = np.where(is_text & ~is_second, place, -1).max(axis=1)
    begin = np.where(is_text & is_second, place, LENGTH).min(axis=1)
    row = np.arange(len(ids))
    last, first = ids[row, end], ids[row, begin]
    follows = batch["next_sentence_label"] == 0
    assert (document[last] == document[first])[follows].all()
    assert set((first - last)[follows]) == {0, 1}  # 0: both are of a sentence that was cut
    assert (document[last] != document[first])[~follows].all()
    for segment in (is_text & ~is_second, is_text & is_second):  # no segment crosses a border
        found = np.where(segment, document[ids], -1)
        assert (found == found.max(axis=1, keepdims=True))[segment].all()
    # A run of one sentence has no true second half: a few more are random.
    assert 0.5 < (~follows).mean() < 0.56
