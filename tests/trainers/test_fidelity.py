"""The report on what a run has in common with the paper, and the recipes it is made from."""

from functools import cache

import pytest
import yaml

from trainers import fidelity
from trainers.checks.fidelity import check_fidelity
from trainers.compose import LEAVES, choices, compose
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.fidelity import KEYS, NOT_PUBLISHED, RECIPES, SPEED, UNEXPLAINED, Comparison

OPTIMIZERS = choices()["optimizer"]


@cache
def config(*words: str) -> Config:
    return compose(words, 2, needs_text=False)


def found(*words: str) -> dict[str, Comparison]:
    rows = fidelity.compare(config(*words))
    assert rows is not None
    return {row.key: row for row in rows}


def test_every_recipe_is_of_an_experiment_and_speaks_of_keys_that_there_are() -> None:
    assert set(fidelity.names()) <= set(choices()["experiment"])
    assert {"bert_large_8k", "bert_large_32k", "gpt2_medium"} <= set(fidelity.names())
    for name in fidelity.names():
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        assert recipe.keys() == {"sources", "values", "optimizers"}
        assert sorted(recipe["optimizers"]) == OPTIMIZERS, name
        for section in (recipe["values"], *recipe["optimizers"].values()):
            assert section.keys() <= LEAVES.keys(), name
            for key, told in section.items():
                assert told.keys() <= {"paper", "source", "ours", "why"}, (name, key)
                # What is published stands somewhere; what is not, or is not ours, has a reason.
                assert (told["paper"] == NOT_PUBLISHED) != (told.get("source") in recipe["sources"])
                assert "why" in told or ("ours" not in told and told["paper"] != NOT_PUBLISHED)


@pytest.mark.parametrize("experiment", fidelity.names())
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_deviation_of_an_experiment_has_its_reason(experiment: str, optimizer: str) -> None:
    rows = found(f"experiment={experiment}", f"optimizer={optimizer}", "launch.processes=8")
    assert [row.key for row in rows.values() if not row.is_explained] == []
    recipe = yaml.safe_load((RECIPES / f"{experiment}.yaml").read_text())
    told = recipe["values"] | recipe["optimizers"][optimizer]
    stale = [key for key in told if "ours" in told[key] and rows[key].kind != "deviation"]
    assert stale == []
    assert all(rows[key].ours == told[key]["ours"] for key in told if "ours" in told[key])
    assert rows.keys() == told.keys()  # nobody has changed anything else


def test_the_32k_run_is_the_authors_script_but_for_what_is_said() -> None:
    rows = found("experiment=bert_large_32k")
    same = {key for key, row in rows.items() if row.kind == "same"}
    assert {"optimizer.lr", "optimizer.betas", "schedule.warmup_fraction", "train.steps"} <= same
    assert {"batch.global_size", "batch.micro_size", "train.gradient_clipping"} <= same
    assert rows["runtime.dtype"].paper == "float16" and rows["runtime.dtype"].ours == "bfloat16"
    assert rows["objective.mask_fraction"].kind == "not published"


ALWAYS = (  # what a reader of a report looks for, whether the paper has it or not
    *("model.name", "model.dropout", "objective.sequence_length", "data.tokenizer"),
    *("train.steps", "train.gradient_clipping", "batch.global_size", "batch.micro_size"),
    *("runtime.dtype", "zero.stage", "optimizer.lr", "optimizer.betas", "optimizer.eps"),
    *("optimizer.weight_decay", "schedule.name", "schedule.warmup_fraction"),
    "schedule.final_ratio",
)
BERTS = tuple(f"objective.{name}" for name in ("mask_fraction", "max_predictions", "next_sentence"))
CAMES = tuple(f"optimizer.{name}" for name in ("clip_threshold", "bias_correction", "momentum"))


@pytest.mark.parametrize("experiment", fidelity.names())
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_report_speaks_of_all_that_makes_a_step(experiment: str, optimizer: str) -> None:
    """Five of them were silent on some: neither as in the paper nor not published."""
    rows = found(f"experiment={experiment}", f"optimizer={optimizer}", "launch.processes=8")
    wanted = {*ALWAYS, *(CAMES if optimizer == "came" else ())}
    wanted |= {*(BERTS if experiment.startswith("bert") else ())}
    assert wanted - rows.keys() == set()
    assert rows.keys() & {"data.path", "data.name"}


