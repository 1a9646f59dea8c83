"""Whether the text of a run is there, and whether it has been prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from trainers.checks.page import Check, bullets, checked, size
from trainers.config import Config
from trainers.data.needs import needs_of
from trainers.data.prepare import Prepared, find
from trainers.data.splits import open_phases
from trainers.data.statistics import describe, too_short
from trainers.errors import DataError
from trainers.phases import plan, shortest_length
from trainers.validate import missing_text

TITLE = "Data"
_MANY = 100  # passes over the text


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
    return Check(TITLE, True, bullets(lines), {"prepared": False, "text_bytes": num_bytes})


def passes(config: Config, num_samples: Sequence[int]) -> float:
    """How many times the steps of a run read its text; `num_samples` are those of each phase."""
    return sum(
        (stretch.last - stretch.first + 1) * stretch.size / num_samples[stretch.phase]
        for stretch in plan(config).stretches
    )


def _ready(prepared: Prepared, times: float, warning: str | None) -> Check:
    lines = [f"prepared in {prepared.folder}", *describe(prepared.statistics)[:4]]
    lines.append(f"the steps read it {times:,.1f} times")
    if times > _MANY:
        lines[-1] += (
            f": WARNING, beyond {_MANY} times a model learns it by heart; add text, or set "
            "smaller train.steps or batch.global_size"
        )
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
