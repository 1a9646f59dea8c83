"""Whether the text of a run is there, and whether it has been prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from trainers.checks.page import Check, bullets, checked, size
from trainers.config import Config
from trainers.data.needs import needs_of
from trainers.data.prepare import Prepared, find
from trainers.data.splits import open_phases
from trainers.data.statistics import describe
from trainers.errors import DataError
from trainers.phases import shortest_length
from trainers.validate import missing_text

TITLE = "Data"


def check_text(config: Config, words: Sequence[str]) -> Check:
    """Red if there is no text, or too little of it.

    Args:
        words: of the command, to tell how the same data is prepared.
    """
    return checked(TITLE, lambda: _look(config, words))


def _look(config: Config, words: Sequence[str]) -> Check:
    if missing := missing_text(config.data):
        raise DataError(missing)
    source, prepared = find(config.data, needs_of(config.objective, shortest_length(config)))
    if prepared is not None:
        open_phases(config)  # which refuses too little text for a batch
        return _ready(prepared)
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


def _ready(prepared: Prepared) -> Check:
    lines = [f"prepared in {prepared.folder}", *describe(prepared.statistics)[:4]]
    statistics = asdict(prepared.statistics)
    details = {
        "prepared": True,
        "folder": str(prepared.folder),
        "fingerprint": prepared.fingerprint,
        "statistics": statistics,
    }
    return Check(TITLE, True, bullets([" ".join(line.split()) for line in lines]), details)
