"""The learning rate by step."""

from typing import Any

import numpy as np
import pytest

from trainers.compose import compose
from trainers.config import ScheduleConfig
from trainers.errors import ConfigError
from trainers.schedules import learning_rate, warmup_steps

OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {"final_ratio": 0.1},
    "poly": {"final_ratio": 0.1, "power": 0.5},
    "cosine": {"final_ratio": 0.1},
    "wsd": {"final_ratio": 0.1, "decay_fraction": 0.3},
    "constant": {},
    "inverse_sqrt": {},
}


def rates(name: str, warmup_fraction: float, steps: int, **options: Any) -> list[float]:
    settings: dict[str, Any] = {"name": name, "warmup_fraction": warmup_fraction, **options}
    config = ScheduleConfig(**settings)
    return [learning_rate(config, step, steps, 1.0) for step in range(1, steps + 1)]


def test_linear_rises_to_the_peak_and_falls_towards_zero() -> None:
    found = rates("linear", 0.2, 10)
    assert found[:2] == [0.5, 1.0]
    assert found[2:] == pytest.approx([8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9])


def test_constant_stays() -> None:
    assert rates("constant", 0.2, 10) == [0.5] + [1.0] * 9


def test_cosine_is_half_a_cosine_to_the_final_rate() -> None:
    left = np.arange(9, 0, -1) / 9  # of the way, from the peak at step 2 on
    wanted = 0.1 + 0.9 * (1 + np.cos(np.pi * (1 - left))) / 2
    assert rates("cosine", 0.2, 10, final_ratio=0.1)[1:] == pytest.approx(wanted)


def test_poly_is_a_power_of_what_is_left() -> None:
    found = rates("poly", 0.2, 10, power=0.5)
    assert found[1:] == pytest.approx(np.sqrt(np.arange(9, 0, -1) / 9))
    assert rates("poly", 0.2, 10, power=1.0) == rates("linear", 0.2, 10)


def test_wsd_is_level_until_the_decay() -> None:
    found = rates("wsd", 0.1, 10, decay_fraction=0.3)
    assert found == pytest.approx([1.0] * 7 + [3 / 4, 2 / 4, 1 / 4])


def test_inverse_sqrt_is_that_of_t5_after_its_warm_up() -> None:
    found = rates("inverse_sqrt", 0.4, 10)
    assert found[3:] == pytest.approx([np.sqrt(4 / step) for step in range(4, 11)])


@pytest.mark.parametrize("name", OPTIONS)
def test_every_shape_warms_up_peaks_and_never_rises_again(name: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        steps, share = int(generator.integers(1, 200)), float(generator.uniform(0, 0.7))
        config = ScheduleConfig(name=name, warmup_fraction=share, **OPTIONS[name])  # type: ignore[arg-type]
        found = np.array(rates(name, share, steps, **OPTIONS[name]))
        warmup = warmup_steps(config, steps)
        assert found[:warmup] == pytest.approx(np.arange(1, warmup + 1) / warmup)
        assert found.max() == found[warmup - 1] == 1.0
        assert (np.diff(found[warmup - 1 :]) <= 0).all()
        assert found[-1] > 0
        if name not in ("constant", "inverse_sqrt"):
            beyond = learning_rate(config, steps + 1, steps, 1.0)
            assert beyond == pytest.approx(0.1) and (found[warmup:] > beyond).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_without_warm_up_the_first_step_has_the_peak(name: str) -> None:
    assert rates(name, 0.0, 4, **OPTIONS[name])[0] == 1.0


def test_all_warm_up() -> None:
    assert rates("linear", 1.0, 4) == [0.25, 0.5, 0.75, 1.0]


def test_a_warm_up_in_steps_takes_the_place_of_the_fraction() -> None:
    assert rates("linear", 0.9, 10, warmup_steps=2) == rates("linear", 0.2, 10)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_files_are_complete(name: str) -> None:
    schedule = compose([f"schedule={name}"], 2).schedule
    assert learning_rate(schedule, 500, 1000, 2.0) > 0


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("schedule.power=2", "schedule.power is given: it is a number of poly alone"),
        ("schedule.final_ratio=2", "schedule.final_ratio must be from 0 to 1, not 2.0"),
        (
            "schedule.final_ratio=null",
            "final_ratio is null: it is a number of linear, poly, cosine, wsd",
        ),
        ("schedule.warmup_steps=1e9", "warmup_steps=1000000000 is more than train.steps="),
        (
            "schedule=wsd schedule.decay_fraction=0.9",
            "warm-up and decay_fraction together are longer than the run",
        ),
    ],
)
def test_what_is_refused(words: str, answer: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(words.split(), 2)
    assert answer in str(caught.value) and "\n" not in str(caught.value)
