"""Steps whose loss or gradients are no numbers: nobody updates anything, and it is counted.

What is wrong on one rank has to be known on all before any of them updates.  Nothing is summed for
that: a loss that is no number makes every gradient none, gradients are summed over the ranks
anyway, and DeepSpeed looks at their norm before each update.  Where it does not (stage 0 in
float32), we look.
"""

import logging
import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.errors import NonFiniteError, RunError
from trainers.run.agreement import own_rank, together
from trainers.run.step_folders import committed

logger = logging.getLogger(__name__)


def contagious(share: Tensor) -> Tensor:
    """`share` [], with a gradient that is no number where `share` is none."""
    return share * (1 + 0 * share.detach())


def guard(engine: Any) -> None:
    """Skip and count a step without finite gradients where DeepSpeed itself would take it.

    Sharded gradients are looked at by DeepSpeed itself; here they are whole, and equal on all
    ranks, so that all decide alike.
    """
    if engine.optimizer is engine.basic_optimizer:
        engine.basic_optimizer.register_step_pre_hook(lambda *_: _drop_if_not_finite(engine))


def _drop_if_not_finite(engine: Any) -> None:
    params = [p for group in engine.basic_optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in params if p.grad is not None]
    if grads and not torch.stack(torch._foreach_norm(grads)).isfinite().all():
        engine.skipped_steps += 1
        for param in params:
            param.grad = None  # optimizers pass over what has no gradient


class Skips:
    """Counts the steps that DeepSpeed or the guard has skipped, and ends a run of too many."""

    def __init__(self, limit: int, checkpoints: Path, engine: Any) -> None:
        """More than `limit` skipped steps in a row end the run."""
        self.total: int = engine.skipped_steps  # with those of earlier starts
        self._limit, self._checkpoints = limit, checkpoints
        self._in_row = 0
        self._text = ""  # of the last one

    def note(self, engine: Any, step: int, positions: range, loss: Tensor) -> bool:
        """Whether `step`, of the samples at `positions`, was skipped.

        `loss` [] is this rank's share.  Every rank must call it, and all know alike.
        Raises NonFiniteError where that was one too many.
        """
        if engine.skipped_steps == self.total:
            self._in_row = 0
            return False
        self.total = engine.skipped_steps
        self._in_row += 1
        samples = f"samples {positions[0]} to {positions[-1]}"
        self._text = f"{self._culprits(loss)} at step {step}, {samples}"
        if self._in_row > self._limit:
            raise self._error(engine, step)
        if own_rank() == 0:
            logger.warning("%s: no rank updates anything in this step", self._text)
        return True

    def end(self, engine: Any, step: int, heldout_loss: float) -> None:
        """The run ends with `step`, which was skipped: with what the step before has left.

        Every rank must call it, with the same loss.  Raises NonFiniteError where that is no number:
        then not the batch was bad, but the last update.
        """
        if not math.isfinite(heldout_loss):
            raise self._error(engine, step)
        if own_rank() == 0:
            good = step - self._in_row
            logger.warning("the run ends with the parameters of step %d, the last good one", good)

    def _culprits(self, loss: Tensor) -> str:
        losses = together(loss.item, RunError)
        ranks = [str(rank) for rank, value in enumerate(losses) if not math.isfinite(value)]
        if not ranks:
            return "the gradients are not finite"
        return f"the loss of rank {', '.join(ranks)} is not finite"

    def _error(self, engine: Any, step: int) -> NonFiniteError:
        found = committed(self._checkpoints)
        error = NonFiniteError(
            f"{self._text}, the {self._in_row}. step in a row without an update{_broken(engine)}: "
            f"the last good step is {step - self._in_row}, the newest checkpoint "
            f"{found[0].name if found else 'none'}. Lower optimizer.lr or warm up longer; a "
            f"rare bad batch is passed over by train.max_skipped_steps (now {self._limit})"
        )
        error.everywhere = True
        return error


def _broken(engine: Any) -> str:
    """The parameters that are no numbers themselves: then no batch can be a good one."""
    names = [
        name
        for name, param in engine.module.named_parameters()
        if not getattr(param, "ds_tensor", param).isfinite().all()
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f", and not finite are {', '.join(names[:3])}{more}" if names else ""


class Spikes:
    """Counts logged losses that stand out: 6 standard deviations above those before (OLMo 2)."""

    SIGMAS, WINDOW, ENOUGH = 6.0, 128, 16

    def __init__(self) -> None:
        self.total = 0
        self._recent: deque[float] = deque(maxlen=self.WINDOW)

    def note(self, loss: float) -> None:
        """Take one loss; what is no number is counted elsewhere."""
        if not math.isfinite(loss):
            return
        values = torch.tensor(self._recent, dtype=torch.float64)
        if len(values) >= self.ENOUGH and loss > values.mean() + self.SIGMAS * values.std():
            self.total += 1
        else:
            self._recent.append(loss)
