"""One metric over a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]

# What an accuracy is of: the one of these that a run has measured.
GUESSED = {
    "eval/mlm_accuracy": "masked words guessed right",
    "eval/lm_accuracy": "next tokens guessed right",
    "eval/span_accuracy": "tokens of spans guessed right",
}


@dataclass(frozen=True)
class Series:
    """One metric over a run: two equally long 1-D arrays, without the lines that lack it."""

    steps: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, rows: Sequence[Row], name: str) -> "Series":
        """The metric `name` of metrics.jsonl; empty if no line has it."""
        found = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        steps, values = zip(*found, strict=True) if found else ((), ())
        return cls(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))

    def __bool__(self) -> bool:
        return self.steps.size > 0

    @property
    def last(self) -> float:
        """The newest value."""
        return float(self.values[-1])

    @property
    def middle(self) -> float:
        """The median value."""
        return float(np.median(self.values))

    @property
    def smoothed_at_end(self) -> int:
        """How many points the last value of `smooth` is the mean of: 1 with fewer than 40."""
        return self.values.size // 40 + 1

    def smooth(self) -> "Series":
        """A moving mean over a twentieth of the points.

        Centred, so not shifted; at the start it narrows, because a mean over the first steep fall
        would hide it; at the end it keeps to the points there are.
        """
        size = self.values.size
        half = self.smoothed_at_end - 1
        places = np.arange(size)
        first = np.maximum(places - half, 0)
        last = np.minimum(places + np.minimum(half, places), size - 1)
        sums = np.concatenate([[0.0], np.cumsum(self.values)])
        return Series(self.steps, (sums[last + 1] - sums[first]) / (last + 1 - first))


def guessed(rows: Sequence[Row]) -> str:
    """The accuracy that a run has measured, by name; the first that there is if it has none."""
    return next((name for name in GUESSED if Series.of(rows, name)), next(iter(GUESSED)))
