"""How near a run is to the paper: `trainers/recipes/EXPERIMENT.yaml` beside the run's settings.

A recipe has, for each key of the configuration, the paper's value and where it stands, or the words
"not published"; `ours` is the value of our experiment where that is another, and `why` the reason.
A reason is that of the experiment's own value alone. What a run has changed of its experiment is
told too, whether the recipe speaks of it or not, and has no reason: somebody has set it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import yaml

from trainers.compose import LEAVES, choices, read_words
from trainers.config import Config, MixSource, PhaseConfig
from trainers.errors import ConfigError
from trainers.markdown import cell
from trainers.redact import bare_name, bare_source
from trainers.typed import message

RECIPES = Path(__file__).resolve().parent / "recipes"
FILE_NAME = "fidelity.md"  # in a run folder
NOT_PUBLISHED = "not published"
UNEXPLAINED = "set on the command line, or not explained"
SPEED = "how fast it runs, not what is learned"

_LEARNED = ("model", "objective", "data", "optimizer", "schedule", "train", "batch", "deepspeed")
_ELSEWHERE = ("data.cache_dir", "data.workers", "train.log_every")  # of these, learned by nobody
_SPEED = ("batch.micro_size", "zero.stage")
KEYS = (
    *(key for key in LEAVES if key.partition(".")[0] in _LEARNED and key not in _ELSEWHERE),
    *("runtime.dtype", "zero.stage"),
)
# A setting that is not what it says where one of these is not the experiment's.
_OVERRULED_BY = {
    "model.name": tuple(f"model.{name}" for name in ("family", "layers", "hidden", "heads"))
    + tuple(f"model.{name}" for name in ("intermediate", "max_positions", "path", "kv_heads")),
    "objective.sequence_length": ("train.phases",),
    "objective.max_predictions": ("train.phases",),
    "data.name": tuple(f"data.{name}" for name in ("hub", "hub_config", "hub_revision", "split"))
    + tuple(f"data.{name}" for name in ("path", "packages", "sources")),
    "schedule.warmup_fraction": ("schedule.warmup_steps",),
    "batch.global_size": ("batch.ramp_from", "batch.ramp_fraction", "train.phases"),
}
_PATHS = ("model.path", "data.path", "data.tokenizer")
_YOURS = ("data.path", "data.tokenizer")  # for everybody to give: an experiment has none

Kind = Literal["same", "deviation", "not published"]


@dataclass(frozen=True)
class Comparison:
    """One setting of the paper, of the experiment, and of a run."""

    key: str
    kind: Kind
    paper: Any  # None where it is not published
    experiment: Any
    ours: Any
    why: str | None  # None where there is nothing to explain
    source: str | None  # where the paper's value stands

    @property
    def is_explained(self) -> bool:
        """Whether somebody who changed nothing would see the same."""
        return not (self.why or "").startswith(UNEXPLAINED)


def names() -> list[str]:
    """The experiments that have a recipe: the paper's, its authors' scripts', or another's."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def compare(config: Config) -> list[Comparison] | None:
    """Every setting that the recipe of `config.experiment` speaks of, and every other one that
    decides what is learned and is not the experiment's; None if there is no recipe.

    Raises:
        ConfigError: when the experiment, as this version has it, is not complete by itself.
    """
    if config.experiment not in names():
        return None
    recipe = yaml.safe_load((RECIPES / f"{config.experiment}.yaml").read_text(encoding="utf-8"))
    told = {**recipe["values"], **recipe["optimizers"].get(config.optimizer.name, {})}
    # How many processes there are is chosen by the machine.
    own = replace(experiment(config.experiment, config.optimizer.name), launch=config.launch)
    ours, theirs = ({key: shown(c, key) for key in {*KEYS, *told}} for c in (config, own))
    changed = {key: ours[key] for key in KEYS if ours[key] != theirs[key]}
    rows = [
        _compare(key, told[key], recipe["sources"], theirs[key], ours[key], changed) for key in told
    ]
    return rows + [
        Comparison(key, "deviation", None, theirs[key], value, _why_changed(key), None)
        for key, value in changed.items()
        if key not in told
    ]


@cache
def experiment(name: str, optimizer: str) -> Config:
    """An experiment with one of the optimizers, as it is where nobody changes anything.

    Raises:
        ConfigError: with every problem that was found, one per line.
    """
    problems: list[str] = []
    words = [f"experiment={name}", f"optimizer={optimizer}"]
    found = read_words(Config, "config", words, choices(), problems)
    if problems or found is None:
        raise ConfigError(message(problems))
    return found


