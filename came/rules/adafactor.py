"""Adafactor over any sharding: two sums over the ranks, three passes over the numbers.

Adafactor: Adaptive Learning Rates with Sublinear Memory Cost (Shazeer and Stern, 2018, arXiv
1804.04235), Algorithms 4 to 6, with the choices of `transformers.optimization.Adafactor`: the
momentum is one of whole steps, learning rate included, and weight decay is decoupled and scaled
like the step.  One parameter, at step `t`:

    pass 1   sums of g^2 by row and column, and of p^2            -> summed over the ranks
             r, c = moving averages of the means of g^2 + eps1, with beta2 = 1 - t^decay_rate
             a = lr max(eps2, RMS(p));   u = g / sqrt(r c / mean(r))
    pass 2   sum of u^2                                           -> summed over the ranks
    pass 3   m' = beta1 m + (1 - beta1) a u / max(1, RMS(u) / clip_threshold)
             p = p - a wd p - m'

A vector keeps the full moving average of `g^2 + eps1`; without `beta1` there is no `m`.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from came.fields import Field
from came.layout import Param, packed_offsets
from came.rules.options import check_lr, check_number, check_numbers, is_number
from came.rules.work import Plan, check_beta, descend, plan, wide, wide_grad
from came.tasks import Block, Task

__all__ = ["check", "fields", "num_summed", "plan", "step"]

Factors = tuple[Tensor, Tensor]  # (batch, rows) and (batch, cols)


def fields(param: Param, options: dict[str, Any]) -> tuple[Field, ...]:
    """Two factor vectors for a matrix, the full second moment for a vector; momentum if wanted."""
    kept = [Field("exp_avg")] if options["beta1"] is not None else []
    if not param.factored:
        return (*kept, Field("exp_avg_sq"))
    row, col = Field("exp_avg_sq_row", param.row_shape), Field("exp_avg_sq_col", param.col_shape)
    return (*kept, row, col)


def check(options: dict[str, Any]) -> None:
    """Raise a ValueError if an option is out of its range, or two do not fit each other."""
    if options["relative_step"]:
        if options["lr"] is not None:
            raise ValueError(f"lr is {options['lr']!r}; with relative_step it must be None")
    elif options["lr"] is None:
        raise ValueError("lr is None; without relative_step it must be a number >= 0")
    else:
        check_lr(options)
    if options["warmup_init"] and not options["relative_step"]:
        raise ValueError("warmup_init is true; it needs relative_step")
    check_numbers(options, "eps", 2, below=None)
    check_number(options, "clip_threshold", positive=True)
    if not is_number(options["decay_rate"]) or not options["decay_rate"] < 0:
        raise ValueError(f"decay_rate is {options['decay_rate']!r}; it must be a number < 0")
    if options["beta1"] is not None:
        check_beta(options, "beta1")
    check_number(options, "weight_decay")


def num_summed(params: Sequence[Param]) -> tuple[int, ...]:
    """Numbers of each buffer that the ranks sum in a step over `params`."""
    num_factors = sum(param.num_factors for param in params if param.factored)
    return num_factors + len(params), len(params)


def step(plan: Plan) -> Iterator[Tensor]:
    """One step of Adafactor, in place; yields its two buffers to be summed over the ranks."""
    todo, grads = plan.tasks, plan.grads
    sizes = [task.param.num_factors if task.param.factored else 0 for task in todo]
    num_first, num_second = num_summed([task.param for task in todo])
    buffer = plan.like.new_zeros(num_first)
    param_squares = buffer[sum(sizes) :]
    factors = [
        _views(task, buffer[at:]) for task, at in zip(todo, packed_offsets(sizes), strict=True)
    ]
    for task, sums, total in zip(todo, factors, param_squares, strict=True):
        for block in task.pieces():
            if sums is not None:
                square = wide_grad(block, grads).square()
                sums[0][block.rows] += square.sum(dim=2)
                sums[1][block.cols] += square.sum(dim=1)
            if task.options["scale_parameter"]:
                total += wide(block).square().sum()
    yield buffer
    update_squares = plan.like.new_zeros(num_second)
    for task, sums, total in zip(todo, factors, update_squares, strict=True):
        _update_second_moment(task, grads, sums)
        for block in task.pieces():
            total += _update(block, grads, sums).square().sum()
    yield update_squares
    for index, task in enumerate(todo):
        rate = _learning_rate(task, param_squares[index])
        rms = (update_squares[index] / task.param.numel).sqrt()
        gain = rate / (rms / task.options["clip_threshold"]).clamp(min=1.0)
        for block in task.pieces():
            _apply(task, block, _update(block, grads, factors[index]).mul_(gain), rate)
    plan.grads = []  # the model may free them


def _views(task: Task, buffer: Tensor) -> Factors | None:
    """What belongs to the rows and columns of a matrix at the beginning of a buffer."""
    if not task.param.factored:
        return None
    batch, num_rows, num_cols = task.param.matrices
    middle, end = batch * num_rows, batch * (num_rows + num_cols)
    return buffer[:middle].view(batch, num_rows), buffer[middle:end].view(batch, num_cols)


def _update_second_moment(task: Task, grads: list[Tensor], sums: Factors | None) -> None:
    """Moves the second moment on; writes to `sums` the two factors of `1 / sqrt(r c / mean(r))`."""
    beta2, eps = 1 - float(task.step) ** task.options["decay_rate"], task.options["eps"][0]
    if sums is None:
        for block in task.pieces():
            square = wide_grad(block, grads).square() + eps
            _second_moment(block).mul_(beta2).add_(square, alpha=1 - beta2)
        return
    _, num_rows, num_cols = task.param.matrices
    row, col = task.by_matrix("exp_avg_sq_row"), task.by_matrix("exp_avg_sq_col")
    row.mul_(beta2).add_(sums[0] / num_cols + eps, alpha=1 - beta2)
    col.mul_(beta2).add_(sums[1] / num_rows + eps, alpha=1 - beta2)
    sums[0].copy_((row / row.mean(dim=1, keepdim=True)).rsqrt())
    sums[1].copy_(col.rsqrt())


def _second_moment(block: Block) -> Tensor:
    return block.stored["exp_avg_sq"][0].view(block.param.shape)


def _update(block: Block, grads: list[Tensor], scales: Factors | None) -> Tensor:
    """`u` before it is clipped: the gradient over the root of its second moment."""
    grad = wide_grad(block, grads)
    if scales is None:
        return grad * _second_moment(block).rsqrt()
    update = grad * scales[0][block.rows].unsqueeze(2)
    return update.mul_(scales[1][block.cols].unsqueeze(1))


def _learning_rate(task: Task, param_square: Tensor) -> Tensor:
    """The step size of a parameter; `param_square` is the sum of its squares before the step."""
    options, at = task.options, float(task.step)
    if options["relative_step"]:
        rate = min(1e-6 * at if options["warmup_init"] else 1e-2, at**-0.5)
    else:
        rate = float(options["lr"])
    if not options["scale_parameter"]:
        return torch.full_like(param_square, rate)
    rms = (param_square / task.param.numel).sqrt()
    return rms.clamp(min=options["eps"][1]).mul_(rate)


def _apply(task: Task, block: Block, step: Tensor, rate: Tensor) -> None:
    if "exp_avg" in block.stored:
        momentum, beta1 = block.stored["exp_avg"][0].view(step.shape), task.options["beta1"]
        step = momentum.mul_(beta1).add_(step, alpha=1 - beta1)
    weight_decay = task.options["weight_decay"]
    descend(block, step, rate * weight_decay if weight_decay else 0.0)
