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


def test_spans_that_cannot_be_are_refused_before_any_text_is_read() -> None:
    """Both passed, and were told after the data had been prepared, which takes hours."""
    t5 = compose(["experiment=quickstart_t5"], 2)
    (found,) = problems(t5, sequence_length=2048)
    assert "has 114 spans, and the vocabulary 100 sentinels" in found
    (found,) = problems(t5, noise_fraction=0.9, mean_span=1.0)
    assert "leave no text between the spans" in found
    (found,) = problems(t5, noise_fraction=1.0)
    assert "objective.noise_fraction must be between 0 and 1" in found
    given = dataclasses.replace(t5, data=dataclasses.replace(t5.data, tokenizer="spiece.model"))
    assert problems(given, sequence_length=2048) == []  # another may have more sentinels
