"""Run folders as came-train leaves them, in milliseconds."""

import json
import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from trainers.compose import compose


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text)


@cache
def settings(optimizer: str, experiment: str) -> str:
    config = asdict(compose([f"experiment={experiment}", f"optimizer={optimizer}"], 2))
    return json.dumps(config)


def write_run(
    folder: Path,
    optimizer: str = "came",
    *,
    seed: int = 0,
    steps: int = 40,
    stopped: int | None = None,
    final: float | None = 5.0,
    experiment: str = "quickstart",
    task: str = "mlm",
    **changes: Any,
) -> Path:
    """A run whose held-out loss ends at `final` (None: as no number), measured every 10 steps."""
    config = json.loads(settings(optimizer, experiment))
    config["run"] |= {"seed": seed, "dir": str(folder)}
    config["train"]["steps"] = steps
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    rows: list[dict[str, Any]] = []
    for step in range(10, (stopped or steps) + 1, 10):
        loss = None if final is None else final + math.log(steps / step)
        row = {"step": step, "train/loss": loss, "train/seconds": 0.25 + seed}
        row |= {"eval/loss": loss, f"eval/{task}_accuracy": step / steps / (10 + seed)}
        rows.append(row | {"eval/perplexity": loss and math.exp(loss)})
    write_metrics(folder, rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    start = {"command": f"came-train optimizer={optimizer}", "device": "CPU", "commit": "abcdef12"}
    start |= {"versions": {"torch": "2.13.0"}, "world_size": 2, "started": "2026-01-02T03:04:05"}
    (folder / "provenance.json").write_text(json.dumps({"starts": [start]}))
    params = [{"name": "w", "shape": [30, 20], "rule": "factored", "state_bytes": 4800}]
    ledger = {"num_params": 600, "state_bytes": 4800, "replicated_bytes": 400, "params": params}
    (folder / "ledger.json").write_text(json.dumps(ledger))
    return folder
