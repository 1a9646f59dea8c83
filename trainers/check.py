"""`came-check`: what a run would be, before it costs anything.

    came-check experiment=bert_large_32k          the words of came-train
    came-check experiment=bert_large_32k --json   for a machine
    came-check experiment=quickstart --no-parity  how near it is to the paper, and no more

Fidelity: each setting beside what the paper publishes. It stops nobody: a deviation is no mistake.
Parity: five steps of the same configuration, made small, on two processes and on one; where they
differ by more than rounding, the exit code is 10 and the first tensor that differs is named.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainers import fidelity
from trainers.compose import compose
from trainers.config import Config
from trainers.errors import ParityError
from trainers.failures import report


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    title: str
    is_green: bool
    text: str  # Markdown, without the title
    details: dict[str, Any] = field(default_factory=dict)  # for --json
    exit_code: int = 0  # if it is red


def check_fidelity(config: Config) -> Check:
    """Always green: it informs."""
    found = fidelity.compare(config)
    title = "Fidelity to the paper"
    if found is None:
        known = ", ".join(fidelity.names())
        return Check(title, True, f"The paper has no {config.experiment}; it has {known}.")
    text = str(fidelity.markdown(config)).split("\n", 1)[1].strip().replace("\n## ", "\n### ")
    return Check(title, True, text, {"settings": [asdict(row) for row in found]})


def check_parity(config: Config) -> Check:
    """Red if two ranks do not learn what one learns. Raises RunError if they cannot train."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from trainers.checks import parity  # torch: seconds

    found = parity.check_parity(config)
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
    text = "\n".join(lines)
    return Check("Sharded as unsharded", wrong is None, text, details, ParityError.exit_code)


def _refusal(wrong: Any) -> str:
    return (
        f"{wrong.name} differs by {wrong.value:.1e} after step {wrong.step}, where rounding "
        f"explains {wrong.allowed:.1e}: on several processes this would be another optimizer. Do "
        "not train with it; try another zero.stage, and tell us the command."
    )


def checks_of(words: Sequence[str]) -> list[Callable[[Config], Check]]:
    """What is looked at, in order."""
    return [check_fidelity, *([] if "--no-parity" in words else [check_parity])]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `came-check`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    try:
        config = compose([w for w in words if w not in _OPTIONS], needs_text=False)
        found = []
        for check in checks_of(words):
            found.append(check(config))
            if "--json" not in words:
                print(_page(found[-1]), flush=True)
    except Exception as error:
        return report(error, None, verbose=os.environ.get("CAME_TRACEBACK") == "1")
    if "--json" in words:
        print(json.dumps({"experiment": config.experiment, "checks": [asdict(c) for c in found]}))
    return next((check.exit_code for check in found if not check.is_green), 0)


_OPTIONS = ("--json", "--no-parity")


def _page(check: Check) -> str:
    return f"## {check.title}: {'OK' if check.is_green else 'REFUSED'}\n\n{check.text}\n"


if __name__ == "__main__":
    sys.exit(main())
