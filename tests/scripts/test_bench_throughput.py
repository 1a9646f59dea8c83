"""Two programs that train the same, and what is said of their times."""

import json
import os
import subprocess
import sys
from pathlib import Path

from scripts.bench_throughput import HF, OURS, document, speeds
from tests.trainers.data.corpus import write_text

REPOSITORY = Path(__file__).resolve().parents[2]


def record() -> dict:
    return {
        **{"num_params": 1000, "dtype": "float32", "batch": 4, "length": 16, "zero_stage": 1},
        **{"optimizer": "adamw", "world_size": 1, "peak": 1e4, "machine": {"device": "none"}},
        "sides": {
            OURS: {"seconds": [1.0, 2.0], "tokens": [40, 80], "flops": [1e3, 2e3]},
            HF: {"seconds": [4.0, 4.0], "tokens": [40, 80], "flops": [1e3, 2e3]},
        },
        "losses": {OURS: [3.0, 2.0], HF: [3.0, 2.5]},
    }


def test_what_is_said_of_a_run() -> None:
    assert speeds(record()["sides"][HF]) == [10.0, 20.0]
    text = document(record())
    assert "| came-train | 2 | 40 | 40 to 40 | 3.00 | 2.50 to 3.50 | 10.0% |" in text
    assert "differ by at most 5.0e-01" in text


def test_both_learn_the_same(tmp_path: Path) -> None:
    """One short run of both, in a process of its own: it joins a process group."""
    text = write_text(tmp_path / "text.txt", num_documents=300)
    words = (
        *("data=text", f"data.path={text}", f"data.cache_dir={tmp_path}", "data.vocab_size=300"),
        *("model.hidden=32", "model.heads=2", "model.layers=1", "model.intermediate=64"),
        *("objective.sequence_length=32", "batch.global_size=4", "runtime.threads=1"),
    )
    command = [sys.executable, "-m", "scripts.bench_throughput", "--rounds", "2", "--steps", "2"]
    environ = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "x.json"), *words],
        cwd=REPOSITORY,
        env=environ,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "x.json").read_text())
    assert len(found["losses"][HF]) == 8
    for one, other in zip(found["losses"][OURS], found["losses"][HF], strict=True):
        assert abs(one - other) < 1e-4
    assert len(set(found["losses"][OURS])) == 8  # it learns, and reads on
    assert all(len(side["seconds"]) == 2 for side in found["sides"].values())
