"""An objective reads its own keys, all of them, and asks models that can answer."""

import dataclasses

from trainers.compose import compose
from trainers.config import Config
from trainers.validate import problems_of


def problems(config: Config, **changes: object) -> list[str]:
    objective = dataclasses.replace(config.objective, **changes)
    return problems_of(dataclasses.replace(config, objective=objective), 2)


def test_a_limit_that_would_mask_less_than_the_fraction_is_refused() -> None:
    config = compose([], 2)
    assert problems(config, sequence_length=64, max_predictions=9) == []
    (found,) = problems(config, sequence_length=64, max_predictions=8)
    assert "max_predictions=8 is fewer than the 9 that" in found
    assert "max_predictions=9 or more" in found
    alone = {"next_sentence": False, "sequence_length": 512}
    assert "than the 76 that" in problems(config, **alone)[0]
    assert "than the 128 that" in problems(config, **alone, mask_fraction=0.25)[0]  # 127.5, to even


def test_a_key_that_an_objective_needs_is_missed() -> None:
    found = problems(compose([], 2), max_predictions=None)
    assert found == ["objective.max_predictions is null: masked_lm needs a value"]
