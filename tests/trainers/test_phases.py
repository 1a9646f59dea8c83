"""Which samples a step reads."""

from dataclasses import replace

import numpy as np
import pytest

from trainers.compose import compose
from trainers.config import Config
from trainers.errors import ConfigError
from trainers.phases import batch_units, phase_configs, plan

TWO = "train.phases=[{share:0.9,sequence_length:16},{share:0.1,micro_size:4,global_size:16}]"


def composed(*words: str) -> Config:
    return compose(["train.steps=100", "batch.global_size=64", *words], 2)


def test_without_phases_all_steps_are_alike() -> None:
    (stretch,) = plan(composed()).stretches
    assert (stretch.first, stretch.last, stretch.size) == (1, 100, 64)
    assert stretch.positions(3) == range(128, 192)
    assert phase_configs(composed()) == (composed(),)


def test_two_phases_as_in_bert() -> None:
    config = composed(TWO, "objective.max_predictions=9")
    first, second = plan(config).stretches
    assert (first.phase, first.first, first.last, first.size) == (0, 1, 90, 64)
    assert (second.phase, second.first, second.last, second.size) == (1, 91, 100, 16)
    assert second.position == 90 * 64
    short, long = phase_configs(config)
    assert (short.objective.sequence_length, long.objective.sequence_length) == (16, 64)
    assert (short.batch.micro_size, long.batch.micro_size) == (32, 4)
    assert short.train.phases == ()


def test_a_ramp_grows_in_steps_of_its_first_size() -> None:
    config = composed("batch.ramp_from=16", "batch.ramp_fraction=0.3")
    found = [(s.first, s.last, s.size) for s in plan(config).stretches]
    assert found == [(1, 10, 16), (11, 20, 32), (21, 30, 48), (31, 100, 64)]
    assert config.batch.micro_size == 8  # divides all of them, on 2 processes


def test_every_sample_is_read_once_and_in_order() -> None:
    """Positions are the prefix sums of the batch sizes, for any phases and ramps."""
    generator = np.random.default_rng(0)
    for _ in range(100):
        config = random_config(generator)
        found = plan(config)
        position = 0
        for step in range(1, config.train.steps + 1):
            stretch = found.at(step)
            assert stretch.first <= step <= stretch.last
            assert stretch.begin(step) == position
            assert stretch.size % batch_units(config)[stretch.phase] == 0
            position += len(stretch.positions(step))
        assert found.stretches[-1].last == config.train.steps
        assert found.stretches[-1].size == phase_configs(config)[-1].batch.global_size
        sizes = [stretch.size for stretch in found.stretches if stretch.phase == 0]
        assert sizes == sorted(set(sizes))


def random_config(generator: np.random.Generator) -> Config:
    """Of 1 to 3 phases, and a ramp within the first."""
    config = composed()
    shares = generator.dirichlet(np.ones(generator.integers(1, 4))) * 0.7 + 0.1
    shares /= shares.sum()
    steps = int(generator.integers(30, 200))
    words = [
        f"{{share:{s:.9f},global_size:{g}}}" for s, g in zip(shares, (60, 96, 12), strict=False)
    ]
    phases = composed(f"train.steps={steps}", f"train.phases=[{','.join(words)}]").train.phases
    ramp = {"ramp_from": 6, "ramp_fraction": float(generator.uniform(0, shares[0] * 0.9))}
    return replace(
        config,
        train=replace(config.train, steps=steps, phases=phases),
        batch=replace(config.batch, **(ramp if generator.integers(2) else {})),
    )


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("train.phases=[{share:0.9},{share:0.2}]", "shares must be above 0 and add up to 1"),
        ("train.phases=[{share:0.999},{share:0.001}]", "with train.steps=100 a phase has no step"),
        ("train.phases=[{share:1,length:9}]", "unknown key 'train.phases[0].length'"),
        ("train.phases=3", "train.phases must be a list like [a,b], not 3"),
        (
            "train.phases=[{share:1,sequence_length:9999}]",
            "train.phases[0]: objective.sequence_length=9999 is longer than the model's positions",
        ),
        (
            "train.phases=[{share:1,global_size:63}]",
            "train.phases[0]: batch.global_size=63 is not divisible by 2 processes",
        ),
        ("batch.ramp_from=16", "batch.ramp_fraction=0.0: give both"),
        ("batch.ramp_from=24 batch.ramp_fraction=0.1", "ramp_from=24 does not divide the batch"),
        ("batch.ramp_from=1 batch.ramp_fraction=0.1", "ramp_from=1 is not divisible by 2"),
        (
            "batch.ramp_from=32 batch.ramp_fraction=0.6 train.phases=[{share:0.5},{share:0.5}]",
            "reaches beyond the first phase",
        ),
    ],
)
def test_what_is_refused(word: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed(*word.split())
    assert answer in str(caught.value) and "\n" not in str(caught.value)
