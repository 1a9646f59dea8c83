"""What a plan came to, as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from scripts.reproduction.order import Results, best_rate, missing_rates, rates_tried
from scripts.reproduction.plan import Contestant, Plan, Task


def tables(plan: Plan, results: Results) -> str:
    """A table for each task: the best rate, the spread over seeds, and the whole sweep."""
    return "\n".join(line for task in plan.tasks for line in _table(plan, task, results))


def _table(plan: Plan, task: Task, results: Results) -> Iterator[str]:
    yield f"### {task.title}\n"
    yield f"`{task.metric_name}` at the end; `{' '.join(task.words)}`\n"
    yield "| optimizer | learning rate | n | mean | std | min to max | sweep (seed 0) |"
    yield "|---|---|---|---|---|---|---|"
    for contestant in task.contestants:
        yield f"| {' | '.join(_row(plan, task, contestant, results))} |"
    yield ""


def _row(plan: Plan, task: Task, contestant: Contestant, results: Results) -> tuple[str, ...]:
    tried = rates_tried(task, contestant, results)
    sweep = ", ".join(
        f"{_rate(plan, contestant, rate)}: {'diverged' if value is None else _value(task, value)}"
        for rate, value in tried.items()
    )
    best = best_rate(task, tried)
    if best is None or missing_rates(plan, task, tried):
        return contestant.name, "-", "0", "not done", "-", "-", sweep
    values = [
        value
        for run, value in results.items()
        if (run.task, run.contestant, run.rate) == (task.name, contestant.name, best)
    ]
    finite = [value for value in values if value is not None]
    mean = _value(task, statistics.mean(finite))
    if lost := len(values) - len(finite):
        mean += f" ({lost} of {len(values)} diverged)"
    edge = " (edge)" if best in (min(tried), max(tried)) else ""
    return (
        contestant.name,
        _rate(plan, contestant, best) + edge,
        str(len(values)),
        mean,
        _value(task, statistics.stdev(finite)) if len(finite) > 1 else "-",
        f"{_value(task, min(finite))} to {_value(task, max(finite))}",
        sweep,
    )


def _rate(plan: Plan, contestant: Contestant, rate: int) -> str:
    return f"{contestant.lr * plan.factor**rate:.2g}"


def _value(task: Task, value: float) -> str:
    return f"{value:.2%}" if task.metric_name.endswith("accuracy") else f"{value:.4f}"
