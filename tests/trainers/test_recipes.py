"""The experiments: each optimizer has values of its own, and what they are said to cost is so."""

import re

import pytest
import yaml

from trainers.compose import CONFIGS, choices, compose
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.flops import training_flops
from trainers.phases import phase_configs, plan
from trainers.planner.plan import plan_run

RECIPES = [name for name in choices()["experiment"] if not name.startswith("quickstart")]
OPTIMIZERS = choices()["optimizer"]
MFU, PEAK, GPUS = 0.4, 989e12, 8


def recipe(*words: str) -> Config:
    return compose([*words, "data=text", "data.path=text"], GPUS)


@pytest.mark.parametrize("experiment", RECIPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_values_of_its_own(experiment: str, optimizer: str) -> None:
    plain = recipe(f"optimizer={optimizer}", "experiment=quickstart").optimizer
    tree = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text())
    assert sorted(tree["tuned"]) == OPTIMIZERS and "optimizer" not in tree
    config = recipe(f"experiment={experiment}", f"optimizer={optimizer}")
    assert config.optimizer.name == optimizer
    assert config.optimizer.lr == tree["tuned"][optimizer]["optimizer.lr"] != plain.lr
    config = recipe(f"experiment={experiment}", f"optimizer={optimizer}", "optimizer.lr=7")
    assert config.optimizer.lr == 7


def test_lamb_at_a_large_batch_is_that_of_nvidia() -> None:
    config = recipe("experiment=bert_large_32k", "optimizer=lamb")
    schedule = config.schedule
    assert (config.optimizer.lr, config.train.gradient_clipping) == (4e-3, 1.0)
    assert (schedule.name, schedule.power, schedule.warmup_fraction) == ("poly", 0.5, 0.2843)


def test_the_command_line_is_stronger_than_what_is_tuned() -> None:
    words = ("experiment=bert_large_32k", "optimizer=lamb", "optimizer.lr=1e-3")
    config = recipe(*words, "train.gradient_clipping=0", "schedule.power=1")
    assert (config.optimizer.lr, config.train.gradient_clipping) == (1e-3, 0.0)
    assert (config.schedule.name, config.schedule.power) == ("poly", 1.0)
    config = recipe(*words, "schedule=cosine")
    assert (config.schedule.name, config.schedule.power) == ("cosine", None)
    assert config.train.gradient_clipping == 1.0  # of no file that was chosen


def test_a_value_for_a_key_that_does_not_exist_is_refused(tmp_path, monkeypatch) -> None:
    import shutil

    shutil.copytree(CONFIGS, tmp_path / "configs")
    file = tmp_path / "configs" / "experiment" / "bert_large_32k.yaml"
    file.write_text(file.read_text().replace("    optimizer.lr: 4.0e-3", "    optimizer.rl: 1"))
    monkeypatch.setattr("trainers.compose.CONFIGS", tmp_path / "configs")
    with pytest.raises(ConfigError, match=r"unknown key 'optimizer.rl'; did you mean"):
        recipe("experiment=bert_large_32k", "optimizer=lamb")


def told(experiment: str) -> tuple[float, float]:
    """Hours and gigabytes in the comment of an experiment."""
    line = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1]
    found = re.fullmatch(
        r"# ([\d.]+) hours on 8 H200 at 40 % of their peak, (\d+) GB per GPU: arithmetic, "
        "not measured.",
        line,
    )
    assert found, line
    return float(found[1]), float(found[2])


def hours(config: Config) -> float:
    """Of all steps, without evaluation: every sequence as long as it may be, every label there."""
    total = 0.0
    phases = phase_configs(config)
    for stretch in plan(config).stretches:
        inside, samples = phases[stretch.phase], stretch.begin(stretch.last + 1) - stretch.position
        length, predictions = inside.objective.sequence_length, inside.objective.max_predictions
        if inside.model.family == "t5":
            tokens, labels = samples * (length + 114), samples * 114  # 15 % of 568, in spans of 3
        else:
            tokens, labels = samples * length, samples * (predictions or length)
        total += training_flops(inside, config.data.vocab_size, tokens, {"tokens": labels})
    return total / (MFU * PEAK * GPUS) / 3600


@pytest.mark.parametrize("experiment", RECIPES)
def test_hours_and_memory_in_the_comments_are_the_arithmetic(experiment: str) -> None:
    config = recipe(f"experiment={experiment}")
    said_hours, said_gigabytes = told(experiment)
    assert said_hours == pytest.approx(hours(config), rel=0.06)
    rows = plan_run(config, "H200", MFU).rows
    assert said_gigabytes == round(rows["came"].memory.total / 1e9)


def test_the_steps_of_both_phases_are_as_told() -> None:
    file = CONFIGS / "experiment" / "bert_large_32k_two_phase.yaml"
    said = re.search(r"([\d,]+) steps at length 128, then ([\d,]+) at 512", file.read_text())
    assert said
    stretches = plan(recipe("experiment=bert_large_32k_two_phase")).stretches
    steps = [stretch.last - stretch.first + 1 for stretch in stretches]
    assert steps == [14_062, 1_563] == [int(each.replace(",", "")) for each in said.groups()]
