"""What repetitions have in common, and how far apart they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainers.reports.runs import Run
from trainers.reports.series import Series


@dataclass(frozen=True)
class Spread:
    """One number of several runs; `std` is that of a sample (n - 1), None for a single run."""

    n: int
    mean: float
    std: float | None
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread | None":
        """None without values."""
        if not values:
            return None
        array = np.array(values, dtype=np.float64)
        std = float(array.std(ddof=1)) if array.size > 1 else None
        return cls(array.size, float(array.mean()), std, float(array.min()), float(array.max()))


@dataclass(frozen=True)
class Band:
    """A curve of several runs at the steps that all of them have: equally long 1-D arrays."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: int

    @classmethod
    def of(cls, several: Sequence[Series]) -> "Band | None":
        """None without a step that all have. A step that is there twice counts as it was last."""
        tables = [dict(zip(one.steps.tolist(), one.values, strict=True)) for one in several]
        steps = sorted(set(tables[0]).intersection(*tables[1:])) if tables else []
        if not steps:
            return None
        values = np.array([[table[step] for step in steps] for table in tables])
        return cls(np.array(steps), values.mean(0), values.min(0), values.max(0), n=len(several))


def last(runs: Sequence[Run], name: str) -> list[float]:
    """The newest value of a metric of each run that has measured it."""
    return [series.last for run in runs if (series := Series.of(run.rows, name))]


def middle(runs: Sequence[Run], name: str) -> list[float]:
    """The median of a metric of each run, without its first line, which has the start in it."""
    found = [Series.of(run.rows, name) for run in runs]
    return [
        Series(s.steps[1:], s.values[1:]).middle if s.steps.size > 1 else s.middle
        for s in found
        if s
    ]
