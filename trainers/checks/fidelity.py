"""How near a run is to the one of the paper that has its name."""

from __future__ import annotations

from dataclasses import asdict

from trainers import fidelity
from trainers.checks.page import Check
from trainers.config import Config
from trainers.errors import ConfigError

TITLE = "Fidelity to the paper"


def check_fidelity(config: Config) -> Check:
    """Always green: it informs."""
    page = fidelity.markdown(config)
    if page is None:
        known = ", ".join(fidelity.names())
        told = f"There is no recipe for {config.experiment} to compare with; there are: {known}."
        return Check(TITLE, True, told)
    try:
        found = fidelity.compare(config) or []
    except ConfigError:  # the page tells it
        found = []
    text = page.split("\n", 1)[1].strip().replace("\n## ", "\n### ")
    return Check(TITLE, True, text, {"settings": [asdict(row) for row in found]})
