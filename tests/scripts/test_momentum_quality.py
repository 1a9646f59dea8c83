import json
import math

import numpy as np
import pytest

from scripts import momentum_quality
from tests.trainers.data.corpus import write_text

TINY = (
    *("model.layers=1", "model.hidden=16", "model.heads=1", "model.intermediate=16"),
    *("train.steps=2", "batch.global_size=4", "eval.samples=8"),
    *("data.vocab_size=300", "data.heldout_fraction=0.2"),
)


@pytest.fixture
def words(tmp_path):
    text = write_text(tmp_path / "text.txt", num_documents=300)
    return (*TINY, "data=text", f"data.path={text}", f"data.cache_dir={tmp_path / 'cache'}")


def line(name, seed, loss):
    return {"model": "bert", "format": name, "seed": seed, "loss": loss}


def rows_of(*others):
    """The summary of formats, given as differences to float32 of seeds 0, 1, ..."""
    runs = [line("float32", seed, 5.0 + seed) for seed in range(5)]
    for name, differences in others:
        runs += [line(name, seed, 5.0 + seed + d) for seed, d in enumerate(differences)]
    return {row["format"]: row for row in momentum_quality.summary(runs)}


def test_formats_are_compared_seed_by_seed():
    row = rows_of(("int8", [0.1, 0.2, 0.3]))["int8"]
    assert row["runs"] == 3
    assert row["mean"] == pytest.approx(6.2)  # next to a mean of 7 over the five float32 runs
    assert row["difference"] == pytest.approx(0.2)
    assert row["standard_error"] == pytest.approx(0.1 / math.sqrt(3))


@pytest.mark.parametrize(
    "differences, passes",
    [
        ([0.019] * 5, True),
        ([0.021] * 5, False),
        ([-0.5] * 5, True),
        ([0.0, 0.0, 0.0, 0.0, 0.3], True),  # a mean of 0.06 with a standard error of 0.06
        ([0.1, 0.11, 0.1, 0.09, 0.1], False),
        ([math.nan] * 5, False),
        ([0.5], False),  # one run has no standard error, so nothing excuses it
    ],
)
def test_a_format_passes_within_a_fiftieth_of_a_nat_or_two_standard_errors(differences, passes):
    row = rows_of(("int8", differences))["int8"]
    assert row["passes"] is passes
    assert ("| passes |" if passes else "| fails |") in momentum_quality.table([row])


def test_a_seed_gives_every_format_the_same_start(words):
    losses = {}
    for model in momentum_quality.MODELS:
        for name in momentum_quality.FORMATS:
            job = momentum_quality.Job(model, name, 3, (*words, "optimizer.lr=1e-9"), "eager")
            losses[model, name] = momentum_quality.run(job)["loss"]
    for model in momentum_quality.MODELS:
        mine = [losses[model, name] for name in momentum_quality.FORMATS]
        # Steps of no length: what is left is the loss of the first weights.
        assert np.ptp(mine) < 1e-6 * mine[0]


def test_finished_runs_are_not_done_again(words, tmp_path, capsys):
    file, out = tmp_path / "runs.jsonl", tmp_path / "out.json"
    jobs = [momentum_quality.Job("gpt2", name, 0, words, "eager") for name in ("float32", "int8")]
    first = json.dumps({**jobs[0].key(), "loss": 7.5}) + "\n"  # no run gives just that
    file.write_text(first)
    options = ["--seeds", "1", "--models", "gpt2", "--kernel", "eager", "--runs", str(file)]
    momentum_quality.main([*options, "--json", str(out), *words, "--formats", "float32", "int8"])
    assert file.read_text().startswith(first)
    lines = [json.loads(text) for text in file.read_text().splitlines()]
    written = json.loads(out.read_text())
    assert [{**run, "setting": written["settings"]["gpt2"]} for run in written["runs"]] == lines
    assert [entry["format"] for entry in lines] == ["float32", "int8"]
    assert lines[1].items() >= {**jobs[1].key(), "kernel": "eager"}.items()
    assert math.isfinite(lines[1]["loss"])
    assert "| gpt2 | float32 | 1 | 7.5000 |" in capsys.readouterr().out


def test_other_settings_are_other_runs(words):
    job = momentum_quality.Job("bert", "int8", 0, words)
    longer = momentum_quality.Job("bert", "int8", 0, (*words, "train.steps=3"))
    assert job.key() == momentum_quality.Job("bert", "int8", 0, words, "eager").key()
    assert job.key() != longer.key()
