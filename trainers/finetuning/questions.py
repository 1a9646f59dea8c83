"""SQuAD's questions from its JSON, versions 1.1 and 2.0."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.errors import DataError


@dataclass(frozen=True)
class Question:
    """`answers` are all that are right, and `starts` their first characters; none = no answer."""

    id: str
    text: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


def read_questions(file: Path, answerable: bool) -> list[Question]:
    """The questions of a file, in its order.

    Raises DataError, with the question's place, for what is not SQuAD's, for an answer that does
    not stand where it says, and, where all must be `answerable`, for one that is not.
    """
    try:
        tree = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # no UTF-8 or no JSON
        raise DataError(f"{file} is no JSON: {error}") from error
    try:
        found = list(_questions(tree))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{file} is not SQuAD's format (data, paragraphs, qas, answers): "
            f"{type(error).__name__} {error}"
        ) from error
    if not found:
        raise DataError(f"{file} has no questions")
    for question in found:
        check(question, str(file), answerable)
    return found


def check(question: Question, where: str, answerable: bool) -> None:
    """Raise DataError for a question that cannot be learned from."""
    if answerable and not question.answers:
        raise DataError(
            f"{where}: question {question.id} has no answer, all of squad_v1 have one: "
            "is it task=squad_v2?"
        )
    for answer, start in zip(question.answers, question.starts, strict=True):
        stands = question.context[start : start + len(answer)]
        if start < 0 or stands != answer or not answer:
            raise DataError(
                f"{where}: question {question.id}: at character {start} stands {stands!r}, "
                f"not the answer {answer!r}"
            )


def _questions(tree: Any) -> Iterator[Question]:
    for article in tree["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                answers = [] if question.get("is_impossible") else question["answers"]
                yield Question(
                    id=str(question["id"]),
                    text=_text(question["question"]).strip(),
                    context=_text(paragraph["context"]),
                    answers=tuple(_text(answer["text"]) for answer in answers),
                    starts=tuple(int(answer["answer_start"]) for answer in answers),
                )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is no text")
    return value
