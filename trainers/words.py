"""The `key=value` words of a command line: choices of files, values, and what is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from trainers.flags import HELP, unknown_flag
from trainers.typed import convert, nearest


def split(
    words: Sequence[str],
    known: Mapping[str, Any],
    groups: Mapping[str, list[str]],
    problems: list[str],
    flags: Collection[str] = (),
) -> tuple[dict[str, str], dict[str, Any]]:
    """Choices of files, and values by `known` keys; words that are neither go to `problems`."""
    sections = {leaf.partition(".")[0] for leaf in known if "." in leaf}
    names, values = {}, {}
    for word in long_words(words) if "data.tokenizer" in known else words:
        key, equals, text = word.partition("=")
        key = key.lstrip("+").strip()  # `+key=` and `++key=` are habits from other Hydra programs
        if key.startswith("-"):
            problems.append(unknown_flag(word, flags or HELP, [*known, *groups]))
        elif not equals or key.startswith("~"):
            problems.append(f"cannot read '{word}': write NAME=VALUE")
        elif "${" in text:
            problems.append(f"{key}: '${{...}}' is not read on the command line, give the value")
        elif key in groups:
            names[key] = _name(key, text, groups[key], problems)
        elif key in known or (key.startswith("deepspeed.") and "deepspeed" in known):
            values[key] = _value(key, text, known.get(key), problems)
        elif key in sections:
            inside = ", ".join(leaf for leaf in known if leaf.startswith(f"{key}."))
            problems.append(f"'{key}' is a section; its keys are {inside}")
        else:
            problems.append(f"unknown key '{key}'{_meant(key, [*known, *groups])}")
    found = {group: name for group, name in names.items() if name is not None}
    return found, {key: value for key, value in values.items() if value is not _BAD}


def long_words(words: Sequence[str]) -> list[str]:
    """The words with `tokenizer=...` as the keys that it is short for."""
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        if key.lstrip("+") != "tokenizer" or not equals:
            found.append(word)
        elif value in _MODELS:
            found += ["data.tokenizer=null", f"data.tokenizer_model={value}"]
        else:
            found.append(f"data.tokenizer={value}")
    return found


def _meant(key: str, known: Sequence[str]) -> str:
    """What to type instead of a key: the nearest one, or those that there are where it stands."""
    if hint := nearest(key, known):
        return hint
    section = key.rpartition(".")[0]
    inside = [name for name in known if name.startswith(f"{section}.")] if section else []
    if inside:
        return f"; the keys of {section} are {', '.join(inside)}"
    return f"; there is {', '.join(dict.fromkeys(name.partition('.')[0] for name in known))}"


_MODELS = ("wordpiece", "bpe", "unigram")  # of which data.tokenizer_model is one
_BAD = object()  # stands for a value with a problem: None is a value


def _name(group: str, text: str, known: list[str], problems: list[str]) -> str | None:
    if text in known:
        return text
    hint = nearest(text, known) or f"; choose one of {', '.join(known)}"
    hint = "; --multirun starts a job for each" if "," in text else hint
    problems.append(f"no {group} is named '{text}'{hint}")
    return None


def _value(key: str, text: str, kind: Any, problems: list[str]) -> Any:
    before = len(problems)
    value = _text(text, kind) if kind in (str, str | None) else _parsed(key, text, problems)
    if len(problems) == before and kind is not None:
        convert(kind, value, key, problems)
    return value if len(problems) == before else _BAD


def _text(text: str, kind: Any) -> str | None:
    """Text is taken as it was typed: paths hold commas, spaces, brackets and leading zeros."""
    if text == "null" and kind is not str:
        return None
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _parsed(key: str, text: str, problems: list[str]) -> Any:
    try:
        override = OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException:
        problems.append(f"cannot read the value of '{key}={text}': put it in quotes")
        return None
    if override.is_sweep_override():
        wanted = f"a list is written [{text}], and --multirun starts a job for each value"
        problems.append(f"{key} takes one value, not '{text}'; {wanted}")
        return None
    return override.value()
