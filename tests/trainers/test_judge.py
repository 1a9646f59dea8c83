"""`came-eval` refuses in words, and counts as the run did."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.trainers.data.corpus import write_text
from tests.trainers.finished_run import RECIPES, SIZES, make_run
from trainers.compose import compose
from trainers.data.splits import open_phases
from trainers.errors import ConfigError, DataError
from trainers.judge import evaluate, main
from trainers.phases import phase_configs
from trainers.run.distributed import World
from trainers.run.evaluate import Evaluator


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


def change(run: Path, **sections: dict[str, Any]) -> None:
    """Write other settings into the folder of a run."""
    path = run / "config.yaml"
    saved = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        saved[name] |= values
    path.write_text(yaml.safe_dump(saved))


def test_a_run_of_phases_that_grew_is_judged_as_it_was_at_its_end(tmp_path: Path) -> None:
    run, module, _ = make_run(tmp_path, "bert")
    phases = ({"share": 0.5, "sequence_length": 16}, {"share": 0.5, "sequence_length": 24})
    change(
        run,
        train={"phases": [{**phase, "micro_size": 4} for phase in phases]},
        batch={"ramp_from": 8, "ramp_fraction": 0.2},
        runtime={"micro_batch": "auto"},
    )
    saved = yaml.safe_load((run / "config.yaml").read_text())
    told = [f"data.{key}={saved['data'][key]}" for key in ("path", "cache_dir")]
    words = [*RECIPES["bert"], *SIZES, *told, f"train.phases={list(phases)}", "batch.micro_size=4"]
    config = compose([word.replace("'", "") for word in words], 1)
    world = World(0, 1, torch.device("cpu"))
    wanted = Evaluator(phase_configs(config)[-1], open_phases(config)[-1], world)(module)
    assert evaluate([f"run.dir={run}"]) == pytest.approx(wanted)


@pytest.mark.parametrize("source", [{"hub": "some/where"}, {"sources": [{"hub": "some/where"}]}])
def test_any_text_can_be_judged_even_one_document(tmp_path: Path, source: dict[str, Any]) -> None:
    run, _, _ = make_run(tmp_path, "gpt2")
    name = "hub" if "hub" in source else "mix"
    change(run, data={"name": name, "path": None, **source})
    one = tmp_path / "one.txt"
    one.write_text(
        write_text(tmp_path / "all.txt", num_documents=60).read_text().replace("\n\n", "\n")
    )
    found = evaluate([f"run.dir={run}", f"data.path={one}"])
    assert found["eval/perplexity"] > 50


def test_the_command_prints_names_and_numbers(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["came-eval", f"run.dir={run}", "eval.samples=4"])
    main()
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(lines["eval/perplexity"]) > 1
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--json"])
    main()
    told = json.loads(capsys.readouterr().out)
    assert {name: f"{value:.6g}" for name, value in told.items()} == lines
    monkeypatch.setattr(sys, "argv", ["came-eval", "run.dir=nowhere"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == DataError.exit_code
