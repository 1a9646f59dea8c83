"""The report on what a run has in common with the paper, and the recipes it is made from."""

import pytest
import yaml

from trainers import fidelity
from trainers.compose import LEAVES, choices, compose
from trainers.config import Config
from trainers.fidelity import NOT_PUBLISHED, RECIPES, UNEXPLAINED, Comparison

OPTIMIZERS = choices()["optimizer"]


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


def test_the_32k_run_is_the_authors_script_but_for_what_is_said() -> None:
    rows = found("experiment=bert_large_32k")
    same = {key for key, row in rows.items() if row.kind == "same"}
    assert {"optimizer.lr", "optimizer.betas", "schedule.warmup_fraction", "train.steps"} <= same
    assert {"batch.global_size", "batch.micro_size", "train.gradient_clipping"} <= same
    assert rows["runtime.dtype"].paper == "float16" and rows["runtime.dtype"].ours == "bfloat16"
    assert rows["objective.mask_fraction"].kind == "not published"


def test_what_is_set_on_the_command_line_is_a_deviation_without_a_reason() -> None:
    rows = found("experiment=bert_large_32k", "optimizer.lr=1e-3", "runtime.dtype=float32")
    assert rows["optimizer.lr"].why == rows["runtime.dtype"].why == UNEXPLAINED
    assert rows["optimizer.lr"].source is not None
    text = found("experiment=bert_large_32k", "data.path=my_texts/")["data.path"]
    assert text.kind == "deviation" and text.is_explained


def test_the_page_escapes_what_would_break_its_tables() -> None:
    page = fidelity.markdown(config("experiment=bert_large_32k", "data.path=a|b"))
    assert page is not None and "| a\\|b |" in page
    assert "| optimizer.lr | 0.00024 | run_came_pretraining.sh" in page
    assert "## Not published by the paper" in page and "## Deviations" in page


def test_other_experiments_have_no_report() -> None:
    assert fidelity.compare(config("experiment=quickstart")) is None
    assert fidelity.markdown(config("experiment=quickstart")) is None