def test_what_is_set_on_the_command_line_is_a_deviation_without_a_reason() -> None:
    rows = found("experiment=bert_large_32k", "optimizer.lr=1e-3", "runtime.dtype=float32")
    assert rows["optimizer.lr"].why == rows["runtime.dtype"].why == UNEXPLAINED
    assert rows["optimizer.lr"].source is not None
    text = found("experiment=bert_large_32k", "data.path=my_texts/")["data.path"]
    assert text.kind == "deviation" and text.is_explained


@pytest.mark.parametrize(
    "words",
    [
        ("experiment=gpt2_medium", "batch.global_size=64"),
        ("experiment=bert_large_32k", "optimizer=adamw", "optimizer.lr=7"),
        ("experiment=bert_large_32k", "train.steps=100"),  # published, and its recipe has no `ours`
        ("experiment=bert_large_8k", "run.seed=1"),
    ],
)
def test_the_reason_of_the_experiments_value_is_that_of_no_other(words) -> None:
    """`batch.global_size=64` once was "Megatron-LM's for a model of this size"."""
    key = words[-1].partition("=")[0]
    row, *others = (row for row in found(*words).values() if not row.is_explained)
    assert (row.key, row.kind, row.why, others) == (key, "deviation", UNEXPLAINED, [])
    before = found(*words[:-1])[key]
    assert before.is_explained and row.experiment == before.ours != row.ours
    page = str(fidelity.markdown(config(*words)))
    told = f"the experiment's: {row.experiment:g}" if row.paper is None else row.paper
    assert f"| {key} | {told} | {row.ours:g} | {UNEXPLAINED} |" in page
    assert " Without a reason: 1.\n" in page


@pytest.mark.parametrize("experiment", ["bert_large_32k", "bert_large_32k_two_phase"])
def test_no_change_of_what_is_learned_goes_untold(experiment: str) -> None:
    words = (
        *("model.layers=2", "model.dropout=0", "model.vocab_multiple=64"),
        *("objective.short_fraction=0.5", "train.max_skipped_steps=0", "train.phases=[]"),
        *("data.lowercase=false", "data.vocab_size=1000", "data.on_bad_text=skip"),
        *("optimizer.momentum=int8", "optimizer.weight_decay=0.1", "optimizer.eps=[1e-9,1e-9]"),
        *("schedule.final_ratio=0.1", "schedule.warmup_steps=100", "train.gradient_clipping=1"),
        *("runtime.dtype=float32", "batch.ramp_from=64", "batch.ramp_fraction=0.1"),
    )
    rows = found(
        f"experiment={experiment}",
        *words,
        "deepspeed.zero_optimization.zero_quantized_weights=true",
    )
    keys = {word.partition("=")[0] for word in words} | {"deepspeed"}
    if experiment == "bert_large_32k":
        keys -= {"train.phases"}  # it has none of its own
    assert {key for key in keys if rows[key].kind != "deviation"} == set()
    assert {key for key in keys if rows[key].why != UNEXPLAINED} == set()
    assert {key for key in keys if rows[key].ours == rows[key].experiment} == set()
    assert rows["batch.ramp_from"].experiment == 0 and rows["batch.ramp_from"].ours == 64


def test_packing_is_told() -> None:
    words = ("experiment=bert_large_32k", "objective.packing=true", "objective.next_sentence=false")
    packed = found(*words)
    assert packed["objective.packing"].why == packed["objective.next_sentence"].why == UNEXPLAINED


@pytest.mark.parametrize(
    ("key", "words", "why"),
    [
        ("model.name", ("model.layers=2",), "model.layers=2"),
        (
            "schedule.warmup_fraction",
            ("schedule.warmup_steps=100",),
            "schedule.warmup_steps=100",
        ),
        (
            "batch.global_size",
            ("batch.ramp_from=64", "batch.ramp_fraction=0.1"),
            "batch.ramp_from=64, batch.ramp_fraction=0.1",
        ),
        (
            "objective.sequence_length",
            ("train.phases=[{share: 1, sequence_length: 64}]",),
            "train.phases=[{'share': 1.0, 'sequence_length': 64}]",
        ),
    ],
)
def test_a_value_that_another_setting_overrules_is_not_as_in_the_paper(key, words, why) -> None:
    """`schedule.warmup_steps=100` once left `schedule.warmup_fraction 0.2` as in the paper."""
    row = found("experiment=bert_large_32k", *words)[key]
    assert (row.kind, row.why) == ("deviation", f"{UNEXPLAINED}: {why}") and not row.is_explained
    assert found("experiment=bert_large_32k")[key].kind == "same"


