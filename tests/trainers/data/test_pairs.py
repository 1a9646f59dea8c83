import numpy as np
import pytest

from tests.trainers.data.corpus import random_store
from trainers.data.pairs import build_chunks, pair_spans, single_spans
from trainers.data.random_access import hash64
from trainers.errors import DataError

LIMIT = 61


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return random_store(tmp_path_factory.mktemp("store") / "s", num_documents=200)


def greedy_chunks(store, limit):
    """The definition, one sentence at a time."""
    chunks = []
    for document in range(store.meta.num_documents):
        first, end = store.document_starts[document : document + 2]
        start, size = first, 0
        for sentence in range(first, end):
            tokens = store.sentence_starts[sentence + 1] - store.sentence_starts[sentence]
            if size and size + tokens > limit:
                chunks.append((start, sentence, document))
                start, size = sentence, 0
            size += tokens
        chunks.append((start, end, document))
    return chunks


def test_chunks_are_what_the_plain_loop_finds(store):
    chunks = build_chunks(store, LIMIT, short_fraction=0.0)
    found = list(zip(chunks.start, chunks.end, chunks.document, strict=True))
    assert found == greedy_chunks(store, LIMIT)


@pytest.mark.parametrize("short_fraction", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_every_sentence_lies_in_one_chunk_of_its_document(tmp_path, seed, short_fraction):
    store = random_store(tmp_path / "s", num_documents=1 + 7 * seed, seed=seed)
    chunks = build_chunks(store, LIMIT, short_fraction)
    assert chunks.start[0] == 0 and chunks.end[-1] == store.meta.num_sentences
    assert np.array_equal(chunks.start[1:], chunks.end[:-1])
    assert (store.document_starts[chunks.document] <= chunks.start).all()
    assert (chunks.end <= store.document_starts[chunks.document + 1]).all()
    sizes = store.sentence_starts[chunks.end] - store.sentence_starts[chunks.start]
    assert sizes.min() >= 1 and sizes.max() <= LIMIT


def test_short_fraction_makes_short_chunks(store):
    count = [len(build_chunks(store, LIMIT, fraction).start) for fraction in (0.0, 0.1, 1.0)]
    assert count[0] * 1.02 < count[1] < count[2] * 0.9


def test_store_of_longer_sentences_is_refused(store):
    with pytest.raises(DataError, match="have up to 30 tokens.*room for 20"):
        build_chunks(store, 20, 0.1)


def test_single_spans_are_whole_chunks(store):
    chunks = build_chunks(store, LIMIT, 0.1)
    spans = single_spans(store, chunks, np.arange(len(chunks.start)))
    assert spans.first_size.sum() == store.meta.num_tokens and not spans.second_size.any()


@pytest.fixture(scope="module")
def pairs(store):
    chunks = build_chunks(store, LIMIT, 0.1)
    sample = np.arange(len(chunks.start)).repeat(20)
    key = hash64(1, np.arange(len(sample)))
    return chunks, sample, pair_spans(store, chunks, sample, key, LIMIT)


def document_of(store, token):
    sentence = np.searchsorted(store.sentence_starts, token, side="right") - 1
    return np.searchsorted(store.document_starts, sentence, side="right") - 1


def test_pairs_fit_and_have_two_segments(pairs):
    _, _, spans = pairs
    assert spans.first_size.min() >= 1 and spans.second_size.min() >= 1
    assert (spans.first_size + spans.second_size).max() <= LIMIT


def test_true_pairs_are_the_chunk_split_between_two_sentences(store, pairs):
    chunks, sample, spans = pairs
    true = ~spans.is_random
    assert np.array_equal(spans.second[true], (spans.first + spans.first_size)[true])
    assert np.array_equal(spans.first, store.sentence_starts[chunks.start[sample]])
    ends = store.sentence_starts[chunks.end[sample]]
    assert np.array_equal((spans.second + spans.second_size)[true], ends[true])
    assert np.isin(spans.second[true], store.sentence_starts).all()


def test_random_pairs_come_from_another_document_and_stay_in_it(store, pairs):
    _, _, spans = pairs
    random = spans.is_random
    own = document_of(store, spans.first[random])
    begin = document_of(store, spans.second[random])
    end = document_of(store, (spans.second + spans.second_size - 1)[random])
    assert (begin != own).all() and np.array_equal(begin, end)
    assert np.isin(spans.second[random], store.sentence_starts).all()
    counts = np.bincount(begin, minlength=200)
    expected = counts.mean()  # every other document is as likely as any
    assert ((counts - expected) ** 2 / expected).sum() < 280  # chi squared, 199 degrees: p = 1e-4


def test_half_of_the_pairs_are_random_where_there_is_a_choice(pairs):
    chunks, sample, spans = pairs
    is_single = (chunks.end - chunks.start == 1)[sample]
    assert spans.is_random[is_single].all()
    choice = spans.is_random[~is_single]
    assert abs(choice.mean() - 0.5) < 3 * 0.5 / len(choice) ** 0.5


def test_every_split_point_occurs(store, pairs):
    chunks, sample, spans = pairs
    three = (chunks.end - chunks.start == 3)[sample] & ~spans.is_random
    split = (
        np.searchsorted(store.sentence_starts, spans.second[three]) - chunks.start[sample][three]
    )
    assert abs((split == 1).mean() - 0.5) < 3 * 0.5 / three.sum() ** 0.5
    assert set(split) == {1, 2}


def test_lengths_do_not_tell_random_pairs_from_true_ones(pairs):
    """Both kinds replace or keep the same room, so their lengths are close in the mean."""
    chunks, sample, spans = pairs
    choice = (chunks.end - chunks.start > 1)[sample]
    length = (spans.first_size + spans.second_size)[choice]
    random = spans.is_random[choice]
    assert abs(length[random].mean() / length[~random].mean() - 1) < 0.15
