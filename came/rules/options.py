"""Checks of hyperparameters that several optimizers share."""

from typing import Any


def check_numbers(options: dict[str, Any], key: str, count: int, below: float | None) -> None:
    """`options[key]` is `count` numbers >= 0, and less than `below`, or a ValueError is raised."""
    values = options[key]
    if not isinstance(values, list | tuple) or not all(map(is_number, values)):
        raise ValueError(f"{key} is {values!r}; it must be a sequence of numbers")
    fits = all(value >= 0 and (below is None or value < below) for value in values)
    if len(values) != count or not fits:
        extent = ">= 0" if below is None else f"in [0, {below:g})"
        words = {1: "one number", 2: "two numbers", 3: "three numbers"}[count]
        raise ValueError(f"{key} is {values!r}; it must be {words} {extent}")


def check_number(options: dict[str, Any], key: str, *, positive: bool = False) -> None:
    """`options[key]` is a number >= 0, or > 0, or a ValueError is raised."""
    value = options[key]
    if not is_number(value):
        raise ValueError(f"{key} is {value!r}; it must be a number")
    if not (value > 0 if positive else value >= 0):
        raise ValueError(f"{key} is {value!r}; it must be {'>' if positive else '>='} 0")


def check_choice(options: dict[str, Any], key: str, choices: tuple[str, ...]) -> None:
    """`options[key]` is one of `choices`, or a ValueError is raised."""
    if options[key] not in choices:
        raise ValueError(f"{key} is {options[key]!r}; it must be one of {', '.join(choices)}")


def check_flag(options: dict[str, Any], key: str) -> None:
    """`options[key]` is True or False, or a ValueError is raised."""
    if not isinstance(options[key], bool):
        raise ValueError(f"{key} is {options[key]!r}; it must be True or False")


def check_lr(options: dict[str, Any]) -> None:
    """The learning rate is a number or a tensor of one, >= 0, or a ValueError is raised."""
    if not float(options["lr"]) >= 0:
        raise ValueError(f"lr is {options['lr']!r}; it must be a number >= 0")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)
