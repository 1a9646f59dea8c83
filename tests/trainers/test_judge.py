"""`came-eval` refuses in words, and counts as the run did."""

import sys
from pathlib import Path

import pytest

from tests.trainers.finished_run import make_run
from trainers.errors import ConfigError, DataError
from trainers.judge import evaluate, main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), "t5")[0]


def test_a_model_that_knows_nothing_guesses_badly(run: Path) -> None:
    found = evaluate([f"run.dir={run}", "eval.samples=20"])
    assert found.keys() >= {"eval/loss", "eval/perplexity", "eval/span_accuracy"}
    assert found["eval/perplexity"] > 50 and found["eval/span_accuracy"] < 0.3


@pytest.mark.parametrize(
    ("words", "error", "answer"),
    [
        ((), ConfigError, "say came-eval run.dir=FOLDER"),
        (("run.dir=nowhere",), DataError, "is no run folder"),
        (("run.dir={run}", "eval.smaples=3"), ConfigError, "did you mean 'eval.samples'"),
        (("run.dir={run}", "model=bert_base"), ConfigError, "only single values"),
        (("run.dir={run}", "data.path=nowhere.txt"), DataError, "nowhere.txt"),
    ],
)
def test_what_is_refused_and_in_which_words(run, words, error, answer) -> None:
    with pytest.raises(error, match=answer):
        evaluate([word.format(run=run) for word in words])


def test_the_command_prints_names_and_numbers(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["came-eval", f"run.dir={run}", "eval.samples=4"])
    main()
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(lines["eval/perplexity"]) > 1
    monkeypatch.setattr(sys, "argv", ["came-eval", "run.dir=nowhere"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == DataError.exit_code
