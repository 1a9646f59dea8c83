"""How near a run is to the one of the paper that has its name."""

from __future__ import annotations

from dataclasses import asdict

from trainers import fidelity
from trainers.checks.page import Check
from trainers.config import Config

TITLE = "Fidelity to the paper"


def check_fidelity(config: Config) -> Check:
    """Always green: it informs."""
    found = fidelity.compare(config)
    if found is None:
        known = ", ".join(fidelity.names())
        return Check(TITLE, True, f"The paper has no {config.experiment}; it has {known}.")
    text = str(fidelity.markdown(config)).split("\n", 1)[1].strip().replace("\n## ", "\n### ")
    return Check(TITLE, True, text, {"settings": [asdict(row) for row in found]})
