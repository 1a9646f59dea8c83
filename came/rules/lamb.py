"""LAMB over any sharding: one sum over the ranks, two passes over the numbers.

Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes (You et al., 2020, arXiv
1904.00962), Algorithm 2.  Adam's update of each parameter is made as long as the parameter itself.
At step `t`:

    pass 1   m = beta1 m + (1 - beta1) g;   v = beta2 v + (1 - beta2) g^2
             u = m^ / (sqrt(v^) + eps) + wd p,   m^ = m / (1 - beta1^t),   v^ = v / (1 - beta2^t)
             sums of p^2 and u^2                                  -> summed over the ranks
    pass 2   p = p - lr u min(|p| / |u|, max_trust_ratio)

The paper's ratio is `phi(|p|) / |u|`, and what bounds `phi` is left open.  Here `phi` is the
identity, as in NVIDIA's code, and the ratio itself has an upper bound, as in DeepSpeed's.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from came.fields import Field
from came.layout import Param
from came.rules.options import check_lr, check_number, check_numbers
from came.rules.work import Plan, descend, plan, wide, wide_grad
from came.tasks import Block, Task

__all__ = ["check", "fields", "num_summed", "plan", "step"]


def fields(param: Param, options: dict[str, Any]) -> tuple[Field, ...]:
    """Adam's two moments."""
    return Field("exp_avg"), Field("exp_avg_sq")


def check(options: dict[str, Any]) -> None:
    """Raise a ValueError if an option is out of its range."""
    check_lr(options)
    check_numbers(options, "betas", 2, below=1)
    check_number(options, "eps")
    check_number(options, "weight_decay")
    check_number(options, "max_trust_ratio", positive=True)


def num_summed(params: Sequence[Param]) -> tuple[int, ...]:
    """Numbers of the buffer that the ranks sum in a step over `params`."""
    return (2 * len(params),)


def step(plan: Plan) -> Iterator[Tensor]:
    """One step of LAMB, in place; yields its one buffer to be summed over the ranks."""
    squares = plan.like.new_zeros(len(plan.tasks), 2)
    for task, sums in zip(plan.tasks, squares, strict=True):
        for block in task.pieces():
            _update_moments(task, block, wide_grad(block, plan.grads))
            if _adapts(task):
                sums[0] += wide(block).square().sum()
                sums[1] += _update(task, block).square().sum()
    plan.grads = []  # the model may free them
    yield squares
    for task, sums in zip(plan.tasks, squares, strict=True):
        rate = _trust_ratio(task, sums) * float(task.options["lr"])
        for block in task.pieces():
            descend(block, _update(task, block).mul_(rate), 0.0)


def _adapts(task: Task) -> bool:
    """Biases and norms, which have no weight decay, take Adam's step."""
    return bool(task.options["weight_decay"] or task.options["always_adapt"])


def _moments(block: Block) -> tuple[Tensor, Tensor]:
    first, second = block.stored["exp_avg"][0], block.stored["exp_avg_sq"][0]
    return first.view(block.param.shape), second.view(block.param.shape)


def _update_moments(task: Task, block: Block, grad: Tensor) -> None:
    beta1, beta2 = task.options["betas"]
    first, second = _moments(block)
    first.mul_(beta1).add_(grad, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)


def _update(task: Task, block: Block) -> Tensor:
    """`u`: Adam's update and the decay, before the trust ratio."""
    (beta1, beta2), at = task.options["betas"], float(task.step)
    corrects = task.options["bias_correction"]
    correction1, correction2 = (1 - beta1**at, 1 - beta2**at) if corrects else (1.0, 1.0)
    first, second = _moments(block)
    update = second.sqrt().div_(correction2**0.5).add_(task.options["eps"]).mul_(correction1)
    torch.div(first, update, out=update)
    weight_decay = task.options["weight_decay"]
    return update.add_(wide(block), alpha=weight_decay) if weight_decay else update


def _trust_ratio(task: Task, sums: Tensor) -> Tensor:
    """`|p| / |u|`, but 1 where either is zero or the parameter is not adapted."""
    if not _adapts(task):
        return torch.ones_like(sums[0])
    param_norm, update_norm = sums.sqrt()
    ratio = (param_norm / update_norm).clamp(max=task.options["max_trust_ratio"])
    return torch.where((param_norm > 0) & (update_norm > 0), ratio, 1.0)
