"""What a plan came to, as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from scripts.reproduction.order import Results, best_rate, missing_rates, rates_tried
from scripts.reproduction.plan import Contestant, Plan, Task


def tables(plan: Plan, results: Results, beside: Results) -> str:
    """A table for each task: the best rate, the spread over seeds, and the whole sweep."""
    return "\n".join(line for task in plan.tasks for line in _table(plan, task, results, beside))


def _table(plan: Plan, task: Task, results: Results, beside: Results) -> Iterator[str]:
    given = f", with {' '.join(plan.overrides)}" if plan.overrides else ""
    yield f"### {task.title}{given}\n"
    yield f"`{task.metric_name}` at the end; `{' '.join((*task.words, *plan.overrides))}`\n"
    heads = ["optimizer", "learning rate", "n", "mean", "std", "min to max", "sweep (seed 0)"]
    if task.beside:
        heads.insert(-1, f"{task.beside}, std")
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for contestant in task.contestants:
        yield f"| {' | '.join(_row(plan, task, contestant, results, beside))} |"
    yield ""


def _row(
    plan: Plan, task: Task, contestant: Contestant, results: Results, beside: Results
) -> Iterator[str]:
    tried = rates_tried(task, contestant, results)
    best = best_rate(task, tried)
    yield contestant.name
    if best is None or missing_rates(plan, task, tried):
        whole = "not done" if missing_rates(plan, task, tried) else "diverged"
        yield from ("-", "0", whole, "-", "-", *(["-"] if task.beside else []))
    else:
        edge = " (edge)" if best in (min(tried), max(tried)) else ""
        yield _rate(plan, contestant, best) + edge
        runs = [
            run
            for run in results
            if (run.task, run.contestant, run.rate) == (task.name, contestant.name, best)
        ]
        yield str(len(runs))
        finite = [value for run in runs if (value := results[run]) is not None]
        lost = len(runs) - len(finite)
        yield _value(task, statistics.mean(finite)) + (
            f" ({lost} of {len(runs)} diverged)" if lost else ""
        )
        yield _value(task, statistics.stdev(finite)) if len(finite) > 1 else "-"
        yield f"{_value(task, min(finite))} to {_value(task, max(finite))}"
        if task.beside:
            also = [value for run in runs if (value := beside[run]) is not None]
            spread = f"{statistics.stdev(also):.3f}" if len(also) > 1 else "-"
            yield f"{statistics.mean(also):.3f}, {spread}" if also else "-"
    yield ", ".join(
        f"{_rate(plan, contestant, rate)}: {'diverged' if value is None else _value(task, value)}"
        for rate, value in tried.items()
    )


def _rate(plan: Plan, contestant: Contestant, rate: int) -> str:
    return f"{contestant.lr * plan.factor**rate:.2g}"


def _value(task: Task, value: float) -> str:
    return f"{value:.2%}" if task.metric_name.endswith("accuracy") else f"{value:.4f}"
