"""The learning rate by step."""

import pytest

from trainers.config import ScheduleConfig
from trainers.schedules import learning_rate


def rates(name: str, warmup_fraction: float, steps: int) -> list[float]:
    config = ScheduleConfig(name=name, warmup_fraction=warmup_fraction)  # type: ignore[arg-type]
    return [learning_rate(config, step, steps, 1.0) for step in range(1, steps + 1)]


def test_linear_rises_to_the_peak_and_falls_towards_zero() -> None:
    found = rates("linear", 0.2, 10)
    assert found[:2] == [0.5, 1.0]
    assert found[2:] == pytest.approx([8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9])


def test_constant_stays() -> None:
    assert rates("constant", 0.2, 10) == [0.5] + [1.0] * 9


@pytest.mark.parametrize("name", ["linear", "constant"])
def test_without_warm_up_the_first_step_has_the_peak(name: str) -> None:
    assert rates(name, 0.0, 4)[0] == 1.0


def test_all_warm_up() -> None:
    assert rates("linear", 1.0, 4) == [0.25, 0.5, 0.75, 1.0]
