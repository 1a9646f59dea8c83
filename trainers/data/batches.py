"""What every objective's batches can be asked, by the loop and by the evaluation."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

IGNORED_LABEL = -100  # of a place that asks nothing


class Batches(Protocol):
    """Samples by position, which counts on through the epochs, each a pure function of its number.

    The same position gives the same sample whatever else is in the batch, on any rank.
    """

    num_samples: int

    def batch(self, positions: Ints) -> dict[str, NDArray[Any]]:
        """What the objective reads, by name; the first dimension of each array is the samples."""

    def num_labels(self, positions: Ints) -> dict[str, int]:
        """How many labels of each task these samples have, found without making them.

        The task whose labels are tokens comes first.
        """

    def num_tokens(self, positions: Ints) -> int:
        """How many tokens of these samples the model reads, padding left out."""


def token_labels(batch: dict[str, NDArray[Any]]) -> Ints:
    """The labels of a batch that are tokens, in one row."""
    labels = batch["masked_labels" if "masked_labels" in batch else "labels"]
    return labels[labels != IGNORED_LABEL]
