"""The words of `came-finetune`, its YAML, and what tells results apart."""

import pytest
import yaml

from trainers.compose import CONFIGS
from trainers.errors import ConfigError
from trainers.finetuning.settings import (
    OPTIMIZERS,
    FinetuneConfig,
    compose_finetune,
    identity,
    model_name,
)
from trainers.typed import fields_of

BASE = ("model=runs/bert", "task=sst2")


def test_every_key_of_the_file_has_a_field() -> None:
    told = yaml.safe_load((CONFIGS / "finetune.yaml").read_text())
    assert told.keys() - {"defaults"} == fields_of(FinetuneConfig).keys()
    assert told["learning_rates"].keys() == set(OPTIMIZERS)


def test_each_optimizer_has_its_learning_rate_and_a_word_wins() -> None:
    assert compose_finetune(BASE).optimizer.name == "came"
    rates = {n: compose_finetune([*BASE, f"optimizer={n}"]).optimizer.lr for n in OPTIMIZERS}
    assert rates == {"came": 2e-5, "adamw": 5e-5}
    assert compose_finetune([*BASE, "optimizer.lr=1e-3"]).optimizer.lr == 1e-3


def test_lengths_and_folders_by_task() -> None:
    config = compose_finetune(BASE)
    assert (config.max_length, config.out) == (128, "runs/finetune/sst2-bert-came")
    config = compose_finetune(["model=x/y/", "task=squad_v2", "untrained=true"])
    assert (config.max_length, config.out) == (384, "runs/finetune/squad_v2-y-came-untrained")


def test_a_model_goes_by_its_bare_name_and_a_checkpoint_by_its_run_too() -> None:
    assert model_name("/home/somebody/runs/bert/") == "bert"
    checkpoint = "runs/bert/checkpoints/step-00000100"
    assert model_name(checkpoint) == "bert/step-00000100"
    config = compose_finetune([f"model={checkpoint}", "task=sst2"])
    assert config.out == "runs/finetune/sst2-bert-step-00000100-came"


def test_home_is_found_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data=TRAIN_FILE,DEV_FILE the first alone: a shell expands neither."""
    monkeypatch.setenv("HOME", "/home/me")
    config = compose_finetune(["model=~/bert", "task=sst2", "data=~/a.tsv,~/b.tsv", "out=~/out"])
    found = (config.model, config.data, config.out)
    assert found == ("/home/me/bert", "/home/me/a.tsv,/home/me/b.tsv", "/home/me/out")


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("model=m", "taks=sst2"), "did you mean 'task'"),
        (("model=m", "task=sst3"), "task must be one of sst2, mrpc"),
        (("task=sst2",), "model has no value: give one with model=..."),
        ((*BASE, "lr=1"), "did you mean 'optimizer.lr'"),
        ((*BASE, "optimizer=lamb"), "choose one of adamw, came"),
        ((*BASE, "optimizer.betas=[0.9,0.99]"), "came takes 3 values"),
        ((*BASE, "seeds=0"), "seeds must be from 1 to 1000, not 0"),
        ((*BASE, "epochs=0"), "epochs must be above 0"),
        ((*BASE, "dropout=1"), "dropout must be at least 0 and below 1"),
        ((*BASE, "deepspeed.x=1"), "unknown key 'deepspeed.x'"),
        (("model=m", "task=squad_v1", "max_length=128"), "stride=128 must be below max_length=128"),
    ],
)
def test_what_is_refused_and_in_which_words(words: tuple[str, ...], answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        compose_finetune(words)


def test_what_may_differ_between_seeds_of_one_table() -> None:
    one = identity(compose_finetune(BASE))
    same = ("seeds=9", "out=x", "threads=1", "eval_batch_size=1", "stride=3", "data=d")
    assert identity(compose_finetune([*BASE, *same])) == one
    for word in (
        "optimizer.lr=1",
        "epochs=2",
        "untrained=true",
        "max_length=64",
        "train_samples=9",
    ):
        assert identity(compose_finetune([*BASE, word])) != one
