"""Run folders, found and read: settings, metrics, ledger, fidelity, where each came from."""

import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainers.errors import DataError
from trainers.redact import redact, redact_text
from trainers.regular import read_regular
from trainers.reports.series import Row
from trainers.run import metrics
from trainers.run.folder import LEDGER_FILE, PROVENANCE_FILE, SETTINGS_FILE, read_starts

FIDELITY_FILE = "fidelity.md"
# A number that is none ends a run's worth as a repetition.
_WATCHED = ("train/loss", "eval/loss")


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it; nothing in it is a secret, anything may be hostile text.

    `settings` has dotted keys, `starts` are those of provenance.json, oldest first.
    """

    name: str
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    starts: tuple[dict[str, Any], ...]
    ledger: dict[str, Any] | None
    fidelity: str | None

    @property
    def optimizer(self) -> str:
        return str(self.settings.get("optimizer.name", ""))

    @property
    def seed(self) -> Any:
        return self.settings.get("run.seed")

    @property
    def last_step(self) -> int:
        return max((row["step"] for row in self.rows), default=0)

    @property
    def steps(self) -> int:
        """How many it was to have; as many as it has, if the settings do not say."""
        steps = self.settings.get("train.steps")
        return steps if isinstance(steps, int) and steps > 0 else max(self.last_step, 1)

    @property
    def flaw(self) -> str | None:
        """Why it is no repetition that counts; None for a run that came to its end."""
        if not self.rows:
            return "no metrics yet"
        for name in _WATCHED:
            last = [row[name] for row in self.rows if name in row][-1:]
            if last == [None]:
                return f"{name} ended as no number"
        if self.last_step < self.steps:
            return f"stopped at step {self.last_step:,} of {self.steps:,}"
        return None


def has_results(folder: Path, files: Collection[str]) -> bool:
    """Whether a folder with these files is that of a run which has begun to train."""
    return metrics.FILE_NAME in files or {SETTINGS_FILE, PROVENANCE_FILE} <= set(files)


def _fail(error: OSError) -> None:
    if not isinstance(error, NotADirectoryError):  # a file among the paths holds no run
        raise DataError(f"{error.filename} cannot be searched for runs: {error.strerror}")


def find_runs(
    paths: Sequence[str | Path],
    is_run: Callable[[Path, Collection[str]], bool] = has_results,
    on_error: Callable[[OSError], None] = _fail,
) -> tuple[list[Path], list[Path]]:
    """The run folders at and below `paths`, each once; and those of `paths` that hold none.

    `is_run` is asked with a folder and the names of its files, `on_error` told of folders that
    cannot be listed.  Raises DataError for a path that does not exist.
    """
    missing = [str(path) for path in paths if not Path(path).exists()]
    if missing:
        raise DataError(f"there is no {', '.join(missing)}: name run folders, or folders of them")
    found: dict[Path, None] = {}
    empty = []
    for path in paths:
        below = list(_below(Path(path).resolve(), is_run, on_error))
        found |= dict.fromkeys(below)
        if not below:
            empty.append(Path(path))
    return list(found), empty


def _below(
    top: Path,
    is_run: Callable[[Path, Collection[str]], bool],
    on_error: Callable[[OSError], None],
) -> Iterator[Path]:
    """Links are followed, each folder is seen once; a run holds no other run."""
    seen = {top}
    for folder, inside, files in os.walk(top, followlinks=True, onerror=on_error):
        if is_run(Path(folder), files):
            inside.clear()
            yield Path(folder).resolve()
        real = {name: (Path(folder) / name).resolve() for name in sorted(inside)}
        inside[:] = [name for name, path in real.items() if path not in seen]
        seen |= set(real.values())


def names_of(folders: Sequence[Path]) -> list[str]:
    """What of their paths differs; nothing in it is a secret."""
    common = Path(os.path.commonpath([folder.parent for folder in folders])) if folders else None
    return [redact_text(str(folder.relative_to(common or folder))) for folder in folders]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in `folders`, named by what of their paths differs.

    Raises DataError, which names all that cannot be read.
    """
    runs, problems = [], []
    for folder, name in zip(folders, names_of(folders), strict=True):
        try:
            runs.append(_read(folder, name))
        except (OSError, ValueError, yaml.YAMLError) as error:
            problems.append(f"{folder}: {' '.join(str(error).split())}")
    if problems:
        raise DataError("\n  - ".join(["runs that cannot be read", *problems]))
    return runs


def _read(folder: Path, name: str) -> Run:
    settings = flat(yaml.safe_load(read_regular(folder / SETTINGS_FILE)))
    if not settings:
        raise ValueError(f"{SETTINGS_FILE} holds no settings")
    rows = _rows(folder / metrics.FILE_NAME)
    ledger = _text(folder / LEDGER_FILE)
    fidelity = _text(folder / FIDELITY_FILE)
    return Run(
        name=name,
        settings=redact(settings),
        rows=rows,
        starts=tuple(redact(read_starts(folder))),
        ledger=read_ledger(ledger) if ledger else None,
        fidelity=redact_text(fidelity) if fidelity else None,
    )


def _rows(path: Path) -> tuple[Row, ...]:
    rows = []
    for row in metrics.read(path):
        wrong = [
            name
            for name, value in row.items()
            if isinstance(value, bool) or not isinstance(value, int | float | None)
        ]
        if wrong:
            raise ValueError(f"{path.name} has {wrong[0]}={row[wrong[0]]!r}, which is no number")
        rows.append(row)
    if not rows and path.exists() and path.stat().st_size:
        raise ValueError(f"{path.name} has no line that can be read")
    return tuple(rows)


def read_ledger(text: str) -> dict[str, Any]:
    """As `came.Ledger.as_dict` wrote it, or its sums alone. Raises ValueError."""
    found = json.loads(text)
    try:
        sizes = [found["state_bytes"], found["num_params"], found["replicated_bytes"]]
        sizes += [row["state_bytes"] for row in found["params"]]
        told = [(row["name"], row["shape"], row["rule"]) for row in found["params"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{LEDGER_FILE} is no ledger: {error!r}") from error
    if not all(isinstance(size, int) for size in sizes) or not all(
        isinstance(shape, list) for _, shape, _ in told
    ):
        raise ValueError(f"{LEDGER_FILE} is no ledger: its sizes are no whole numbers")
    return dict(redact(found))


def _text(path: Path) -> str | None:
    return read_regular(path) if path.exists() else None


def flat(sections: Any) -> dict[str, Any]:
    """config.yaml with dotted keys; empty if there is nothing in it."""
    found: dict[str, Any] = {}
    for name, section in sections.items() if isinstance(sections, dict) else ():
        inner = section if isinstance(section, dict) else {}
        found |= {f"{name}.{key}": value for key, value in inner.items()} or {name: section}
    return found
