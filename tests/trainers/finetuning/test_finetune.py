"""`came-finetune` from a run to a table, resumed, compared and refused."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from statistics import stdev

import pytest
import torch

from tests.trainers.finished_run import make_run
from trainers.errors import (
    ConfigError,
    DataError,
    FolderInUseError,
    NonFiniteError,
    StorageError,
)
from trainers.export import export
from trainers.finetune import main
from trainers.finetuning.models import Start, build
from trainers.finetuning.results import Results, owned, read_results, table
from trainers.finetuning.train import subset
from trainers.run_state import is_run

ROOT = Path(__file__).parents[3]
FEW = ("seeds=2", "epochs=8", "batch_size=8", "max_length=16", "threads=1", "optimizer.lr=3e-3")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), "bert")[0]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences whose label is whether one letter stands in them."""
    folder = tmp_path_factory.mktemp("reviews")
    lines = [
        f"{'a' if n % 2 else 'e'} {'bcd'[n % 3]} {'fgh'[n % 5 % 3]}\t{n % 2}" for n in range(48)
    ]
    for name in ("train.tsv", "dev.tsv"):
        (folder / name).write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


def test_two_seeds_learn_resume_and_are_compared(run, reviews, tmp_path, capsys) -> None:
    words = [f"model={run}", "task=sst2", f"data={reviews}", f"out={tmp_path}", *FEW]
    assert main(words) == 0
    told = read_results(tmp_path)
    assert set(told["seeds"]) == {"0", "1"}
    for seed in told["seeds"].values():
        assert seed["metrics"]["accuracy"] == 1.0
        assert (seed["steps"], seed["samples"]) == (48, 48)
        assert seed["origin"]["versions"]["torch"] == torch.__version__
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert main(words) == 0  # nothing is left to run
    assert read_results(tmp_path) == told
    shown = capsys.readouterr().out
    assert "seed 1  is in" in shown and f"{tmp_path / 'results.json'}" in shown
    assert told["baseline"] == {"accuracy": 0.5}
    assert main([*words, "epochs=3"]) == ConfigError.exit_code
    assert "epochs=8.0, and this is 3.0" in capsys.readouterr().err
    assert main(["--table", f"{tmp_path}"]) == 0
    assert "| sst2 | run   | pretrained | came" in capsys.readouterr().out
    assert told["model"] == "run" and f"{run.parent}" not in json.dumps(told["settings"])
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "results.json").read_text())
    assert main(["--json", "--table", f"{tmp_path}"]) == 0
    assert json.loads(capsys.readouterr().out) == [told]


@pytest.mark.parametrize(
    ("epochs", "answer"),
    [(1.0, "seed 0: the training loss is nan"), (1 / 6, "seed 0: its predictions are no numbers")],
)
def test_what_diverges_is_no_result(run, reviews, tmp_path, capsys, epochs, answer) -> None:
    """transformers put the mean of earlier losses in the place of a NaN, and said 50 %, rc 0.

    A sixth of an epoch is one step: its loss is from before the weights went wild.
    """
    words = [f"model={run}", "task=sst2", f"data={reviews}", f"out={tmp_path}", *FEW]
    wild = (f"epochs={epochs}", "optimizer=adamw", "optimizer.lr=1e30", "warmup_fraction=0")
    assert main([*words, *wild]) == NonFiniteError.exit_code
    told = capsys.readouterr().err
    assert answer in told and "a smaller optimizer.lr (now 1e+30)" in told
    assert not (tmp_path / "results.json").exists()


