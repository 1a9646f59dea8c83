"""Which runs come next, from what the finished ones reached: a pure function, so that a plan that
was stopped goes on where it was.

    rates      lr / f, lr, lr f            three at first, with seed 0
               lr / f^2 or lr f^2 ...      while the best is at an edge
    seeds      1, 2, ...                   at the best rate
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from scripts.reproduction.plan import Contestant, Plan, Task


@dataclass(frozen=True)
class Run:
    """One training run: exponent `rate` stands for `lr * factor ** rate`."""

    task: str
    contestant: str
    rate: int
    seed: int


# What a run reached: its metric at the end, or None where it diverged.
Results = Mapping[Run, float | None]


def next_runs(plan: Plan, results: Results) -> Iterator[Run]:
    """Runs that can start now, in the order of the plan; none when all is done."""
    for task in plan.tasks:
        for contestant in task.contestants:
            yield from _next_of(plan, task, contestant, results)


def rates_tried(task: Task, contestant: Contestant, results: Results) -> dict[int, float | None]:
    """What seed 0 reached at each rate, lowest rate first."""
    found = {
        run.rate: value
        for run, value in results.items()
        if (run.task, run.contestant, run.seed) == (task.name, contestant.name, 0)
    }
    return dict(sorted(found.items()))


def best_rate(task: Task, tried: Mapping[int, float | None]) -> int | None:
    """The rate with the best metric; None if all diverged."""
    best: int | None = None
    for rate, value in tried.items():
        if value is None:
            continue
        held = None if best is None else tried[best]
        if held is None or task.better(value, held):
            best = rate
    return best


def missing_rates(plan: Plan, task: Task, tried: Mapping[int, float | None]) -> list[int]:
    """Rates that the sweep still needs; empty when its best is inside, or enough were tried."""
    first = [rate for rate in task.rates or (0, -1, 1) if rate not in tried]
    if first or task.rates:
        return first
    low, high = min(tried), max(tried)
    best = best_rate(task, tried)
    if len(tried) >= plan.max_rates or (best is not None and low < best < high):
        return []
    return [high + 1] if best == high else [low - 1]  # what diverges everywhere needs less


def _next_of(plan: Plan, task: Task, contestant: Contestant, results: Results) -> Iterator[Run]:
    tried = rates_tried(task, contestant, results)
    if rates := missing_rates(plan, task, tried):
        for rate in rates:
            yield Run(task.name, contestant.name, rate, 0)
    elif (best := best_rate(task, tried)) is not None:
        for seed in range(1, plan.seeds):
            if (run := Run(task.name, contestant.name, best, seed)) not in results:
                yield run
