"""The paper's curves, as digitised from its figures (digitised/README.md says how well)."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainers.errors import ConfigError
from trainers.reports.series import Series
from trainers.typed import nearest

_FOLDER = Path(__file__).parent / "digitised"


@dataclass(frozen=True)
class Figure:
    """Curves by optimizer, named as our settings name it, with what they show.

    `metric` is the one of metrics.jsonl that is comparable, in the same unit, in runs with the
    objective `objective`.
    """

    title: str
    metric: str
    objective: str
    steps: int
    accuracy: str
    curves: Mapping[str, Series]


@dataclass(frozen=True)
class _Source:
    file: str
    title: str
    metric: str
    objective: str
    steps: int
    column: str
    unit: float
    accuracy: str
    batch: str | None = None


def _bert(batch: str) -> _Source:
    return _Source(
        "bert_large_mlm_accuracy.csv",
        f"BERT-Large, batch {int(batch):,}, length 128, Wikipedia",
        *("eval/mlm_accuracy", "masked_lm", 20_000, "mlm_accuracy_percent", 0.01),
        accuracy="read off the figure by pixel, 0.3 percentage points either way",
        batch=batch,
    )


_SOURCES = {
    "bert_large_8k": _bert("8192"),
    "bert_large_32k": _bert("32768"),
    "gpt2_medium": _Source(
        "gpt2_medium_validation_loss.csv",
        "GPT-2 medium (345M)",
        *("eval/loss", "causal_lm", 120_000, "validation_loss", 1.0),
        accuracy="read off the figure by pixel",
    ),
}
_NAMES = {"Adam": "adamw", "CAME": "came", "Adafactor": "adafactor", "LAMB": "lamb"}
# As the paper writes them.
PAPER_NAMES = {name: paper for paper, name in _NAMES.items()}


def paper_figure(name: str) -> Figure:
    """The figure that `--paper` names. Raises ConfigError, which lists those there are."""
    if name not in _SOURCES:
        hint = nearest(name, _SOURCES)
        known = ", ".join(_SOURCES)
        raise ConfigError(f"no --paper is named '{name}': choose one of {known}{hint}")
    source = _SOURCES[name]
    points: dict[str, list[tuple[int, float]]] = {}
    with open(_FOLDER / source.file, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if source.batch in (None, row.get("batch_size")):
                point = (int(row["step"]), float(row[source.column]) * source.unit)
                points.setdefault(_NAMES[row["optimizer"]], []).append(point)
    curves = {
        name: Series(*(np.array(column) for column in zip(*found, strict=True)))
        for name, found in points.items()
    }
    return Figure(
        source.title, source.metric, source.objective, source.steps, source.accuracy, curves
    )
