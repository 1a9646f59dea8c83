"""Plain values from YAML or a command line -> the typed configuration, all problems at once.

OmegaConf's structured configs stop at the first wrong value; a person with three typos should
see three messages, so the (small) set of types that our dataclasses use is checked here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

MISSING = "???"  # OmegaConf's sign for a value that somebody has to give
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_NEXT = "\n  - "  # between the problems of one message


def fields_of(kind: type) -> dict[str, Any]:
    """The fields of a configuration class and their resolved types."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def leaves(kind: type, prefix: str = "") -> dict[str, Any]:
    """Every key that a value can be given to, dotted, and its type."""
    found: dict[str, Any] = {}
    for name, hint in fields_of(kind).items():
        inner = dataclasses.is_dataclass(hint)
        found |= leaves(hint, f"{prefix}{name}.") if inner else {f"{prefix}{name}": hint}
    return found


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean 'train.steps'?", or nothing where nothing is near.

    A bare last part counts as near: `lr` means `optimizer.lr`.
    """
    known = sorted(known)
    same_end = [key for key in known if key.rsplit(".", 1)[-1] == word]
    near = same_end or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


def convert(kind: Any, value: Any, key: str, problems: list[str]) -> Any:
    """`value` as a `kind`; where it cannot be one, a sentence is added to `problems`."""
    if isinstance(value, str) and value == MISSING:
        problems.append(f"{key} has no value: give one with {key}=...")
        return None
    if dataclasses.is_dataclass(kind):
        return _section(kind, value, key, problems)
    origin = get_origin(kind)
    if origin is Literal:
        return _choice(get_args(kind), value, key, problems)
    if origin in (Union, types.UnionType):  # only `X | None` is used
        inner = next(arg for arg in get_args(kind) if arg is not type(None))
        return None if value is None else convert(inner, value, key, problems)
    if origin is tuple:
        return _sequence(get_args(kind)[0], value, key, problems)
    if origin is dict:
        if not isinstance(value, Mapping):
            problems.append(f"{key} must be a mapping like {{a: 1}}, not {value!r}")
        return value
    return _scalar(kind, value, key, problems)


def _section(kind: Any, value: Any, key: str, problems: list[str]) -> Any:
    known, dot = fields_of(kind), f"{key}." if key else ""
    if not isinstance(value, Mapping):
        keys = ", ".join(dot + name for name in known)
        problems.append(f"{key} is a section and cannot be {value!r}: its keys are {keys}")
        return None
    for name in value.keys() - known.keys():
        hint = nearest(f"{dot}{name}", (dot + other for other in known))
        problems.append(f"unknown key '{dot}{name}'{hint}")
    before, given = len(problems), {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            where = dot + field.name
            given[field.name] = convert(known[field.name], value[field.name], where, problems)
        elif field.default is field.default_factory is dataclasses.MISSING:
            problems.append(f"{dot}{field.name} has no value: give one with {dot}{field.name}=...")
    return kind(**given) if len(problems) == before else None


def _choice(choices: tuple[Any, ...], value: Any, key: str, problems: list[str]) -> Any:
    # `True == 1` in Python, so the type is compared as well.
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    options = [str(choice) for choice in choices]
    hint = nearest(str(value), options) if isinstance(value, str) else ""
    problems.append(f"{key} must be one of {', '.join(options)}, not {value!r}{hint}")
    return None


def _sequence(kind: Any, value: Any, key: str, problems: list[str]) -> Any:
    if not isinstance(value, (list, tuple)):
        problems.append(f"{key} must be a list like [a,b], not {value!r}")
        return None
    return tuple(convert(kind, item, f"{key}[{i}]", problems) for i, item in enumerate(value))


def _scalar(kind: type, value: Any, key: str, problems: list[str]) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and number and math.isfinite(value):
        return float(value)
    if kind is int and number and math.isfinite(value) and value == int(value):
        return int(value)  # 1e3 is a fair way to write a thousand steps
    if kind in (bool, str) and isinstance(value, kind):
        return value
    problems.append(f"{key} must be {NAMES[kind]}, not {value!r}")
    return None


def message(problems: list[str]) -> str:
    """All problems as the words of one error."""
    if len(problems) == 1:
        return problems[0]
    lines = [f"{len(problems)} problems in the configuration", *problems]
    return _NEXT.join(line.rstrip() for line in lines)


def problems_in(error: Exception) -> list[str]:
    """The problems of which `message` has made the words of an error."""
    return str(error).split(_NEXT)[1:] or [str(error)]
