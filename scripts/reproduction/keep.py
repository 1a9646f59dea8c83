"""What is kept of finished runs: all that a report reads, and no weights."""

from __future__ import annotations

import json
import shutil
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
                shutil.copyfile(outcome.parent / name, target / name)
        _keep_sums(outcome.parent / LEDGER, target / LEDGER)
    return len(outcomes)


def _keep_sums(source: Path, target: Path) -> None:
    """The ledger's sums; its line for each parameter is the same in every run of a model."""
    if source.is_file():
        ledger = json.loads(source.read_text(encoding="utf-8"))
        target.write_text(json.dumps({**ledger, "params": []}) + "\n", encoding="utf-8")
