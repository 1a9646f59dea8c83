"""What a rule is: the mathematics of an optimizer, for whoever drives it."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import Tensor

from came.fields import Field
from came.layout import Param
from came.reduce import Maximum
from came.tasks import Task


class Plan(Protocol):
    """The work of a step, as long as its tensors stay where they are."""

    def refresh(self, grads: list[Tensor]) -> None:
        """Take over this step's gradients and options."""

    def forget_numbers(self) -> None:
        """Let go of parameters and gradients; what is known about them stays."""


class Rule(Protocol):
    """What an optimizer computes: a module of `came.rules`."""

    def fields(self, param: Param, options: dict[str, Any]) -> tuple[Field, ...]:
        """What it keeps for a parameter."""

    def check(self, options: dict[str, Any]) -> None:
        """Raise a ValueError if an option is out of its range."""

    def num_summed(self, params: Sequence[Param]) -> tuple[int, ...]:
        """Numbers of each buffer that the ranks sum, or take the maximum of, in a step over
        `params`."""

    def plan(self, todo: list[Task], grads: list[Tensor], like: Tensor, *, alone: bool) -> Any:
        """Order the work; `like` has its device and dtype, `alone` is a world of one."""

    def step(self, plan: Any) -> Iterator[Tensor | Maximum]:
        """Do it, yielding what the ranks must sum."""
