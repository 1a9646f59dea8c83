"""What is kept of finished runs: all that a report reads, and no weights."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.reproduction import outcome

KEPT = ("config.yaml", "metrics.jsonl", "provenance.json", "fidelity.md", outcome.FILE_NAME)
LEDGER = "ledger.json"


def keep(out: Path, kept: Path) -> int:
    """Copy the small files of every finished run under `out` to `kept`; returns how many runs.

    Raises ValueError where the two are one folder, and for a file that is no JSON.
    """
    if kept.resolve() == out.resolve():
        raise ValueError(f"--keep {kept} is the folder of the runs, which would be stripped")
    folders = sorted(path.parent for path in out.glob(f"*/*/*/{outcome.FILE_NAME}"))
    for folder in folders:
        target = kept / folder.relative_to(out)
        target.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (folder / name).is_file():
                (target / name).write_text(_anonymous(folder / name), encoding="utf-8")
        _keep_sums(folder / LEDGER, target / LEDGER)
    return len(folders)


def _anonymous(file: Path) -> str:
    """The content without what tells of a machine and not of a result."""
    if file.name == outcome.FILE_NAME:
        return outcome.without_folders(file)
    home = str(Path.home())
    if file.name != "provenance.json":
        return file.read_text(encoding="utf-8").replace(home, "~")
    told = outcome.read_json(file, dict)
    for start in told.get("starts", []):
        for key in ("host", "platform"):
            start.pop(key, None)
    return json.dumps(told, indent=1).replace(home, "~") + "\n"


def _keep_sums(source: Path, target: Path) -> None:
    """The ledger's sums; its line for each parameter is the same in every run of a model."""
    if source.is_file():
        ledger = outcome.read_json(source, dict)
        target.write_text(json.dumps({**ledger, "params": []}) + "\n", encoding="utf-8")