def test_another_text_is_told_and_what_stood_for_it() -> None:
    rows = found("experiment=gpt2_medium", "data=text", "data.path=/home/me/web")
    assert rows["data.name"].why == rows["data.path"].why == UNEXPLAINED
    assert (rows["data.path"].experiment, rows["data.path"].ours) == (None, "web")
    hub = found("experiment=gpt2_medium", "data.hub=a/b")["data.name"]
    assert (hub.ours, hub.why) == ("openwebtext", f"{UNEXPLAINED}: data.hub=a/b")


def test_phases_overrule_what_they_speak_of() -> None:
    phases = "train.phases=[{share: 0.5}, {share: 0.5, max_predictions: 19}]"
    rows = found("experiment=bert_large_32k", phases)
    assert not rows["objective.max_predictions"].is_explained
    assert rows["objective.sequence_length"].kind == rows["batch.global_size"].kind == "same"


def test_what_changes_the_speed_alone_is_told_with_that_reason() -> None:
    words = ("experiment=bert_large_32k", "batch.micro_size=8", "zero.stage=3")
    rows = found(*words, "data.workers=3", "train.log_every=7")
    assert rows["batch.micro_size"].why == rows["zero.stage"].why == SPEED
    assert all(row.is_explained for row in rows.values())
    assert {"data.workers", "train.log_every", "data.cache_dir"}.isdisjoint({*rows, *KEYS})
    phases = config("experiment=bert_large_32k_two_phase", "batch.micro_size=4")
    assert [row.key for row in fidelity.compare(phases) or [] if not row.is_explained] == []
    gpt2 = found("experiment=gpt2_medium", "zero.stage=2")["zero.stage"]
    assert (gpt2.experiment, gpt2.ours, gpt2.why) == (1, 2, SPEED)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("data=text", "data.path=/home/me/wiki/"), "wiki"),
        (("data=text", "data.path=me/wiki"), "wiki"),
        (("data=hub", "data.hub=/home/me/wiki"), "wiki"),
        (("data=hub", "data.hub=~/me/wiki"), "wiki"),
        (("data=hub", "data.hub=Salesforce/wikitext"), "Salesforce/wikitext"),
        (
            ("data=mix", "data.sources=[{path: /home/me/books}, {hub: ./me/web}, {hub: a/b}]"),
            "'hub': 'a/b'",
        ),
    ],
)
def test_where_files_lie_is_not_told(words, told: str) -> None:
    tokenizer = "data.tokenizer=/home/me/vocab.txt"
    run = config("experiment=bert_large_32k", *words, tokenizer)
    page, details = str(fidelity.markdown(run)), str(check_fidelity(run))
    assert told in page and "| vocab.txt |" in page
    assert all("home" not in text and "me/" not in text for text in (page, details))


def test_the_folder_of_the_text_may_have_any_name() -> None:
    text = found("experiment=bert_large_32k", "data.path=/data/Wikipedia")["data.path"]
    assert (text.kind, text.paper, text.ours) == ("deviation", "Wikipedia", "Wikipedia")


def test_an_experiment_that_is_not_complete_is_told(monkeypatch) -> None:
    def fail(*_: str) -> Config:
        raise ConfigError("train.steps has no value")

    monkeypatch.setattr(fidelity, "experiment", fail)
    run = config("experiment=bert_large_32k", "train.steps=7")
    assert "is not complete: train.steps has no value\n" in str(fidelity.markdown(run))
    check = check_fidelity(run)
    assert check.is_green and "train.steps has no value" in check.text
    with pytest.raises(ConfigError):
        fidelity.experiment("no_such_experiment", "came")


def test_the_page_escapes_what_would_break_its_tables() -> None:
    page = fidelity.markdown(config("experiment=bert_large_32k", "data.path=a|b"))
    assert page is not None and "| Wikipedia | a\\|b |" in page
    assert "| optimizer.lr | 0.00024 | run_came_pretraining.sh" in page
    assert "## Not published by the paper" in page and "## Deviations" in page


def test_other_experiments_have_no_report() -> None:
    assert fidelity.compare(config("experiment=quickstart")) is None
    assert fidelity.markdown(config("experiment=quickstart")) is None
    told = check_fidelity(config("experiment=quickstart"))
    assert told.is_green
    assert told.text.startswith(
        "There is no recipe for quickstart to compare with; there are: bert_"
    )


def test_one_setting_is_told_as_one() -> None:
    page = str(fidelity.markdown(config("experiment=llama_1b", "data.path=x", "optimizer=came")))
    assert "\n1 setting is the paper's, 2 are not, and 20 it does not publish." in page
