"""The parity gate as a check: whether two ranks learn what one learns."""

from __future__ import annotations

import os
from dataclasses import asdict

from trainers.checks.page import Check, checked
from trainers.checks.parity import Difference, check_parity
from trainers.config import Config
from trainers.errors import ParityError

TITLE = "Sharded as unsharded"


def check_sharded(config: Config) -> Check:
    """Red if two ranks do not learn what one learns, and where they cannot train."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    return checked(TITLE, lambda: _look(config))


def _look(config: Config) -> Check:
    found = check_parity(config)
    lines = [f"Five steps of {found.what}; made small, on two processes and on one:", ""]
    for kind, words in (("loss", "losses"), ("param", "parameters"), ("state", "optimizer state")):
        if worst := found.worst(kind):
            lines.append(
                f"* {words}: at most {worst.value:.1e} apart, {worst.name} after step "
                f"{worst.step}; rounding explains {worst.allowed:.1e}"
            )
    if wrong := found.first_wrong:
        lines += ["", _refusal(wrong)]
    details = {
        "what": found.what,
        "differences": [asdict(d) | {"fits": d.fits} for d in found.differences],
    }
    return Check(TITLE, wrong is None, "\n".join(lines), details, ParityError.exit_code)


def _refusal(wrong: Difference) -> str:
    return (
        f"{wrong.name} differs by {wrong.value:.1e} after step {wrong.step}, where rounding "
        f"explains {wrong.allowed:.1e}: on several processes this would be another optimizer. Do "
        "not train with it; try another zero.stage, and tell us the command."
    )
