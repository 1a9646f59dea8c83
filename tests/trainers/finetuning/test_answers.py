"""SQuAD's exact match and F1 on cases of its definition."""

import pytest

from trainers.finetuning.answers import exact_match, f1, judge, normalize
from trainers.finetuning.questions import Question


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower", "eiffel tower"),
        ("  a\tcat,\nAN owl and the dog ", "cat owl and dog"),
        ("U.S.A.", "usa"),
        ("theatre another", "theatre another"),  # articles are words, not letters
        ("it's 5%-10%", "its 510"),
        ("the", ""),
        # Punctuation goes first, and what it leaves may be an article.
        ("A.", ""),
        ("the-end", "theend"),
        ("caf\u00e9 \u2014 x", "caf\u00e9 \u2014 x"),  # punctuation of ASCII alone
    ],
)
def test_normalization(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("given", "right", "exact", "score"),
    [
        ("the Denver Broncos", "Denver Broncos!", 1, 1),
        ("Denver", "Denver Broncos", 0, 2 * 1 * 0.5 / 1.5),
        ("in Denver in 2016", "in 2016", 0, 2 * 0.5 * 1 / 1.5),
        ("x y", "z", 0, 0),
        ("ha ha ha", "ha", 0, 0.5),  # a word counts as often as it stands in both
        ("", "", 1, 1),
        ("", "x", 0, 0),
        ("the", "x", 0, 0),
    ],
)
def test_one_answer(given: str, right: str, exact: float, score: float) -> None:
    assert exact_match(given, right) == exact
    assert f1(given, right) == pytest.approx(score, abs=1e-15)
    assert f1(right, given) == pytest.approx(score, abs=1e-15)


def question(name: str, *answers: str) -> Question:
    return Question(name, "?", " ".join(answers), answers, (0,) * len(answers))


def test_the_best_of_several_right_answers_counts() -> None:
    asked = [question("a", "Denver Broncos", "Broncos"), question("b", "one two")]
    found = judge(asked, {"a": "the Broncos", "b": "two"})
    assert found == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


def test_questions_without_an_answer() -> None:
    asked = [question("a", "x y"), question("b"), question("c"), question("d", "x")]
    found = judge(asked, {"a": "x", "b": "", "c": "x", "d": ""})
    assert found["exact_match"] == 1 / 4
    assert found["f1"] == pytest.approx((2 / 3 + 1) / 4)
    assert found["answerable_exact_match"] == 0
    assert found["answerable_f1"] == pytest.approx(2 / 3 / 2)
    assert found["unanswerable_exact_match"] == 1 / 2


def test_a_right_answer_without_words_is_none_at_all() -> None:
    assert judge([question("a", "the")], {"a": ""})["f1"] == 1
    assert judge([question("a", "the", "x")], {"a": ""})["f1"] == 0
