"""GLUE's metrics, on cases that were computed by hand, and against scipy where it is."""

import numpy as np
import pytest

from trainers.finetuning.scores import SCORES, accuracy, f1, matthews_correlation, pearson, spearman

GUESSES = np.array([1.0, 1, 1, 0, 0, 0, 1, 0])
TRUTH = np.array([1.0, 1, 0, 0, 0, 1, 1, 0])  # TP 3, FP 1, FN 1, TN 3


def test_labels_by_hand() -> None:
    assert accuracy(GUESSES, TRUTH) == 6 / 8
    assert f1(GUESSES, TRUTH) == 2 * 3 / (2 * 3 + 1 + 1)
    # (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN))
    assert matthews_correlation(GUESSES, TRUTH) == pytest.approx((9 - 1) / 16, abs=1e-15)


def test_f1_is_of_label_1_alone() -> None:
    assert f1(1 - GUESSES, 1 - TRUTH) == 6 / 8
    assert f1(np.array([1.0, 0, 0, 0]), np.array([1.0, 1, 0, 0])) == pytest.approx(2 / 3)
    assert f1(np.array([0.0, 1, 1, 1]), np.array([0.0, 0, 1, 1])) == pytest.approx(4 / 5)


def test_scores_by_hand() -> None:
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 9])
    # deviations -1.5 -.5 .5 1.5 and -2.75 -1.75 -.75 5.25: 12.5 / sqrt(5 * 38.75)
    assert pearson(x, y) == pytest.approx(12.5 / np.sqrt(5 * 38.75), abs=1e-15)
    assert spearman(x, y) == pytest.approx(1, abs=1e-15)
    assert spearman(x, -y) == pytest.approx(-1, abs=1e-15)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # ranks 1.5 1.5 3 4 and 1 2 3.5 3.5: deviations -1 -1 .5 1.5 and -1.5 -.5 1 1
    found = spearman(np.array([5.0, 5, 7, 9]), np.array([0.0, 1, 2, 2]))
    assert found == pytest.approx(4 / np.sqrt(4.5 * 4.5), abs=1e-15)


@pytest.mark.parametrize("name", ["matthews_correlation", "pearson", "spearman"])
def test_what_is_always_the_same_tells_nothing(name: str) -> None:
    constant = np.full(3, 0.1)  # whose mean is not 0.1 exactly
    assert SCORES[name](constant, np.array([0.0, 1, 2])) == 0
    assert SCORES[name](np.array([0.0, 1, 2]), constant) == 0


def test_nobody_says_1() -> None:
    assert f1(np.zeros(3), np.zeros(3)) == 0


def test_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for size in (2, 3, 10, 200):
        x = rng.integers(0, 6, size).astype(float) + [0.5, *[0] * (size - 1)]
        y = x + rng.normal(size=size).round(1)
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
