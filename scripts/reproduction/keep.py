"""What is kept of finished runs: all that a report reads, and no weights."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.reproduction.drive import OUTCOME

KEPT = ("config.yaml", "metrics.jsonl", "provenance.json", "fidelity.md", OUTCOME)
LEDGER = "ledger.json"


def keep(out: Path, kept: Path) -> int:
    """Copy the small files of every finished run under `out` to `kept`; returns how many runs."""
    outcomes = sorted(out.glob(f"*/*/*/{OUTCOME}"))
    for outcome in outcomes:
        target = kept / outcome.parent.relative_to(out)
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (outcome.parent / name).is_file():
                text = (outcome.parent / name).read_text(encoding="utf-8")
                (target / name).write_text(_anonymous(name, text), encoding="utf-8")
        _keep_sums(outcome.parent / LEDGER, target / LEDGER)
    return len(outcomes)


def _anonymous(name: str, text: str) -> str:
    """Without what tells of a machine and not of a result."""
    text = text.replace(str(Path.home()), "~")
    if name != "provenance.json":
        return text
    told = json.loads(text)
    for start in told.get("starts", []):
        for key in ("host", "platform"):
            start.pop(key, None)
    return json.dumps(told, indent=1) + "\n"


def _keep_sums(source: Path, target: Path) -> None:
    """The ledger's sums; its line for each parameter is the same in every run of a model."""
    if source.is_file():
        ledger = json.loads(source.read_text(encoding="utf-8"))
        target.write_text(json.dumps({**ledger, "params": []}) + "\n", encoding="utf-8")
