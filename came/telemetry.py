"""What the last step of CAME looked like, for those who watch a run.

Nothing is computed before it is asked for: the kernels leave one number for each parameter, the
rest is in the state.  All of it is known on every rank, so asking is no collective; it does wait
for the device.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from came.optimizer import CAME
from came.rules.came import Plan
from came.tasks import Task


@dataclass(frozen=True)
class GroupTelemetry:
    """The parameters of one param group in the last step.

    `update_rms`: root mean square of `u = g / sqrt(v)` before it was clipped, over all numbers.
    `clip_factor`: the smallest factor that an update was clipped by (paper, Algorithm 2, line 8).
    `confidence_spread`: standard deviation of the natural logarithm of the confidence `1 / sqrt(S)`
    inside a matrix, averaged over the matrices; 0 where confidence makes no difference.
    `nonfinite`: names of parameters whose update was not a number, or infinite.
    """

    update_rms: float
    clip_factor: float
    confidence_spread: float
    nonfinite: tuple[str, ...]

    def as_dict(self) -> dict[str, float]:
        """Numbers by name, for metrics."""
        return {
            "update_rms": self.update_rms,
            "clip_factor": self.clip_factor,
            "confidence_spread": self.confidence_spread,
            "nonfinite": len(self.nonfinite),
        }


@torch.no_grad()
def telemetry(optimizer: CAME) -> list[GroupTelemetry]:
    """The last step, one entry for each param group; numbers are NaN where it had no gradient.

    Raises:
        TypeError: the optimizer is another one.
    """
    if not isinstance(optimizer, CAME):
        raise TypeError(f"telemetry is of CAME, and this is a {type(optimizer).__name__}")
    found: dict[int, list[tuple[Task, float]]] = {id(group): [] for group in optimizer.param_groups}
    for plan in optimizer.last_plans():
        assert isinstance(plan, Plan)
        tasks = plan.table.matrices.tasks + plan.table.vectors.tasks
        for task, rms in zip(tasks, plan.table.rms.tolist(), strict=True):
            found.setdefault(id(task.options), []).append((task, rms))
    return [_group(found[id(group)]) for group in optimizer.param_groups]


def _group(rows: list[tuple[Task, float]]) -> GroupTelemetry:
    numel = sum(task.param.numel for task, _ in rows)
    square = sum(rms * rms * task.param.numel for task, rms in rows)
    ratios = [rms / task.options["clip_threshold"] for task, rms in rows]
    clips = [1 / ratio if not ratio <= 1 else 1.0 for ratio in ratios]  # NaN stays NaN
    spreads = list(_spreads(rows))
    return GroupTelemetry(
        update_rms=math.sqrt(square / numel) if numel else math.nan,
        clip_factor=math.nan if not clips or any(map(math.isnan, clips)) else min(clips),
        confidence_spread=sum(spreads) / len(spreads) if spreads else math.nan,
        nonfinite=tuple(task.param.name for task, rms in rows if not math.isfinite(rms)),
    )


def _spreads(rows: list[tuple[Task, float]]) -> Iterator[float]:
    """`log S` is a sum over row and column, so its variance is the sum of their variances."""
    for task, _ in rows:
        if task.param.factored:
            row, col = task.by_matrix("exp_avg_res_row"), task.by_matrix("exp_avg_res_col")
            yield float((_log_variance(row) + _log_variance(col)).sqrt().mean() / 2)


def _log_variance(factor: Tensor) -> Tensor:
    return factor.log().var(dim=1, correction=0)
