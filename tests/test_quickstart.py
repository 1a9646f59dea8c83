"""The quickstart learns: a third of it is enough to leave the commonest word far behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_quickstart_learns_from_documentation(tmp_path: Path) -> None:
    words = ("experiment=quickstart", "train.steps=500", f"data.cache_dir={tmp_path}/cache")
    done = subprocess.run(
        [sys.executable, "-m", "trainers.pretrain", *words, f"run.dir={tmp_path}/run"],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 500
    accuracy, commonest = last["eval/mlm_accuracy"], last["eval/commonest_token_accuracy"]
    assert accuracy >= 2.5 * commonest, f"{accuracy:.1%} against {commonest:.1%}"
    assert 0.03 < commonest < 0.15  # English, not one repeated word
