"""Whether the text of a run is there, and whether it has been prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from trainers.checks.page import Check, bullets, checked, size
from trainers.config import Config, DataConfig
from trainers.data.files import form_of, text_files
from trainers.data.needs import needs_of
from trainers.data.prepare import Prepared, find
from trainers.data.splits import open_phases
from trainers.data.statistics import describe, too_short
from trainers.errors import DataError
from trainers.phases import phase_configs, plan, shortest_length
from trainers.validate import missing_text

TITLE = "Data"
_MANY = 100  # passes over the text
_TOKEN_BYTES = 4  # of English, for a vocabulary of some 30,000


def check_text(config: Config, words: Sequence[str]) -> Check:
    """Red if there is no text, or too little of it.

    Args:
        words: of the command, to tell how the same data is prepared.
    """
    return checked(TITLE, lambda: _look(config, words))


def _look(config: Config, words: Sequence[str]) -> Check:
    if missing := missing_text(config.data):
        raise DataError(missing)
    needs = needs_of(config.objective, shortest_length(config))
    source, prepared = find(config.data, needs)
    if prepared is not None:
        phases = open_phases(config)  # which refuses too little text for a batch
        times = passes(config, [data.train.num_samples for data in phases])
        return _ready(prepared, times, too_short(prepared.statistics, needs.fills))
    parts = source.parts()  # where it is missing, or the hub does not answer, this says so
    if not parts:
        raise DataError(f"{source.name} holds no text")
    num_bytes = sum(part.num_bytes for part in parts)
    command = " ".join(["came-prepare", *words])
    lines = [
        f"{source.name}: can be read" + (f", about {size(num_bytes)}" if num_bytes else ""),
        f"not prepared yet: came-train does that first, or ahead of it: {command}",
    ]
    details = {"prepared": False, "text_bytes": num_bytes, "estimated_passes": None}
    if known := known_bytes(config.data):
        lengths = [inside.objective.sequence_length for inside in phase_configs(config)]
        times = passes(config, [known / _TOKEN_BYTES / length for length in lengths])
        about = f"{times:,.{0 if times >= 10 else 1}f}"
        told = f"the steps make about {about} passes over it, at four bytes a token"
        lines.append(told + _warning(times))
        details["estimated_passes"] = times
    return Check(TITLE, True, bullets(lines), details)


def known_bytes(data: DataConfig) -> int | None:
    """How long the text is; None where that is not known before it is read.

    That is the hub's, packed files, and a mix by weights, which takes a part of its sources.
    """
    paths = [data.path] if data.path else [one.path for one in data.sources if not one.weight]
    if data.packages or not paths or len(paths) < len(data.sources) or not all(paths):
        return None
    files = [file for path in paths for file in text_files(str(path))]
    if any(file.suffix in (".gz", ".zst") or form_of(file) == "table" for file in files):
        return None
    return sum(file.stat().st_size for file in files)


def passes(config: Config, num_samples: Sequence[float]) -> float:
    """How many times the steps of a run read its text; `num_samples` are those of each phase."""
    return sum(
        (stretch.last - stretch.first + 1) * stretch.size / num_samples[stretch.phase]
        for stretch in plan(config).stretches
    )


def _ready(prepared: Prepared, times: float, warning: str | None) -> Check:
    lines = [f"prepared in {prepared.folder}", *describe(prepared.statistics)[:4]]
    lines.append(f"the steps read it {times:,.1f} times{_warning(times)}")
    lines += [warning] if warning else []
    statistics = asdict(prepared.statistics)
    details = {
        "prepared": True,
        "folder": str(prepared.folder),
        "fingerprint": prepared.fingerprint,
        "passes": times,
        "statistics": statistics,
    }
    return Check(TITLE, True, bullets([" ".join(line.split()) for line in lines]), details)


def _warning(times: float) -> str:
    """What to add for so many passes over the text; nothing where they are few."""
    if times <= _MANY:
        return ""
    return (
        f": WARNING, beyond {_MANY} times a model learns it by heart; add text, or set "
        "smaller train.steps or batch.global_size"
    )
