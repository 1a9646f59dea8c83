"""Span corruption against the recipe of T5, and against its definition."""

import numpy as np
import pytest

from trainers.data.random_access import hash64
from trainers.data.spans import corrupt, draw_spans, respect_borders
from trainers.errors import ConfigError
from trainers.span_lengths import SpanLengths, span_lengths

LENGTHS = span_lengths(512, 0.15, 3.0)
EOS = 1
SENTINELS = np.arange(1099, 999, -1)  # descending, as in T5's vocabulary


def drawn(num_samples: int, lengths: SpanLengths = LENGTHS, seed: int = 0):
    return draw_spans(hash64(seed, np.arange(num_samples)), lengths)


def noise_mask(start, size, length):
    mask = np.zeros((len(start), length), dtype=bool)
    for row in range(len(start)):
        for first, count in zip(start[row], size[row], strict=True):
            assert not mask[row, first : first + count].any()
            mask[row, first : first + count] = True
    return mask


def restore(inputs, targets):
    """The text, from one sample's inputs and targets alone."""
    is_name = targets >= 1000
    spans = dict(zip(targets[is_name], np.split(targets, np.flatnonzero(is_name))[1:], strict=True))
    pieces = [spans[token][1:] if token >= 1000 else [token] for token in inputs[:-1]]
    return np.concatenate(pieces)


@pytest.mark.parametrize(
    ("inputs", "text", "targets"), [(512, 568, 114), (114, 126, 26), (1024, 1137, 229)]
)
def test_lengths_are_the_published_ones(inputs, text, targets):
    """568 and 114 stand in T5's code and papers; the others follow from its formula by hand."""
    lengths = span_lengths(inputs, 0.15, 3.0)
    assert (lengths.text, lengths.inputs, lengths.targets) == (text, inputs, targets)


@pytest.mark.parametrize("noise_fraction", [0.1, 0.15, 0.3, 0.5])
@pytest.mark.parametrize("mean_span", [2.0, 3.0, 10.0])
def test_every_length_is_filled_exactly(noise_fraction, mean_span):
    for inputs in range(8, 300):
        lengths = span_lengths(inputs, noise_fraction, mean_span)
        assert lengths.inputs == inputs
        assert 1 <= lengths.spans <= lengths.noise < lengths.text
        assert abs(lengths.noise - noise_fraction * lengths.text) <= 1
        # one token more of text would not fit
        longer = round((lengths.text + 1) * noise_fraction)
        assert lengths.text + 1 - longer + max(round(longer / mean_span), 1) + 1 > inputs


def test_spans_without_text_between_them_are_refused():
    with pytest.raises(ConfigError, match="noise_fraction=0.8 and objective.mean_span=1.0"):
        span_lengths(64, 0.8, 1.0)
    with pytest.raises(ConfigError, match="leave no text"):
        span_lengths(512, 1 - 1e-12, 3.0)  # found at once, not a token at a time


def test_the_published_statistics():
    """15 % of the tokens in 28 spans of 3 in the mean; text first, noise last, no two touch."""
    start, size = drawn(2000)
    assert start.shape == size.shape == (2000, 28)
    assert (size.sum(axis=1) == 85).all()  # 15 % of 568
    assert size.min() == 1 and size.mean() == pytest.approx(3, abs=0.04)
    assert start.min() >= 1 and ((start + size)[:, -1] == 568).all()
    assert (start[:, 1:] > (start + size)[:, :-1]).all()
    # A random composition: lengths fall off by the odds of a cut, 27 in 84.
    counts = np.bincount(size.ravel(), minlength=9)[1:9] / size.size
    odds = 27 / 84
    assert counts[0] == pytest.approx(odds, abs=0.005)
    assert counts[1] == pytest.approx(odds * (57 / 83), abs=0.005)
    assert counts[2] == pytest.approx(odds * (57 / 83) * (56 / 82), abs=0.005)


def test_every_composition_is_as_likely():
    lengths = SpanLengths(text=11, noise=5, spans=3)
    _, size = drawn(12_000, lengths)
    found, counts = np.unique(size, axis=0, return_counts=True)
    assert len(found) == 6  # ways to write 5 as a sum of 3
    assert ((counts - 2000) ** 2 / 2000).sum() < 25.7  # chi squared, 5 degrees: p = 1e-4


