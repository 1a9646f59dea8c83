"""The metrics of GLUE: accuracy, F1, Matthews, Pearson and Spearman.

A few lines each of numpy. scikit-learn and scipy have them too, and weigh 150 MB for it;
`evaluate` fetches its metrics from the hub and runs them.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def accuracy(guesses: Array, truth: Array) -> float:
    """The share that is right."""
    return float(np.mean(guesses == truth))


def f1(guesses: Array, truth: Array) -> float:
    """Of label 1: 2 TP / (2 TP + FP + FN); 0 where nobody says 1."""
    hits = np.sum((guesses == 1) & (truth == 1))
    said = np.sum(guesses == 1) + np.sum(truth == 1)
    return float(2 * hits / said) if said else 0.0


def matthews_correlation(guesses: Array, truth: Array) -> float:
    """Pearson's correlation of two labels 0 and 1; 0 where one of them is always the same."""
    return pearson(guesses, truth)


def pearson(guesses: Array, truth: Array) -> float:
    """cov(x, y) / sqrt(var(x) var(y)); 0 where one does not vary, for then it tells nothing."""
    if not np.ptp(guesses) or not np.ptp(truth):
        return 0.0
    x, y = guesses - np.mean(guesses), truth - np.mean(truth)
    return float(np.sum(x * y) / np.sqrt(np.sum(x * x) * np.sum(y * y)))


def spearman(guesses: Array, truth: Array) -> float:
    """Pearson's correlation of the ranks; equals share the mean of their ranks."""
    return pearson(_ranks(guesses), _ranks(truth))


def _ranks(values: Array) -> Array:
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray(last - (counts - 1) / 2)[which]


SCORES: dict[str, Callable[[Array, Array], float]] = {
    function.__name__: function
    for function in (accuracy, f1, matthews_correlation, pearson, spearman)
}
