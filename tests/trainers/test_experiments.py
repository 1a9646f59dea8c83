"""Every recipe runs: its model, data, objective and optimizer fit each other for one step."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from trainers.compose import choices

REPOSITORY = Path(__file__).resolve().parents[2]


def test_every_experiment_trains_one_step(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.trainers.one_step", str(tmp_path)],
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    found = [json.loads(line.removeprefix("RESULT ")) for line in lines]
    assert [result["experiment"] for result in found] == choices()["experiment"], done.stderr
    for result in found:
        # No worse than a guess among all 400 entries of the vocabulary, and a coin for a pair.
        assert 1 < result["train/loss"] < math.log(400) + math.log(2) + 0.3, result
        assert 1 < result["eval/loss"] < math.log(400) + math.log(2) + 0.3, result
        assert result["eval/perplexity"] > 1
    by_words = {r["experiment"]: r["eval/word_perplexity"] for r in found if "eval/lm_loss" in r}
    assert {"quickstart_gpt2", "quickstart_llama"} <= by_words.keys()
    assert all(value > 1 for value in by_words.values())
