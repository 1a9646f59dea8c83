"""Words that begin with two dashes: which each command knows, and what to say of another one."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from trainers.errors import ConfigError
from trainers.typed import message, nearest

HELP = ("--help",)  # and -h

# Of the commands that take settings. Those that take folders have theirs in their `Parser`.
FLAGS: dict[str, tuple[str, ...]] = {
    "came-train": ("--multirun", "--choices", "--keys", "--completion", "--traceback", *HELP),
    "came-check": ("--environment", "--json", "--no-parity", *HELP),
    "came-plan": ("--device", "--json", "--mfu", *HELP),
    "came-prepare": ("--json", "--traceback", *HELP),
    "came-finetune": ("--json", "--table", "--untrained", *HELP),
    "came-eval": ("--json", *HELP),
}


def unknown_flag(word: str, flags: Collection[str], keys: Collection[str] = ()) -> str:
    """A sentence about a word with dashes that is none of `flags`, nor of `keys` without them."""
    name = word.partition("=")[0]
    bare = name.lstrip("-")
    is_key = bare in keys or any(key.endswith(f".{bare}") for key in keys)  # `--steps` of others
    if not is_key and (hint := nearest(name, flags)):
        return f"unknown option '{name}'{hint}"
    if hint := nearest(bare, keys):
        return f"unknown key '{name}'{hint}"
    return f"unknown option '{name}'; there is {', '.join(sorted(flags))}"


class Parser(argparse.ArgumentParser):
    """An argparse whose refusals are ConfigErrors that name what is nearest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.flags: set[str] = set()
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(*args, allow_abbrev=False, formatter_class=formatter, **kwargs)

    def add_argument(self, *names: Any, **kwargs: Any) -> Any:
        self.flags |= {name for name in names if name.startswith("-")}
        return super().add_argument(*names, **kwargs)

    def parse_args(self, words: Sequence[str], namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does; options that are not known are told first, all of them.

        Raises ConfigError.
        """
        given = [word for word in words if word.startswith("-")]
        wrong = [word for word in given if word.partition("=")[0] not in self.flags]
        if wrong:
            raise ConfigError(message([unknown_flag(word, self.flags) for word in wrong]))
        return super().parse_args(words, namespace)

    def error(self, text: str) -> NoReturn:
        """What argparse says, with the nearest choice."""
        hint = ""
        if found := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", text):
            hint = nearest(found[1], re.findall(r"[\w-]+", found[2]))
        raise ConfigError(f"{text}{hint}; `{self.prog} --help` has examples")