def test_a_second_command_in_one_folder_is_refused_at_once(run, reviews, tmp_path, capsys) -> None:
    """Both wrote the seeds that they knew: what the other had finished was lost."""
    words = [f"model={run}", "task=sst2", f"data={reviews}", f"out={tmp_path / 'out'}", *FEW]
    script = f"""
import sys
from pathlib import Path
from trainers.finetuning.results import owned
with owned(Path({str(tmp_path / "out")!r})):
    print("open", flush=True)
    sys.stdin.read()
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "open\n"
        assert main(words) == FolderInUseError.exit_code
        told = capsys.readouterr()
        assert f"out is in use by process {owner.pid} on " in told.err and "out=..." in told.err
        assert "seed 0" not in told.out
    finally:
        owner.kill()
        owner.communicate(timeout=20)
    with owned(tmp_path / "out"):  # a dead owner is none
        found = [file.name for file in (tmp_path / "out").iterdir()]
        assert not is_run(tmp_path / "out", found)  # came-status tells of runs
    with owned(tmp_path / "out"):  # nor is one that is done
        pass
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file cannot be made"), owned(tmp_path / "file"):
        pass


def test_a_reader_that_went_away_stops_nothing(run, reviews, tmp_path, monkeypatch, capsys) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    words = [f"model={run}", "task=sst2", f"data={reviews}", f"out={tmp_path}", *FEW, "epochs=1"]
    with open(theirs, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(words) == 0
    assert set(read_results(tmp_path)["seeds"]) == {"0", "1"}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_questions_from_end_to_end(run, tmp_path, version) -> None:
    context = "the word is in this text "
    answers = [{"text": "in this", "answer_start": 12}]
    asked = [
        {"id": f"{n}", "question": "where", "answers": [] if version == "v2" and n % 2 else answers}
        for n in range(4)
    ]
    tree = {"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_text(json.dumps(tree))
    words = [f"model={run}", f"task=squad_{version}", f"data={tmp_path}", f"out={tmp_path / 'out'}"]
    size = ["seeds=1", "epochs=1", "max_length=24", "stride=4", "threads=1", "optimizer=adamw"]
    assert main([*words, *size]) == 0
    ((_, seed),) = read_results(tmp_path / "out")["seeds"].items()
    names = {"exact_match", "f1"}
    if version == "v2":
        names |= {"answerable_exact_match", "answerable_f1", "unanswerable_exact_match"}
    assert seed["metrics"].keys() == names
    assert all(0 <= value <= 1 for value in seed["metrics"].values())


def test_a_run_and_its_export_are_one_start_and_untrained_is_another(run, tmp_path) -> None:
    export(run, tmp_path / "exported")
    starts = [Start.of(path, tmp_path) for path in (run, tmp_path / "exported")]
    assert starts[0].sha256 == starts[1].sha256

    def weights(start: Start, untrained: bool, seed: int) -> list[torch.Tensor]:
        model = build(start, 2, dropout=0.1, untrained=untrained, seed=seed)
        assert model.config.hidden_dropout_prob == 0.1
        body = model.bert.embeddings.word_embeddings.weight, model.bert.pooler.dense.weight
        return [*body, model.classifier.weight]

    trained, other = weights(starts[0], False, 0), weights(starts[1], False, 1)
    assert torch.equal(trained[0], other[0]) and torch.equal(trained[1], other[1])
    assert not torch.equal(trained[2], other[2])  # the head is the seed's
    assert not torch.equal(trained[0], weights(starts[0], True, 5)[0])


def test_an_untrained_model_is_in_float32_too(run, tmp_path) -> None:
    export(run, tmp_path / "exported")
    settings = json.loads((tmp_path / "exported" / "config.json").read_text())
    (tmp_path / "exported" / "config.json").write_text(
        json.dumps({**settings, "dtype": "bfloat16"})
    )
    start = Start.of(tmp_path / "exported", tmp_path)
    for untrained in (False, True):
        model = build(start, 2, dropout=0.1, untrained=untrained, seed=0)
        assert {param.dtype for param in model.parameters()} == {torch.float32}


def test_a_batch_is_shared_by_the_gpus_that_are_seen(run, reviews, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("trainers.finetuning.train.on_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    words = [f"model={run}", "task=sst2", f"data={reviews}", f"out={tmp_path / 'out'}", *FEW]
    assert main(words) == ConfigError.exit_code
    assert "batch_size=8 cannot be shared by 3 GPUs" in capsys.readouterr().err


def test_starts_that_are_refused(run, tmp_path) -> None:
    with pytest.raises(DataError, match="is no run folder"):
        Start.of(tmp_path, tmp_path)
    export(run, tmp_path / "exported")
    (tmp_path / "exported" / "model.safetensors").write_bytes(b"x" * 64)
    with pytest.raises(DataError, match="cannot be read as"):
        build(Start.of(tmp_path / "exported", tmp_path), 2, dropout=0, untrained=False, seed=0)
    (tmp_path / "exported" / "model.safetensors").rename(
        tmp_path / "exported" / "pytorch_model.bin"
    )
    with pytest.raises(ConfigError, match="has no .*safetensors"):
        Start.of(tmp_path / "exported", tmp_path)


@pytest.mark.parametrize(
    ("words", "code", "answer"),
    [
        (("model=nowhere", "task=sst2", "data={data}"), 2, "model=nowhere is no folder"),
        (("model={run}", "task=sst2", "data=nowhere"), 3, "data=nowhere is no folder"),
        (("model={run}", "task=mrpc", "data={data}"), 3, "no column 'Quality' or 'label'|#1 Str"),
        (("--table",), 2, "which results"),
        (("--table", "nowhere"), 3, "nowhere cannot be read"),
    ],
)
def test_what_is_refused_and_in_which_words(run, reviews, capsys, words, code, answer) -> None:
    assert main([word.format(run=run, data=reviews) for word in words]) == code
    assert re.search(answer, capsys.readouterr().err)


def cells(markdown: str) -> list[str]:
    (line,) = markdown.splitlines()[2:]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_n_mean_spread_and_ends(tmp_path: Path) -> None:
    values = (0.5, 0.75, 0.7)
    results = Results.open(
        tmp_path,
        {"task": "sst2", "untrained": True, "optimizer.name": "adamw", "optimizer.lr": 5e-5},
        {"accuracy": 0.509},
        "bert/a",
    )
    for seed, value in enumerate(values):
        results.add(seed, {"metrics": {"accuracy": value}})
    assert cells((tmp_path / "table.md").read_text()) == [
        *("sst2", "bert/a", "untrained", "adamw", "5e-05", "accuracy", "3"),
        *("65.00", f"{100 * stdev(values):.2f}", "50.00", "75.00", "50.90"),
    ]
    one = {**results.told, "seeds": {"0": {"metrics": {"accuracy": 1.0}}}}
    del one["baseline"], one["model"]  # of older versions
    assert cells(table([one]))[1] == "-"
    assert cells(table([one]))[6:] == ["1", "100.00", "-", "100.00", "100.00", "-"]
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(DataError, match="results.json cannot be read"):
        Results.open(tmp_path, {}, {}, "")


TOLD = {"task": "rte", "untrained": False, "optimizer.name": "came", "optimizer.lr": 1.0}
SEED = {"metrics": {"accuracy": 0.5}}


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ([], "it has no settings and seeds"),
        ({"settings": TOLD, "seeds": [SEED]}, "it has no settings and seeds"),
        ({"settings": {}, "seeds": {}}, "its settings tell no task, untrained, optimizer.name, "),
        (
            {"settings": {**TOLD, "optimizer.lr": "1"}, "seeds": {}},
            "its settings tell no optimizer.lr",
        ),
        ({"settings": TOLD, "seeds": {"0": {}}}, "seed 0 has no metrics"),
        ({"settings": TOLD, "seeds": {"0": 3}}, "seed 0 has no metrics"),
        ({"settings": TOLD, "seeds": {"0": {"metrics": {"f1": None}}}}, "seed 0 has no metrics"),
        (
            {"settings": TOLD, "seeds": {"0": SEED, "1": {"metrics": {"f1": 0.5}}}},
            "seed 1 has other metrics than seed 0",
        ),
        ({"settings": TOLD, "seeds": {}, "baseline": None}, "its baseline is no numbers by name"),
    ],
)
def test_what_is_no_results_is_told_with_its_file(tmp_path, capsys, content, answer) -> None:
    """The table said KeyError: 'untrained', without a file."""
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert main(["--table", f"{tmp_path}"]) == DataError.exit_code
    assert f"{tmp_path / 'results.json'} cannot be read: {answer}" in capsys.readouterr().err
    with pytest.raises(DataError, match="results.json cannot be read"):
        Results.open(tmp_path, TOLD, {}, "bert")


def test_results_without_the_name_of_a_model_are_gone_on_with(tmp_path: Path) -> None:
    old = {"settings": TOLD, "baseline": {}, "seeds": {}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    assert Results.open(tmp_path, TOLD, {}, "bert").told["model"] == "bert"
    assert read_results(tmp_path) == {**old, "model": "bert"}
    # The same weights by another name, such as a run and its export: the first one stays.
    assert Results.open(tmp_path, TOLD, {}, "exported").told["model"] == "bert"


def test_a_subset_is_the_same_every_time() -> None:
    samples = list(range(100))
    assert subset(samples, 0) is samples and subset(samples, 100) is samples
    assert subset(samples, 10) == subset(samples, 10) != samples[:10]
    assert len(set(subset(samples, 10))) == 10
