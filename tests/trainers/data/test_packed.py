"""Packed rows: the samples of the unpacked batches, bit for bit, side by side."""

import json

import numpy as np
import pytest

from tests.trainers.data.corpus import SPECIAL, VOCAB_SIZE, objective_config, random_store
from trainers.data.batches import IGNORED_LABEL
from trainers.data.masked import MaskedLMBatches
from trainers.data.packed import PackedMLMBatches

LENGTH = 128
OBJECTIVE = objective_config(
    sequence_length=LENGTH, max_predictions=20, next_sentence=False, packing=True
)


def make(folder, seed=1):
    # Documents of 1 to 6 sentences: most are much shorter than a row.
    store = random_store(folder / "s", num_documents=300, max_document_sentences=6)
    single = MaskedLMBatches(store, SPECIAL, VOCAB_SIZE, OBJECTIVE, seed)
    return single, PackedMLMBatches(single, SPECIAL.pad, OBJECTIVE, seed, folder)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    return make(tmp_path_factory.mktemp("packed"))


def taken_apart(batch):
    """Each sample of the rows: its tokens, its masked positions and its labels."""
    for ids, starts, masked, labels in zip(*batch.values(), strict=True):
        edges = np.append(starts[starts < LENGTH], LENGTH)
        for start, end in zip(edges, edges[1:], strict=False):
            inside = (masked >= start) & (masked < end) & (labels != IGNORED_LABEL)
            yield ids[start:end], masked[inside] - start, labels[inside]


def test_an_epoch_holds_every_sample_once_with_its_own_masks(both):
    single, packed = both
    for epoch in (0, 2):
        found = {
            (ids.tobytes(), masked.tobytes(), labels.tobytes())
            for ids, masked, labels in taken_apart(
                packed.batch(np.arange(packed.num_samples) + epoch * packed.num_samples)
            )
            if ids[0] != SPECIAL.pad
        }
        sample = np.arange(single.num_samples)
        alone = single.samples(np.full_like(sample, epoch), sample)
        wanted = set()
        for ids, attention, masked, labels in zip(
            *(alone[name] for name in ("input_ids", "attention_mask")),
            *(alone[name] for name in ("masked_positions", "masked_labels")),
            strict=True,
        ):
            used = labels != IGNORED_LABEL
            row = ids[: attention.sum()], masked[used], labels[used]
            wanted.add(tuple(array.tobytes() for array in row))
        assert found == wanted and len(found) == single.num_samples


def test_rows_are_nearly_full(both):
    single, packed = both
    positions = np.arange(packed.num_samples)
    full = packed.num_tokens(positions) / (packed.num_samples * LENGTH)
    assert full > 0.97  # a small corpus: its last rows count
    assert packed.num_tokens(positions) == single.num_tokens(np.arange(single.num_samples))
    ids = packed.batch(positions)["input_ids"]
    assert (ids != SPECIAL.pad).sum() == packed.num_tokens(positions)
    assert packed.num_samples < 0.7 * single.num_samples


def test_labels_are_counted_beforehand(both):
    single, packed = both
    positions = np.arange(40) * 3
    labels = packed.batch(positions)["masked_labels"]
    assert packed.num_labels(positions) == {"mlm": (labels != IGNORED_LABEL).sum()}
    every = packed.num_labels(np.arange(packed.num_samples))
    assert every == single.num_labels(np.arange(single.num_samples))


def test_a_row_does_not_depend_on_the_batch_it_is_in(both):
    _, packed = both
    positions = np.random.default_rng(0).integers(0, 4 * packed.num_samples, 40)
    together = packed.batch(positions)
    for pieces in (1, 7, 40):
        parts = [packed.batch(part) for part in np.array_split(positions, pieces)]
        for name, array in together.items():
            assert np.array_equal(array, np.concatenate([part[name] for part in parts])), name


def test_epochs_and_seeds_have_orders_of_their_own(both, tmp_path):
    _, packed = both
    _, other = make(tmp_path, seed=2)
    first = packed.batch(np.arange(20))["input_ids"]
    assert not np.array_equal(first, packed.batch(np.arange(20) + packed.num_samples)["input_ids"])
    assert not np.array_equal(first, other.batch(np.arange(20))["input_ids"])


def test_the_plan_is_made_once_for_all_seeds_and_again_when_it_is_damaged(tmp_path):
    _, packed = make(tmp_path)
    (plan,) = (path for path in tmp_path.glob("rows-*") if path.is_dir())
    made = plan.stat().st_mtime_ns
    store_again = MaskedLMBatches(packed._single._store, SPECIAL, VOCAB_SIZE, OBJECTIVE, 2)
    PackedMLMBatches(store_again, SPECIAL.pad, OBJECTIVE, 2, tmp_path)
    assert plan.stat().st_mtime_ns == made
    whole = packed.batch(np.arange(5))["input_ids"]
    (plan / "starts.npy").write_bytes(b"no array")
    again = PackedMLMBatches(packed._single, SPECIAL.pad, OBJECTIVE, 1, tmp_path)
    assert np.array_equal(again.batch(np.arange(5))["input_ids"], whole)
    assert json.loads((plan / "meta.json").read_text()).keys() == {"max_labels", "max_samples"}
