"""results.json, which every finished seed is added to, and the table made of it."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from trainers import durable
from trainers.errors import ConfigError, DataError, StorageError
from trainers.markdown import cell
from trainers.run.lock import take_lock

FILE_NAME = "results.json"
TABLE_NAME = "table.md"
LOCK_NAME = ".results.lock"  # not a run's, by which came-status would take the folder for one
# What a table tells of the settings.
_TOLD: dict[str, type | tuple[type, ...]] = {
    "task": str,
    "untrained": bool,
    "optimizer.name": str,
    "optimizer.lr": (int, float),
}


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make `folder` if it is new, and be the only one who writes results there.

    Each writes all seeds that it knows: what a second one had finished would be lost.
    Raises StorageError when it cannot be made, FolderInUseError if a live process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"out={folder} cannot be made: {error.strerror}") from error
    lock = take_lock(folder, "out", LOCK_NAME)
    try:
        yield
    finally:
        os.close(lock)


class Results:
    """The finished seeds of one folder, all with the same settings."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        baseline: Mapping[str, float],
        model: str,
    ) -> None:
        self.folder = folder
        self.told: dict[str, Any] = {
            "model": model,
            "settings": dict(settings),
            "baseline": dict(baseline),
            "seeds": {},
        }

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: Mapping[str, Any],
        baseline: Mapping[str, float],
        model: str,
    ) -> "Results":
        """Those of `folder`, which is `owned`; none if it is new.

        `baseline` are metrics without a model, by name; `model` is what the model goes by, which
        may be another name for the same weights.

        Raises ConfigError when seeds there had other settings, DataError when they cannot be read.
        """
        results = cls(folder, settings, baseline, model)
        if (folder / FILE_NAME).exists():
            found = read_results(folder)
            old, new = found["settings"], json.loads(json.dumps(results.told["settings"]))
            for key in sorted(old.keys() | new.keys()):
                if old.get(key) != new.get(key):
                    raise ConfigError(
                        f"out={folder} has results with {key}={old.get(key)}, and this is "
                        f"{new.get(key)}: name another folder with out=..."
                    )
            results.told = {"model": model, **found, "baseline": results.told["baseline"]}
            if results.told != found:  # of a version that had none
                results.write()
        return results

    def has(self, seed: int) -> bool:
        return str(seed) in self.told["seeds"]

    def add(self, seed: int, found: Mapping[str, Any]) -> None:
        """Write the results with those of `seed`. Raises StorageError."""
        self.told["seeds"][str(seed)] = dict(found)
        self.write()

    def write(self) -> None:
        """Write results and table. Raises StorageError."""
        try:
            durable.write_text(self.folder / FILE_NAME, json.dumps(self.told, indent=1) + "\n")
            durable.write_text(self.folder / TABLE_NAME, table([self.told]))
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be written: {error}") from error


def read_results(path: Path) -> dict[str, Any]:
    """The results of a folder, or of a file. Raises DataError."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if flaw := _flaw(found):
        raise DataError(f"{file} cannot be read: {flaw}; is it of came-finetune?")
    return dict(found)


def _flaw(found: Any) -> str | None:
    """Why no table can be made of it; None for what came-finetune writes."""
    parts = found if isinstance(found, dict) else {}
    settings, seeds = parts.get("settings"), parts.get("seeds")
    if not isinstance(settings, dict) or not isinstance(seeds, dict):
        return "it has no settings and seeds"
    if lacking := [key for key, kind in _TOLD.items() if not isinstance(settings.get(key), kind)]:
        return f"its settings tell no {', '.join(lacking)}"
    for seed, told in seeds.items():
        if not (isinstance(told, dict) and _are_numbers(told.get("metrics"))):
            return f"seed {seed} has no metrics that are numbers by name"
        first = next(iter(seeds))
        if told["metrics"].keys() != seeds[first]["metrics"].keys():
            return f"seed {seed} has other metrics than seed {first}"
    return None if _are_numbers(parts.get("baseline", {})) else "its baseline is no numbers by name"


def _are_numbers(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(v, int | float) for v in found.values())


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line for each metric of each of `results`, over their seeds."""
    head = ["task", "model", "weights", "optimizer", "lr", "metric"]
    head += ["n", "mean", "std", "min", "max", "baseline"]
    lines = [head, *(line for told in results for line in _lines(told))]
    widths = [max(3, *(len(line[at]) for line in lines)) for at in range(len(head))]
    left = head.index("n")

    def row(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if at < left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * w if at < left else "-" * max(w - 1, 2) + ":" for at, w in enumerate(widths)]
    return "\n".join([row(head), row(rule), *(row(line) for line in lines[1:])]) + "\n"


def _lines(told: Mapping[str, Any]) -> list[list[str]]:
    settings, seeds = told["settings"], told["seeds"].values()
    weights = "untrained" if settings["untrained"] else "pretrained"
    what = [settings["task"], cell(str(told.get("model", "-"))), weights]
    what += [settings["optimizer.name"], f"{settings['optimizer.lr']:g}"]
    found = []
    for name in next(iter(seeds))["metrics"] if seeds else ():
        values = [seed["metrics"][name] for seed in seeds]
        spread = stdev(values) if len(values) > 1 else None  # n - 1
        numbers = [f"{100 * v:.2f}" for v in (min(values), max(values))]
        shown = f"{100 * spread:.2f}" if spread is not None else "-"
        baseline = told.get("baseline", {}).get(name)
        numbers.append("-" if baseline is None else f"{100 * baseline:.2f}")
        found.append([*what, name, str(len(values)), f"{100 * mean(values):.2f}", shown, *numbers])
    return found
