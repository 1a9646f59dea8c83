"""An objective reads its own keys, all of them, and asks models that can answer."""

import dataclasses

from trainers.compose import compose
from trainers.config import Config
from trainers.validate import problems_of


def problems(config: Config, **changes: object) -> list[str]:
    objective = dataclasses.replace(config.objective, **changes)
    return problems_of(dataclasses.replace(config, objective=objective), 2)


def test_a_key_that_an_objective_needs_is_missed() -> None:
    found = problems(compose([], 2), max_predictions=None)
    assert found == ["objective.max_predictions is null: masked_lm needs a value"]
