"""A causal language model learns the same however it is sharded, and is judged alike afterwards."""

import json
from pathlib import Path

import pytest

from tests.trainers.run.test_loop import corpus, losses, train  # noqa: F401  corpus is a fixture
from trainers.errors import ConfigError
from trainers.export import export
from trainers.judge import evaluate

CAUSAL = (
    *("experiment=quickstart_gpt2", "train.steps=6"),
    *("eval.samples=30", "data.vocab_size=400", "objective.max_predictions=null"),
)
WAYS = {
    "alone": ("launch.processes=1", "batch.micro_size=24"),
    "zero1": ("launch.processes=2", "zero.stage=1", "batch.micro_size=3"),  # 4 accumulations
    "zero3": ("launch.processes=2", "zero.stage=3", "batch.micro_size=6"),
}


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("runs")
    for name, words in WAYS.items():
        train(corpus, folder / name, *CAUSAL, *words)
    return folder


def metrics(run: Path) -> dict[str, float]:
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in line.items() if name.startswith("eval/")}


def test_losses_do_not_depend_on_how_it_is_sharded(runs: Path) -> None:
    wanted, judged = losses(runs / "alone"), metrics(runs / "alone")
    assert list(wanted) == list(range(1, 7)) and wanted[6] < wanted[1] - 0.1
    for name in WAYS:
        assert losses(runs / name) == pytest.approx(wanted, abs=1e-4), name
        assert metrics(runs / name) == pytest.approx(judged, rel=2e-3), name
        assert metrics(runs / name)["eval/loss"] == pytest.approx(judged["eval/loss"], abs=1e-4)


def test_a_finished_run_is_judged_as_it_was(runs: Path, tmp_path: Path) -> None:
    """From a checkpoint of two ranks; what was exported of it knows no place of the text."""
    assert evaluate([f"run.dir={runs / 'zero3'}"]) == pytest.approx(metrics(runs / "zero3"), 1e-5)
    export(runs / "zero3", tmp_path / "exported")
    with pytest.raises(ConfigError, match="exported, which does not tell where its text lies"):
        evaluate([f"run.dir={tmp_path / 'exported'}"])


def test_what_is_exported_is_judged_as_the_run(runs: Path, tmp_path: Path) -> None:
    export(runs / "zero3", tmp_path / "exported")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The old house of the river {n}." for n in "abcdefgh" * 9))
    found = [
        evaluate([f"run.dir={place}", f"data.path={text}"])
        for place in (runs / "zero3", tmp_path / "exported")
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_it_is_judged_by_any_text(runs: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The old house of the river {n}." for n in "abcdefgh" * 9))
    words = [f"run.dir={runs / 'alone'}", f"data.path={text}"]
    whole = evaluate(words)
    assert whole["eval/loss"] != metrics(runs / "alone")["eval/loss"]
    # Blocks of 48 tokens of all documents: a part of them is less.
    assert evaluate([*words, "eval.samples=1"])["eval/loss"] != whole["eval/loss"]
