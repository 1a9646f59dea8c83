"""Runs sorted: sections can be compared, groups are one setting, in a group seeds repeat it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainers.reports.runs import Run
from trainers.reports.spread import Spread, last
from trainers.reports.style import OPTIMIZERS

# What a held-out number is a number of: runs that differ here share no picture.
_ASKED = ("model", "objective", "data", "eval.samples")
# What neither changes what is learned nor how fast: where things lie, what is logged and saved.
_IDLE = (
    *("run", "logging", "checkpoint", "launch", "eval.every", "train.log_every", "experiment"),
    *("data.cache_dir", "data.workers", "runtime.timeout_seconds", "runtime.grace_seconds"),
)
MOST_DRAWN = 8
# Each optimizer has its own, so a difference between optimizers is no news.
_TUNED = ("optimizer", "schedule", "train.gradient_clipping")


@dataclass(frozen=True)
class Group:
    """Runs of one setting. `place` counts the groups of the same optimizer before it."""

    label: str
    optimizer: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    place: int

    @property
    def repetitions(self) -> tuple[Run, ...]:
        """The runs that came to their end: all that means and spreads are of."""
        return tuple(run for run in self.runs if run.flaw is None)


@dataclass(frozen=True)
class Section:
    """Groups whose held-out numbers are of the same question."""

    title: str
    groups: tuple[Group, ...]

    @property
    def drawn(self) -> tuple[Group, ...]:
        """The groups that pictures show: all, or where these are too many, no sweep of lr.

        Of groups that differ in their learning rate alone it is the one with the most repetitions,
        and among equals that with the lowest held-out loss.
        """
        if len(self.groups) <= MOST_DRAWN:
            return self.groups
        best: dict[str, Group] = {}
        for group in self.groups:
            apart = _without(group.settings, ("optimizer.lr",))
            before = best.setdefault(repr(sorted(apart.items())), group)
            if _worth(group) > _worth(before):
                best[repr(sorted(apart.items()))] = group
        kept = list(best.values())
        return tuple(
            replace(group, place=sum(one.optimizer == group.optimizer for one in kept[:index]))
            for index, group in enumerate(kept)
        )

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for group in self.groups for run in group.runs)


def sort_runs(runs: Sequence[Run]) -> list[Section]:
    """Sections in the order of the runs, groups in that of the optimizers."""
    asked = _together(runs, lambda run: _chosen(run.settings, _ASKED, without=_IDLE))
    between = differing([_chosen(some[0].settings, _ASKED, without=_IDLE) for some in asked])
    titles = [_title(some[0]) for some in asked]
    if len(set(titles)) < len(titles):
        titles = [_title(some[0], between) for some in asked]
    return [Section(title, _groups(some)) for title, some in zip(titles, asked, strict=True)]


def differing(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The keys that do not have one value in all; a key that is missing somewhere is None there."""
    several = list(settings)
    keys = dict.fromkeys(key for one in several for key in one)
    return [key for key in keys if len({repr(one.get(key)) for one in several}) > 1]


def _worth(group: Group) -> tuple[int, float]:
    loss = Spread.of(last(group.repetitions, "eval/loss"))
    return len(group.repetitions), -loss.mean if loss else float("-inf")


def _groups(runs: Sequence[Run]) -> tuple[Group, ...]:
    several = _together(runs, lambda run: _without(run.settings, _IDLE))
    order = list(OPTIMIZERS)
    several.sort(key=lambda some: (order + [some[0].optimizer]).index(some[0].optimizer))
    settings = [_without(some[0].settings, _IDLE) for some in several]
    between = [key for key in differing(settings) if not _is_in(key, _TUNED)]
    groups: list[Group] = []
    for some, own in zip(several, settings, strict=True):
        optimizer = some[0].optimizer
        alike = [one for one in settings if one.get("optimizer.name") == optimizer]
        inside = [key for key in differing(alike) if _is_news(key, own.get(key), alike)]
        # The learning rate last: where a label is cut, it is what is kept.
        keys = sorted(dict.fromkeys([*inside, *between]), key=lambda key: key == _RATE)
        told = {key: own.get(key) for key in keys}
        name = OPTIMIZERS.get(optimizer, optimizer or "no optimizer named")
        label = ", ".join([name, *(_words(key, value) for key, value in told.items())])
        place = sum(group.optimizer == optimizer for group in groups)
        seeds = tuple(sorted(some, key=lambda run: (str(run.seed), run.name)))
        groups.append(Group(label, optimizer, own, seeds, place))
    return tuple(groups)


def _is_news(key: str, value: Any, alike: Sequence[dict[str, Any]]) -> bool:
    """Whether a label tells it: a learning rate, and what less than most of its kind have."""
    most = sum(repr(one.get(key)) == repr(value) for one in alike) > len(alike) / 2
    return key == _RATE or not most


_RATE = "optimizer.lr"
_WORDS = {
    _RATE: "lr",
    "batch.global_size": "batch",
    "train.steps": "steps",
    "optimizer.momentum": "momentum",
    "objective.sequence_length": "length",
    "zero.stage": "ZeRO",
    "runtime.dtype": "",  # its values are known by name
}


def _words(key: str, value: Any) -> str:
    """A setting in few words: the name alone of what is switched on."""
    if isinstance(value, bool):
        return _short(key) if value else f"no {_short(key)}"
    return f"{_short(key)} {value}".lstrip()


def _short(key: str) -> str:
    return _WORDS.get(key, key.removeprefix("optimizer.").replace("_", " "))


def _title(run: Run, keys: Sequence[str] = ()) -> str:
    told = ["model.name", "objective.name", "data.name"]
    parts = [str(run.settings[key]) for key in told if key in run.settings]
    if length := run.settings.get("objective.sequence_length"):
        parts.append(f"length {length}")
        told.append("objective.sequence_length")
    return ", ".join(
        [*parts, *(f"{_short(key)} {run.settings.get(key)}" for key in keys if key not in told)]
    )


def _together(runs: Sequence[Run], key: Any) -> list[list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(repr(sorted(key(run).items())), []).append(run)
    return list(found.values())


def _chosen(
    settings: dict[str, Any], prefixes: Sequence[str], without: Sequence[str]
) -> dict[str, Any]:
    kept = _without(settings, without)
    return {key: value for key, value in kept.items() if _is_in(key, prefixes)}


def _without(settings: dict[str, Any], prefixes: Sequence[str]) -> dict[str, Any]:
    """None is as absent as a key that the version that ran did not have."""
    return {
        key: value
        for key, value in settings.items()
        if value is not None and not _is_in(key, prefixes)
    }


def _is_in(key: str, prefixes: Sequence[str]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
