"""What a model has to beat: whoever always says the same, by the labels that it is judged by."""

from types import SimpleNamespace
from typing import Any

import pytest

from trainers.finetuning.prepare import Spans, Texts, over_sets
from trainers.finetuning.questions import Question
from trainers.finetuning.tasks import GLUE, Example

TOKENIZER: Any = SimpleNamespace(num_special_tokens_to_add=lambda pair: 3, cls_token_id=0)


def samples(*labels: float) -> list[Example]:
    return [Example(("",), label) for label in labels]


@pytest.mark.parametrize(
    ("task", "labels", "wanted"),
    [
        ("sst2", (0, 0, 1), {"accuracy": 2 / 3}),
        ("mrpc", (1, 1, 0), {"accuracy": 2 / 3, "f1": 4 / 5}),
        ("mrpc", (1, 0, 0), {"accuracy": 2 / 3, "f1": 0}),
        ("cola", (1, 1, 0), {"matthews_correlation": 0}),
        ("stsb", (1.5, 2.5, 5.0), {"pearson": 0, "spearman": 0}),
    ],
)
def test_of_labels(task: str, labels: tuple[float, ...], wanted: dict[str, float]) -> None:
    found = Texts(GLUE[task], TOKENIZER, 16).baseline(samples(*labels))
    assert found == pytest.approx(wanted)


def test_each_set_of_mnli_has_its_own() -> None:
    kind = Texts(GLUE["mnli"], TOKENIZER, 16)
    sets = {"dev_matched": samples(0, 1, 1, 2), "dev_mismatched": samples(2, 2, 2, 1)}
    wanted = {"accuracy_matched": 0.5, "accuracy_mismatched": 0.75}
    assert over_sets(sets, kind.baseline) == wanted


def test_of_questions_nothing_is_answered() -> None:
    config: Any = SimpleNamespace(task="squad_v2")
    with_answer = Question("1", "?", "a b", ("b",), (2,))
    without = Question("2", "?", "a b", (), ())
    found = Spans(config, TOKENIZER).baseline([with_answer, without, without])
    assert found["exact_match"] == found["f1"] == pytest.approx(2 / 3)
    assert (found["answerable_f1"], found["unanswerable_exact_match"]) == (0, 1)
    alone = Spans(config, TOKENIZER).baseline([with_answer])
    assert alone == {"exact_match": 0, "f1": 0}
