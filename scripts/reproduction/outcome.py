"""What is told beside a run's metrics: the words it was given, and its exit code when it is over.

A plan that is edited, or tried with other words, must not count such a run as one of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from trainers import durable
from trainers.redact import redact_text

Kind = TypeVar("Kind", list, dict)  # type: ignore[type-arg]

FILE_NAME = "outcome.json"
BEGUN = "words.json"

# How fast a run is, and what it writes: two commands may differ in it and have one result.
_APART = (
    *("run.dir", "launch.", "checkpoint.", "zero.", "train.log_every"),
    *("runtime.threads", "runtime.micro_batch", "batch.micro_size"),
)
_FOLDERS = re.compile(r"(?<![\w.~])~?/(?:[^/,\]}'\"]+/)*")  # of a path that begins at a root


def begin(folder: Path, words: Sequence[str]) -> None:
    """Say which words the run in `folder` is given.

    Raises ValueError where it was begun with others: it would go on from their checkpoint.
    """
    file = folder / BEGUN
    if file.is_file():
        begun = read_json(file, list)
        _require_same(folder, begun, words)
    else:
        durable.write_text(file, json.dumps(list(_kept(words))) + "\n")


def write(folder: Path, exit_code: int, words: Iterable[str]) -> None:
    """Say that the run in `folder` is over."""
    told = {"exit_code": exit_code, "words": list(_kept(words))}
    durable.write_text(folder / FILE_NAME, json.dumps(told) + "\n")


def read(folder: Path, words: Sequence[str]) -> int:
    """The exit code of the run in `folder`.

    Raises ValueError where it was given other words than `words`. Older runs do not tell theirs.
    """
    told = read_json(folder / FILE_NAME, dict)
    if "words" in told:
        _require_same(folder, told["words"], words)
    if type(told.get("exit_code")) is not int:
        raise ValueError(
            f"{folder / FILE_NAME} has no exit code: remove it, and the run is done again"
        )
    return int(told["exit_code"])


def read_json(file: Path, kind: type[Kind]) -> Kind:
    """The content of a file of a run. Raises ValueError, with the file, where it is broken."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{file} holds a {type(found).__name__}, not a {kind.__name__}")
    return found


def without_folders(file: Path) -> str:
    """The text of an outcome file in which a path is its last part alone. Raises ValueError."""
    told = read_json(file, dict)
    if "words" in told:
        told["words"] = [_bare(word) for word in told["words"]]
    return json.dumps(told) + "\n"


def _require_same(folder: Path, old: Iterable[str], new: Iterable[str]) -> None:
    was, is_now = _by_key(old), _by_key(_kept(new))
    keys = [
        key
        for key in dict.fromkeys((*was, *is_now))
        # What was kept for others has the last parts of paths alone.
        if was.get(key) not in (is_now.get(key), _bare(is_now.get(key, "")))
    ]
    if keys:
        had, has = (
            " ".join(found.get(key, f"no {key}") for key in keys) for found in (was, is_now)
        )
        raise ValueError(
            f"{folder} was run with {had}, and the plan and words given now say {has}: give the "
            "words of then, name another folder with --out, or remove this one"
        )


def _kept(words: Iterable[str]) -> Iterator[str]:
    return (redact_text(word) for word in words if not word.startswith("run.dir="))


def _by_key(words: Iterable[str]) -> dict[str, str]:
    """Of several words for one key the last, which is the one that counts."""
    found = {word.partition("=")[0]: word for word in words}
    return {key: word for key, word in found.items() if not key.startswith(_APART)}


def _bare(word: str) -> str:
    return _FOLDERS.sub("", word)
