"""SM3 over any sharding: one maximum over the ranks, one pass over the numbers.

Memory-Efficient Adaptive Optimization (Anil et al., 2019, arXiv 1901.11150), Algorithm SM3-II with
the momentum of its authors' code.  The accumulated square of a number is bounded by those of the
slices it lies in, one for each index of each dimension (the paper's cover).  For a matrix:

    nu_ij = min(row_i, col_j) + g_ij^2
    m = beta1 m + (1 - beta1) g / sqrt(nu + eps);   p = p - lr wd p - lr m
    row_i = max_j nu_ij;   col_j = max_i nu_ij                    -> maximum over the ranks

and likewise for more dimensions.  The numbers of a vector have accumulators of their own, which is
Adagrad.  Accumulators only grow: the step sizes fall by themselves.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from came.fields import Field
from came.layout import Param, packed_offsets
from came.reduce import Maximum
from came.rules.options import check_lr, check_number
from came.rules.work import Plan, check_beta, descend, plan, wide_grad
from came.tasks import Block, Task

__all__ = ["check", "fields", "num_summed", "plan", "step"]


def fields(param: Param, options: dict[str, Any]) -> tuple[Field, ...]:
    """Momentum, unless it is off, and an accumulator for each index of each dimension."""
    kept = [Field("exp_avg")] if options["beta1"] else []
    if not param.factored:
        return (*kept, Field("accumulator"))
    covers = [Field(f"accumulator_{dim}", (size,)) for dim, size in enumerate(param.shape)]
    return (*kept, *covers)


def check(options: dict[str, Any]) -> None:
    """Raise a ValueError if an option is out of its range."""
    check_lr(options)
    check_beta(options, "beta1")
    check_number(options, "eps", positive=True)
    check_number(options, "weight_decay")


def num_summed(params: Sequence[Param]) -> tuple[int, ...]:
    """Numbers of the buffer of which the ranks take the maximum in a step over `params`.

    Never none: every step is one maximum.
    """
    return (max(1, sum(map(_num_accumulators, params))),)


def step(plan: Plan) -> Iterator[Maximum]:
    """One step of SM3, in place; yields the accumulators, of which the ranks want the largest."""
    params = [task.param for task in plan.tasks]
    sizes = [_num_accumulators(param) for param in params]
    buffer = plan.like.new_zeros(num_summed(params))  # zero is the least an accumulator can be
    largest = [
        _views(task.param, buffer[at:])
        for task, at in zip(plan.tasks, packed_offsets(sizes), strict=True)
    ]
    for task, found in zip(plan.tasks, largest, strict=True):
        for block in task.pieces():
            grad = wide_grad(block, plan.grads)
            nu = _accumulate(task, block, grad.square(), found)
            _apply(task, block, grad, nu)
    plan.grads = []  # the model may free them
    yield Maximum(buffer)
    for task, found in zip(plan.tasks, largest, strict=True):
        for dim, cover in enumerate(found):
            task.state[f"accumulator_{dim}"].copy_(cover)


def _num_accumulators(param: Param) -> int:
    """Numbers of a parameter's cover; that of a vector is its own, and nobody else's."""
    return sum(param.shape) if param.factored else 0


def _views(param: Param, buffer: Tensor) -> tuple[Tensor, ...]:
    """What belongs to each dimension of a parameter at the beginning of a buffer."""
    sizes = param.shape if param.factored else ()
    begins = packed_offsets(sizes)
    return tuple(buffer[at : at + size] for at, size in zip(begins, sizes, strict=True))


def _accumulate(task: Task, block: Block, square: Tensor, largest: tuple[Tensor, ...]) -> Tensor:
    """`nu` of a block, `(b, n, m)`; raises `largest` to its maxima."""
    if not task.param.factored:
        return block.stored["accumulator"][0].view(square.shape).add_(square)
    indices = _indices(task.param, block)
    bound = torch.full_like(square, float("inf"))
    for dim, (axis, index) in enumerate(indices):
        shape = [-1 if other == axis else 1 for other in range(3)]
        torch.minimum(bound, task.state[f"accumulator_{dim}"][index].view(shape), out=bound)
    nu = bound.add_(square)
    for found, (axis, index) in zip(largest, indices, strict=True):
        maxima = nu.amax([other for other in range(3) if other != axis])
        found.scatter_reduce_(0, index, maxima.to(found.dtype), "amax")
    return nu


def _indices(param: Param, block: Block) -> list[tuple[int, Tensor]]:
    """For each dimension of the parameter: along which axis of the block `(b, n, m)` it runs, and
    which of its indices lie there."""
    box, device = block.box, block.param.device
    matrix = torch.arange(box.batch, box.batch + box.batches, device=device)
    found = []
    for dim, size in enumerate(param.shape[:-2]):
        found.append((0, matrix // math.prod(param.shape[dim + 1 : -2]) % size))
    found.append((1, torch.arange(box.row, box.row + box.rows, device=device)))
    found.append((2, torch.arange(box.col, box.col + box.cols, device=device)))
    return found


def _apply(task: Task, block: Block, grad: Tensor, nu: Tensor) -> None:
    beta1, lr = task.options["beta1"], float(task.options["lr"])
    update = (nu + task.options["eps"]).rsqrt_().mul_(grad)
    if "exp_avg" in block.stored:
        momentum = block.stored["exp_avg"][0].view(update.shape)
        update = momentum.mul_(beta1).add_(update, alpha=1 - beta1)
    descend(block, update, lr * task.options["weight_decay"], lr)
