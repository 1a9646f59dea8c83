"""Writes docs/reference.md: every command, exit code, choice and key, read from where each stands.

    python -m scripts.reference

A test fails when the page is out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import signal
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from launch.local import EXIT_CODES
from scripts.notes import of_fields, of_yaml
from trainers import errors
from trainers.compose import CONFIGS, choices
from trainers.config import Config
from trainers.failures import READER_GONE
from trainers.finetuning import settings
from trainers.limits import LIMITS, Limit, in_words
from trainers.typed import fields_of

REPOSITORY = CONFIGS.parent
PAGE = REPOSITORY / "docs" / "reference.md"
_HEAD = """\
# Reference

Made by `python -m scripts.reference` from the typed configuration and the files in `configs/`; do
not edit it. Keys are given as `section.key=value`, choices as `group=name`.
"""
_TYPES = {int: "whole number", float: "number", bool: "true, false", str: "text"}
_MANY = 3  # different defaults, beyond which the files are named instead


def page() -> str:
    """The whole page."""
    file = CONFIGS / "finetune.yaml"
    finetune, notes = yaml.safe_load(file.read_text()), of_yaml(file)
    own = {k: v for k, v in fields_of(settings.FinetuneConfig).items() if k != "optimizer"}
    lines = [
        *(_HEAD, *_commands(), *_exit_codes(), *_choices(), "## Keys of a run", ""),
        *_sections(),
        *("## Keys of `came-finetune`", "", "`optimizer` is chosen and set as above.", ""),
        *_table(settings.FinetuneConfig, "", own, finetune, notes, settings.LIMITS),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _commands() -> Iterator[str]:
    yield from ("## Commands", "", "| command | what |", "|---|---|")
    text = (REPOSITORY / "pyproject.toml").read_text().partition("[project.scripts]")[2]
    for name, module in re.findall(r'^(came-\w+) = "([\w.]+):', text.partition("\n[")[0], re.M):
        source = (REPOSITORY / module.replace(".", "/")).with_suffix(".py").read_text()
        first = str(ast.get_docstring(ast.parse(source))).split("\n\n")[0]
        what = re.sub(r"^`came-\w+`: ", "", " ".join(first.split())).split(". ")[0].rstrip(".")
        yield f"| `{name}` | {_cell(what)} |"
    yield ""


def _exit_codes() -> Iterator[str]:
    yield from ("## Exit codes", "", "| code | what |", "|---|---|", "| 0 | Done. |")
    yield "| 1 | What nobody foresaw: a bug; the traceback is shown. |"
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    own = [kind for kind in kinds if "exit_code" in vars(kind) and kind is not errors.RunError]
    for kind in sorted(own, key=lambda kind: kind.exit_code):
        yield f"| {kind.exit_code} | {_cell(str(inspect.getdoc(kind)))} |"
    yield f"| {EXIT_CODES[signal.SIGINT]} | The same by Ctrl-C. |"
    yield "| 137, 143 | Ended by SIGKILL; by a second signal, with nothing saved. |"
    yield from (
        f"| {READER_GONE} | Nobody reads what it prints any more, as after `\\| head`. |",
        "",
    )


def _choices() -> Iterator[str]:
    yield from ("## Choices", "")
    for group, names in choices().items():
        yield from (f"### `{group}=`", "", "| name | |", "|---|---|")
        for name in names:
            yield f"| `{name}` | {_cell(_first_sentence(CONFIGS / group / f'{name}.yaml'))} |"
        yield ""


def _first_sentence(file: Path) -> str:
    """Of the comment at the top, without an experiment's command and hours."""
    lines = file.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    top = [line.lstrip("# ") for line in lines[:end]]
    text = " ".join(line for line in top if not re.search("^came-train|H200 at", line))
    return re.split(r"(?<!al)\. ", text)[0].rstrip(".:") + "."


def _sections() -> Iterator[str]:
    file = CONFIGS / "config.yaml"
    tree, notes = yaml.safe_load(file.read_text()), of_yaml(file)
    kinds = fields_of(Config)
    for name, kind in kinds.items():
        if dataclasses.is_dataclass(kind):
            yield from (f"### {name}", "")
            keys = {k: v for k, v in fields_of(kind).items() if k != "name"}
            files = choices().get(name, [])
            defaults = {**_of_files(name, files), **tree.get(name, {})}
            own = (of_yaml(CONFIGS / name / f"{file}.yaml", f"{name}.") for file in files)
            file_notes = {k: text for found in own for k, text in found.items()}
            known = file_notes | of_fields(kind, f"{name}.") if files else {}
            yield from _table(kind, f"{name}.", keys, defaults, {**known, **notes}, LIMITS)
    alone = {"deepspeed": kinds["deepspeed"]}
    yield from ("### Others", "", *_table(Config, "", alone, tree, notes, LIMITS))


def _of_files(group: str, names: list[str]) -> dict[str, Any]:
    """The defaults of a group, in words where its files differ."""
    trees = {name: yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text()) for name in names}
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for tree in trees.values() for key in tree):
        values: dict[str, list[str]] = {}
        for name, tree in trees.items():
            if key in tree:
                values.setdefault(_value(tree[key]), []).append(name)
        with_names = ", ".join(f"{value} ({', '.join(who)})" for value, who in values.items())
        everywhere = len(values) == 1 and all(key in tree for tree in trees.values())
        by_file = with_names if len(values) <= _MANY else f"`configs/{group}/` has it"
        found[key] = _Words(next(iter(values)) if everywhere else by_file)
    return found


class _Words(str):
    """A default that is in words already."""


def _table(
    kind: Any,
    prefix: str,
    keys: Mapping[str, Any],
    defaults: Mapping[str, Any],
    notes: Mapping[str, str],
    limits: Mapping[str, Limit],
) -> Iterator[str]:
    yield from ("| key | type | default | what |", "|---|---|---|---|")
    yield from _rows(kind, prefix, keys, defaults, notes, limits)
    yield ""


def _rows(
    kind: Any,
    prefix: str,
    keys: Mapping[str, Any],
    defaults: Mapping[str, Any],
    notes: Mapping[str, str],
    limits: Mapping[str, Limit],
) -> Iterator[str]:
    written = of_fields(kind, prefix)
    given = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, inner in keys.items():
        key = f"{prefix}{name}"
        if dataclasses.is_dataclass(inner):
            below = defaults.get(name, {})
            yield from _rows(inner, f"{key}.", fields_of(inner), below, notes, limits)
            continue
        default = defaults.get(name, given[name])
        words = _type(inner) + (f"; {in_words(*limits[key])}" if key in limits else "")
        text = notes.get(key) or written.get(key, "")
        yield f"| `{key}` | {words} | {_value(default)} | {_cell(text)} |"
        for item in get_args(inner):  # a list of sections
            if dataclasses.is_dataclass(item):
                yield from _rows(item, f"{key}[].", fields_of(item), {}, {}, {})


def _type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(str(value) for value in get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join("null" if k is type(None) else _type(k) for k in get_args(kind))
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return "list of sections" if dataclasses.is_dataclass(inner) else f"list: {_type(inner)}"
    return "mapping" if get_origin(kind) is dict else _TYPES[kind]


def _value(value: Any) -> str:
    if isinstance(value, _Words):
        return value
    if value == "???" or value is dataclasses.MISSING:
        return "has to be given"
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{k}: {v}' for k, v in value.items())}}}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=10**6).splitlines()[0]}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
