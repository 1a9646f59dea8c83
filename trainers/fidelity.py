"""How near a run is to the paper: `trainers/recipes/EXPERIMENT.yaml` beside the run's settings.

A recipe has, for each key of the configuration, the paper's value and where it stands, or the words
"not published"; `ours` is the value of our experiment where that is another, and `why` the reason.
A value that is neither the paper's nor that of the experiment has no reason: somebody has set it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml

from trainers.config import Config
from trainers.redact import redact_text

RECIPES = Path(__file__).resolve().parent / "recipes"
FILE_NAME = "fidelity.md"  # in a run folder
NOT_PUBLISHED = "not published"
UNEXPLAINED = "set on the command line, or not explained"

Kind = Literal["same", "deviation", "not published"]


@dataclass(frozen=True)
class Comparison:
    """One setting of the paper and of a run."""

    key: str
    kind: Kind
    paper: Any  # None where it is not published
    ours: Any
    why: str | None  # None where there is nothing to explain
    source: str | None  # where the paper's value stands

    @property
    def is_explained(self) -> bool:
        """Whether somebody who changed nothing would see the same."""
        return self.why != UNEXPLAINED


def names() -> list[str]:
    """The experiments that have a recipe of the paper."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def compare(config: Config) -> list[Comparison] | None:
    """Every setting that the recipe of `config.experiment` speaks of; None if there is none."""
    file = RECIPES / f"{config.experiment}.yaml"
    if not file.is_file():
        return None
    recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    values = {**recipe["values"], **recipe["optimizers"].get(config.optimizer.name, {})}
    return [_compare(config, key, told, recipe["sources"]) for key, told in values.items()]


def _compare(
    config: Config, key: str, told: Mapping[str, Any], sources: Mapping[str, str]
) -> Comparison:
    ours, paper, why = _plain(attrgetter(key)(config)), told["paper"], told.get("why")
    if paper == NOT_PUBLISHED:
        return Comparison(key, "not published", None, ours, why, None)
    source = sources[told["source"]]
    if ours == paper:
        return Comparison(key, "same", paper, ours, None, source)
    explained = why is not None and ("ours" not in told or ours == told["ours"])
    return Comparison(key, "deviation", paper, ours, why if explained else UNEXPLAINED, source)


def _plain(value: Any) -> Any:
    """As YAML would have read it."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {name: item for name, item in asdict(value).items() if item is not None}
    return value


def markdown(config: Config) -> str | None:
    """The report on `config` as a page; None if the paper has no such experiment."""
    found = compare(config)
    if found is None:
        return None
    title = f"Fidelity: {config.experiment} with {config.optimizer.name}, and the paper"
    return "\n\n".join([f"# {title}", *_parts(found)]) + "\n"


def _parts(found: list[Comparison]) -> Iterator[str]:
    kinds = {kind: [c for c in found if c.kind == kind] for kind in ("deviation", "not published")}
    same = [c for c in found if c.kind == "same"]
    yield (
        f"{len(same)} settings are the paper's, {len(kinds['deviation'])} are not, and "
        f"{len(kinds['not published'])} it does not publish."
    )
    if kinds["deviation"]:
        rows = [(c.key, c.paper, c.ours, c.why) for c in kinds["deviation"]]
        yield "## Deviations\n\n" + _table(("setting", "paper", "this run", "why"), rows)
    if kinds["not published"]:
        rows = [(c.key, c.ours, c.why or "our choice") for c in kinds["not published"]]
        heads = ("setting", "this run", "where that is from")
        yield "## Not published by the paper\n\n" + _table(heads, rows)
    if same:
        rows = [(c.key, c.ours, c.source) for c in same]
        yield "## As in the paper\n\n" + _table(("setting", "value", "source"), rows)


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return redact_text(text).replace("|", "\\|").replace("\n", " ")