def test_every_place_is_taken_out_alike():
    """But for the ends: the first token never is, the last always, as in the published code."""
    start, size = drawn(4000)
    share = noise_mask(start, size, 568).mean(axis=0)
    assert share[0] == 0 and share[-1] == 1
    inner = share[40:-40]
    assert inner.mean() == pytest.approx(0.15, abs=0.01)
    assert abs(inner - inner.mean()).max() < 5 * (0.15 * 0.85 / 4000) ** 0.5


def test_a_sample_does_not_depend_on_those_beside_it():
    together = drawn(50)
    for index in (0, 7, 49):
        alone = draw_spans(hash64(0, np.array([index])), LENGTHS)
        for one, other in zip(alone, together, strict=True):
            assert np.array_equal(one[0], other[index])
    assert not np.array_equal(drawn(5)[0], drawn(5, seed=1)[0])


@pytest.mark.parametrize("lengths", [LENGTHS, span_lengths(20, 0.15, 3.0), SpanLengths(9, 1, 1)])
def test_the_text_comes_back_from_inputs_and_targets(lengths):
    text = np.random.default_rng(0).integers(2, 1000, (300, lengths.text))
    start, size = drawn(300, lengths)
    inputs, targets = corrupt(text, start, size, SENTINELS, EOS)
    assert inputs.shape == (300, lengths.inputs) and targets.shape == (300, lengths.targets)
    assert (inputs[:, -1] == EOS).all() and (targets[:, -1] == EOS).all()
    for row in range(300):
        names = SENTINELS[: lengths.spans]
        assert np.array_equal(inputs[row][inputs[row] >= 1000], names)
        assert np.array_equal(targets[row][targets[row] >= 1000], names)
        assert targets[row, 0] == names[0]
        assert np.array_equal(restore(inputs[row], targets[row][:-1]), text[row])


def random_borders(num_samples, mean_document, seed=0):
    return np.random.default_rng(seed).random((num_samples, LENGTHS.text)) < 1 / mean_document


@pytest.mark.parametrize("mean_document", [30, 150, 1000])
def test_no_span_holds_a_border_of_documents(mean_document):
    start, size = drawn(500)
    borders = random_borders(500, mean_document)
    moved = respect_borders(start, size, borders)
    mask = noise_mask(moved, size, LENGTHS.text)
    assert mask.sum(axis=1).tolist() == [85] * 500
    assert moved.min() >= 0 and (moved[:, 1:] > (moved + size)[:, :-1]).all()
    crossed, crosses = ((m & borders).any(axis=1) for m in (noise_mask(start, size, 568), mask))
    # Documents of a few words at both ends of a sample can leave no room on either side.
    assert crosses.mean() <= (0.02 if mean_document == 30 else 0)
    assert crossed.mean() > 0.05
    # What is on no border stays, unless another had to come by.
    assert np.array_equal(moved[~crossed], start[~crossed])
    assert (moved != start).mean() < (0.25 if mean_document == 30 else 0.05)


#             a b c d | f g h i j
BORDER_AT_4 = [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("start", "size", "moved"),
    [
        ([3], [3], [1]),  # to the end of its document
        ([1, 4], [1, 2], [0, 2]),  # and what is in its way gives way
        ([2], [5], [5]),  # no room on the left: to the start of the next document
        ([0, 3], [2, 3], [0, 5]),
        ([0, 3], [2, 6], [0, 3]),  # no room on either side: the span stays on the border
        ([0, 5], [4, 5], [0, 5]),  # up to the border and from it on
    ],
)
def test_where_a_span_on_a_border_goes(start, size, moved):
    found = respect_borders(np.array([start]), np.array([size]), np.array([BORDER_AT_4], bool))
    assert found.tolist() == [moved]


def test_documents_of_one_word_keep_the_spans_where_they_were():
    start, size = drawn(3)
    borders = np.zeros((3, LENGTHS.text), dtype=bool)
    borders[1, ::2] = True
    assert np.array_equal(respect_borders(start, size, borders), start)
