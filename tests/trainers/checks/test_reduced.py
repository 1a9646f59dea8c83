"""A run made small is still that run."""

from pathlib import Path

import pytest

from trainers.checks import few_steps, reduced
from trainers.compose import choices, compose
from trainers.config import Config
from trainers.validate import problems_of

FOLDER = Path("folder")


def small(*words: str) -> Config:
    return reduced.sharded(compose(words, 2, needs_text=False), FOLDER)


@pytest.mark.parametrize("experiment", choices()["experiment"])
@pytest.mark.parametrize("optimizer", choices()["optimizer"])
def test_every_experiment_can_be_made_small(experiment: str, optimizer: str) -> None:
    whole = compose([f"experiment={experiment}", f"optimizer={optimizer}"], 2, needs_text=False)
    config = reduced.sharded(whole, FOLDER)
    assert problems_of(config, 2) == []
    assert problems_of(reduced.unsharded(config), 1) == []
    assert (config.optimizer, config.zero) == (whole.optimizer, whole.zero)
    assert config.train.gradient_clipping == whole.train.gradient_clipping
    assert config.runtime.dtype == whole.runtime.dtype
    assert config.schedule.name == whole.schedule.name


def test_what_a_person_has_chosen_stays() -> None:
    words = ("zero.stage=3", "zero.offload_optimizer=true", "optimizer.momentum=int8")
    config = small("experiment=bert_large_32k_two_phase", *words, "schedule.warmup_steps=1563")
    assert (config.zero.stage, config.zero.offload_optimizer) == (3, True)
    assert config.optimizer.momentum == "int8"
    assert config.schedule.warmup_steps is None
    assert config.schedule.warmup_fraction == pytest.approx(0.1, abs=1e-3)
    alone = reduced.unsharded(config)
    assert (alone.zero.stage, alone.zero.offload_optimizer) == (3, False)
    assert reduced.unsharded(small("experiment=bert_large_32k")).zero.stage == 1  # bfloat16
    assert reduced.unsharded(small("experiment=quickstart")).zero.stage == 0
    assert alone.batch == config.batch  # the same micro batches


def test_a_rank_reads_what_was_written(tmp_path: Path) -> None:
    for experiment in choices()["experiment"]:
        config = small(f"experiment={experiment}")
        few_steps.write_config(config, tmp_path)
        assert few_steps.read_config(tmp_path) == config
