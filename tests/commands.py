"""The commands that pages show, and how they are run: as a reader would, with this environment."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

# The same run in seconds: fewer steps, less text.
SHORT = ("train.steps=2", "data=text", "data.vocab_size=300", "eval.samples=16")


def blocks(page: str, language: str) -> list[str]:
    """What stands between ```language and ``` in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The words of every line of every bash block, comments apart."""
    return [shlex.split(line) for block in blocks(page, "bash") for line in _lines(block)]


def _lines(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        if (command := line.split("  #")[0].strip()) and not command.startswith("#"):
            yield command


def two_jobs(words: list[str]) -> list[str]:
    """Of a sweep two values of the last key that has several, and one of the others."""
    swept = [word for word in words if "," in word and "[" not in word]
    for number, word in enumerate(reversed(swept)):
        values = word.split(",")
        words = [",".join(values[: 1 if number else 2]) if w == word else w for w in words]
    return words


def environment(**more: str) -> dict[str, str]:
    """What a command is started in: the programs of this environment come first in the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # For programs that were not installed from this checkout.
    found = f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return os.environ | {"PATH": path, "PYTHONPATH": found} | more


def run_here(
    command: Sequence[str],
    folder: Path = REPOSITORY,
    environ: Mapping[str, str] | None = None,
    seconds: float = 200,
) -> str:
    """Runs a command to its good end in a folder; what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=dict(environ or environment()),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, (
        f"{shlex.join(command)} ended with {done.returncode}\n{done.stdout}"
    )
    return done.stdout
