"""What rules in plain torch share: the tasks of a step, its gradients, and its last line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from came.fields import compute_dtype
from came.rules.options import is_number
from came.tasks import Block, Task


@dataclass
class Plan:
    """The parameters of a step; `like` has the device and dtype of buffers that are summed."""

    tasks: list[Task]
    like: Tensor
    grads: list[Tensor] = field(default_factory=list)

    def refresh(self, grads: list[Tensor]) -> None:
        """Take over this step's gradients, flat; options are read when the step is done."""
        self.grads = grads

    def forget_numbers(self) -> None:
        """Let go of parameters and gradients."""
        self.grads = []
        for task in self.tasks:
            task.forget_numbers()


def plan(todo: Sequence[Task], grads: list[Tensor], like: Tensor, *, alone: bool) -> Plan:
    """One parameter after the other, in the order of the layout, which all ranks share."""
    return Plan(list(todo), like)


def wide(block: Block) -> Tensor:
    """A block's parameter in the dtype that is computed in; the parameter itself if it has it."""
    return block.param.to(compute_dtype(block.param.dtype))


def wide_grad(block: Block, grads: list[Tensor]) -> Tensor:
    """A block's gradient in the dtype that is computed in."""
    return block.grad(grads).to(compute_dtype(block.param.dtype))


def descend(block: Block, step: Tensor, decay: Tensor | float, rate: float = 1.0) -> None:
    """`p = p - decay p - rate step`; a half-precision parameter is rounded once."""
    param = wide(block)
    if not isinstance(decay, float) or decay:
        # Not `(1 - decay) p`: in fp32 the factor itself would be off by 3e-8 every step.
        param.sub_(param * decay)
    param.sub_(step, alpha=rate)
    if param.dtype != block.param.dtype:
        block.param.copy_(param)


def check_beta(options: dict[str, Any], key: str) -> None:
    """`options[key]` is a number in [0, 1), or a ValueError is raised."""
    value = options[key]
    if not is_number(value) or not 0 <= value < 1:
        raise ValueError(f"{key} is {value!r}; it must be a number in [0, 1)")