def _compare(
    key: str,
    told: Mapping[str, Any],
    sources: Mapping[str, str],
    own: Any,
    ours: Any,
    changed: Mapping[str, Any],
) -> Comparison:
    published = told["paper"] != NOT_PUBLISHED
    paper, source = (told["paper"], sources[told["source"]]) if published else (None, None)
    over = [f"{other}={_words(changed[other])}" for other in _overruling(key, changed)]
    is_yours = key in _YOURS and own is None
    if over and ours in (own, paper):
        return Comparison(
            key, "deviation", paper, own, ours, f"{UNEXPLAINED}: {', '.join(over)}", source
        )
    if published and ours == paper and not is_yours:
        return Comparison(key, "same", paper, own, ours, None, source)
    if (ours == own and ours == told.get("ours", ours)) or is_yours:
        kind: Kind = "deviation" if published else "not published"
        return Comparison(key, kind, paper, own, ours, told.get("why", UNEXPLAINED), source)
    return Comparison(key, "deviation", paper, own, ours, _why_changed(key), source)


def _overruling(key: str, changed: Mapping[str, Any]) -> Iterator[str]:
    """What makes `key` another than it says; phases do if one of them has a value for it."""
    name = key.rpartition(".")[2]
    for other in _OVERRULED_BY.get(key, ()):
        if other in changed and (
            other != "train.phases" or any(name in phase for phase in changed[other])
        ):
            yield other


def _why_changed(key: str) -> str:
    return SPEED if key in _SPEED else UNEXPLAINED


def shown(config: Config, key: str) -> Any:
    """A setting as YAML would have read it; where a file lies on a machine is nobody's business."""
    value = attrgetter(key)(config)
    if value is not None and key in _PATHS:
        return bare_name(value)
    return bare_source(value) if value and key == "data.hub" else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, MixSource):
        value = replace(
            value,
            path=value.path and bare_name(value.path),
            hub=value.hub and bare_source(value.hub),
        )
    if isinstance(value, PhaseConfig):
        value = replace(value, micro_size=None)  # of speed alone, and found on the machine
    if is_dataclass(value) and not isinstance(value, type):
        return {name: item for name, item in asdict(value).items() if item is not None}
    return value


def markdown(config: Config) -> str | None:
    """The report on `config` as a page; None if it has no recipe."""
    try:
        found = compare(config)
    except ConfigError as error:
        parts = [f"Nothing is compared: experiment={config.experiment} is not complete: {error}"]
        return _page(config, parts)
    return None if found is None else _page(config, _parts(found))


def _page(config: Config, parts: Iterable[str]) -> str:
    title = f"Fidelity: {config.experiment} with {config.optimizer.name}, and the paper"
    return "\n\n".join([f"# {title}", *parts]) + "\n"


def _parts(found: list[Comparison]) -> Iterator[str]:
    kinds = {kind: [c for c in found if c.kind == kind] for kind in ("deviation", "not published")}
    same = [c for c in found if c.kind == "same"]
    unexplained = sum(not c.is_explained for c in found)
    others = len(kinds["deviation"])
    yield (
        f"{len(same)} {'setting is' if len(same) == 1 else 'settings are'} the paper's, "
        f"{others} {'is' if others == 1 else 'are'} not, and "
        f"{len(kinds['not published'])} it does not publish."
        + (f" Without a reason: {unexplained}." if unexplained else "")
    )
    if kinds["deviation"]:
        rows = [(c.key, _of_paper(c), c.ours, c.why) for c in kinds["deviation"]]
        yield "## Deviations\n\n" + _table(("setting", "paper", "this run", "why"), rows)
    if kinds["not published"]:
        rows = [(c.key, c.ours, c.why) for c in kinds["not published"]]
        heads = ("setting", "this run", "where that is from")
        yield "## Not published by the paper\n\n" + _table(heads, rows)
    if same:
        rows = [(c.key, c.ours, c.source) for c in same]
        yield "## As in the paper\n\n" + _table(("setting", "value", "source"), rows)


def _of_paper(found: Comparison) -> str:
    if found.source is not None:
        return _words(found.paper)
    return f"the experiment's: {_words(found.experiment)}"


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = [[cell(_words(value)) for value in line] for line in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ("---",) * len(heads), *lines])


def _words(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
