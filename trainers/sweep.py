"""`came-train --multirun`: the product of swept values, one job for each, in a folder of its own.

    optimizer=came,adamw run.seed=range(0,2)  ->  runs/quickstart_sweep/optimizer=came,run.seed=0/
                                                  runs/quickstart_sweep/optimizer=came,run.seed=1/
                                                  ...
Names depend on a job's own words alone: the same command finds the same folders and goes on.
No torch: everything is checked before the first job starts.
"""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException

from launch.local import EXIT_CODES, STOPPED, Outcome
from trainers.compose import LEAVES, compose
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.typed import message, problems_in

FOLDER = "run.dir"
# How jobs are started is one for all: either they are shown, or queued, or run here.
_OF_ALL = ("launch", "launch.dry_run", "launch.submit")
SEVERAL_EXPERIMENTS = "runs/sweep"
LONGEST_NAME = 150  # bytes: a file name may have 255, and a report adds to it
_FUNCTION = re.compile(r"(choice|range|glob|interval|sort|shuffle)\(")
_PARTS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^,])+""")
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+-]+")


@dataclass(frozen=True)
class SweptJob:
    """One job of a sweep: what came-train would be told to run it alone."""

    name: str  # also that of its folder
    words: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """Jobs, in the order in which they run: the value typed last changes fastest."""

    folder: str
    jobs: tuple[SweptJob, ...]


def read_sweep(words: Sequence[str], flags: Collection[str] = ()) -> Sweep:
    """The jobs that the words of a command ask for, all of them checked.

    Args:
        flags: options of the command, one of which a word with dashes may have meant.

    Raises:
        ConfigError: with every problem of every job; what is wrong in some alone names them.
    """
    fixed = [word for word in words if _key(word) != FOLDER]
    given = [word for word in words if _key(word) == FOLDER]
    names, jobs = _names_of(fixed, given)
    problems: dict[str, list[str]] = {}
    configs = []
    for name, job in zip(names, jobs, strict=True):
        try:
            configs.append(compose([*job, *given], flags=flags))
        except ConfigError as error:
            for problem in problems_in(error):
                problems.setdefault(problem, []).append(name)
    if problems:
        raise ConfigError(message(list(_with_names(problems, len(jobs)))))
    folder = _folder([config.run.dir for config in configs], bool(given))
    return Sweep(
        folder,
        tuple(
            SweptJob(name, (*job, f"{FOLDER}={folder}/{name}"), _moved(config, f"{folder}/{name}"))
            for name, job, config in zip(names, jobs, configs, strict=True)
        ),
    )


def _names_of(fixed: list[str], given: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Of every job its name and its words, without a folder."""
    options = [_values(word) for word in fixed]
    swept = [i for i, values in enumerate(options) if values is not None]
    if any(_values(word) is not None for word in given):
        raise ConfigError(f"{FOLDER} is the folder of all jobs: one name, with commas in quotes")
    if not swept:
        raise ConfigError(
            "--multirun, but no key has several values: write optimizer.lr=1e-4,2e-4 or "
            "run.seed=range(0,3)"
        )
    if any(_key(fixed[i]) in _OF_ALL for i in swept):
        raise ConfigError(f"{', '.join(_OF_ALL)} are the same for all jobs of a sweep")
    keys = Counter(map(_key, fixed))
    twice = [_key(fixed[i]) for i in swept if keys[_key(fixed[i])] > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given more than once: which of its values would count?")
    repeated = [fixed[i] for i in swept if max(Counter(options[i]).values()) > 1]
    if repeated:
        raise ConfigError(f"'{repeated[0]}' has the same value twice: two jobs with one name")
    choices = [values or [word] for word, values in zip(fixed, options, strict=True)]
    jobs = list(product(*choices))
    return [_name([job[i] for i in swept]) for job in jobs], jobs


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+").strip()


def _values(word: str) -> list[str] | None:
    """The words that a word with several values stands for; None if it has one.

    What Hydra's grammar does not know, as a path with a bracket, is one value and judged later.
    """
    key, _, text = word.partition("=")
    if LEAVES.get(_key(word)) in (str, str | None) and not _FUNCTION.match(text):
        # Text is taken as it was typed, between commas that stand in no quotes.
        parts = _PARTS.findall(text)
        return [f"{key}={part}" for part in parts] if len(parts) > 1 else None
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return None
    if not override.is_sweep_override():
        return None
    if override.value_type in (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP):
        raise ConfigError(f"'{word}': write all values, as a,b or choice(a,b) or range(0,3)")
    values = [f"{_key(word)}={value}" for value in override.sweep_string_iterator()]
    if not values:
        raise ConfigError(f"'{word}' has no value")
    return values


def _name(swept: Iterable[str]) -> str:
    """A file name for the swept words of one job; where it cannot hold them, a hash tells apart."""
    text = ",".join(swept)
    name = _UNSAFE.sub("-", text.replace("'", "").replace('"', ""))
    if name == text and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{sha256(text.encode()).hexdigest()[:6]}"


def _folder(folders: list[str], is_given: bool) -> str:
    if is_given:
        return folders[0]
    return f"{folders[0]}_sweep" if len(set(folders)) == 1 else SEVERAL_EXPERIMENTS


def _moved(config: Config, folder: str) -> Config:
    return replace(config, run=replace(config.run, dir=folder))


def _with_names(problems: dict[str, list[str]], num_jobs: int) -> Iterator[str]:
    for problem, names in problems.items():
        everywhere = len(names) == num_jobs
        yield problem if everywhere else f"{problem} (in {'; '.join(names)})"


def titles(sweep: Sweep) -> Iterator[tuple[str, SweptJob]]:
    """Every job and the line that goes before what it prints."""
    for number, job in enumerate(sweep.jobs, start=1):
        yield f"# job {number} of {len(sweep.jobs)}: {job.name}", job


def run_sweep(
    sweep: Sweep, start: Callable[[SweptJob], Outcome], tell: Callable[[str], None]
) -> int:
    """Runs the jobs one after another; the exit code of the first that failed.

    One that fails does not stop the others; a request to stop, to us or to a job, does.
    """
    ended: dict[str, Outcome] = {}
    for title, job in titles(sweep):
        tell(title)
        ended[job.name] = outcome = start(job)
        if _is_stopped(outcome):
            tell("\n".join(_table(sweep, ended)) + "\nstopped; the same command goes on")
            return outcome.exit_code or EXIT_CODES[signal.SIGTERM]
    tell("\n".join(_table(sweep, ended)) + f"\ncompare them: came-report {sweep.folder}")
    return next((outcome.exit_code for outcome in ended.values() if outcome.exit_code), 0)


def _is_stopped(outcome: Outcome) -> bool:
    return outcome.exit_code in STOPPED or (outcome.rank is None and outcome.signum is not None)


def _table(sweep: Sweep, ended: dict[str, Outcome]) -> Iterator[str]:
    width = max(len(job.name) for job in sweep.jobs)
    yield f"{'job':<{width}}  {'outcome':<16}  held out"
    for job in sweep.jobs:
        line = f"{job.name:<{width}}  {_words(ended.get(job.name)):<16}  {_held_out(job)}"
        yield line.rstrip()


def _words(outcome: Outcome | None) -> str:
    if outcome is None:
        return "not started"
    if _is_stopped(outcome):
        return "stopped"
    return f"failed, code {outcome.exit_code}" if outcome.exit_code else "done"


def _held_out(job: SweptJob) -> str:
    """What the last evaluation has measured, as far as the job's folder knows."""
    from trainers.reports.series import GUESSED
    from trainers.run.metrics import FILE_NAME, read

    last: dict[str, float | None] = {}
    for row in read(Path(job.config.run.dir) / FILE_NAME):
        last |= row
    loss = last.get("eval/loss")
    right = next((last[name] for name in GUESSED if last.get(name) is not None), None)
    words = [f"loss {loss:.4f}"] if loss is not None else []
    return ", ".join(words + ([f"{right:.2%} guessed right"] if right is not None else []))
