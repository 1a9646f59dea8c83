"""What is to be run: tasks, contestants and their first learning rates, read from a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

PLANS = Path(__file__).parent  # cpu.yaml, gpu.yaml


@dataclass(frozen=True)
class Contestant:
    """An optimizer with its settings; `lr` is where its sweep starts."""

    name: str
    words: tuple[str, ...]
    lr: float


@dataclass(frozen=True)
class Task:
    """One comparison: all `contestants` learn the same from the same batches.

    `metric` is a held-out metric at the end, `max:eval/...` where more is better; `beside` is one
    that is told with it and chooses nothing.  `rates` are the exponents of a fixed sweep; none: it
    follows the best.
    """

    name: str
    title: str
    metric: str
    words: tuple[str, ...]
    contestants: tuple[Contestant, ...]
    rates: tuple[int, ...] = ()
    beside: str = ""

    @property
    def metric_name(self) -> str:
        return self.metric.removeprefix("max:")

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is the better value of the metric."""
        return a > b if self.metric.startswith("max:") else a < b


@dataclass(frozen=True)
class Plan:
    """Tasks, and how each is run: `seeds` runs at the best rate, of rates that are `factor` apart.

    A sweep starts with three rates and goes on by one while the best is at its edge, up to
    `max_rates`.  `jobs` runs go on at a time.  `beyond` names tasks and contestants that the paper
    has not: what takes their time only where it is asked for.
    """

    jobs: int
    seeds: int
    factor: float
    max_rates: int
    words: tuple[str, ...]
    tasks: tuple[Task, ...]
    beyond: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()  # stronger than all words of the plan, but for the rate


def read_plan(path: Path) -> Plan:
    """The plan in a YAML file. Raises ValueError for a name or key that it does not know."""
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    known, tasks, beyond = told.pop("contestants"), told.pop("tasks"), told.pop("beyond", ())
    if unknown := [name for name in beyond if name not in known and name not in tasks]:
        raise ValueError(f"{path}: beyond: {', '.join(unknown)}: neither task nor contestant")
    return Plan(
        **{**told, "words": tuple(told["words"])},
        tasks=tuple(_task(name, task, known, path) for name, task in tasks.items()),
        beyond=tuple(beyond),
    )


def chosen(plan: Plan, names: Sequence[str] | None, beyond: bool) -> Plan:
    """The plan with the tasks named alone (None: all), and with what is `beyond` only if asked for.

    Raises ValueError for a name that is none of its tasks.
    """
    tasks = plan.tasks if beyond else _without(plan.tasks, plan.beyond)
    known = [task.name for task in tasks]
    if unknown := [name for name in names or () if name not in known]:
        later = [task.name for task in plan.tasks if task.name not in known]
        more = f", and with --beyond {', '.join(later)}" if later else ""
        raise ValueError(f"--task {' '.join(unknown)}: the plan has {', '.join(known)}{more}")
    return replace(plan, tasks=tuple(task for task in tasks if names is None or task.name in names))


def _without(tasks: tuple[Task, ...], beyond: tuple[str, ...]) -> tuple[Task, ...]:
    return tuple(
        replace(task, contestants=tuple(c for c in task.contestants if c.name not in beyond))
        for task in tasks
        if task.name not in beyond
    )


def _task(name: str, told: dict[str, Any], known: dict[str, Any], path: Path) -> Task:
    if extra := told.keys() - {"title", "metric", "beside", "words", "lr", "rates"}:
        raise ValueError(f"{path}: task {name} has unknown keys: {', '.join(sorted(extra))}")
    if unknown := told["lr"].keys() - known.keys():
        raise ValueError(
            f"{path}: task {name} names {', '.join(sorted(unknown))}; contestants are "
            f"{', '.join(known)}"
        )
    contestants = tuple(Contestant(c, tuple(known[c] or ()), lr) for c, lr in told["lr"].items())
    told = {**told, "words": tuple(told["words"]), "rates": tuple(told.get("rates", ()))}
    del told["lr"]
    return Task(name=name, contestants=contestants, **told)
