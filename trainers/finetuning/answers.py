"""How SQuAD judges an answer: exact match and F1, as its evaluation script 2.0 defines them.

For version 1.1 the definitions are the same, with one difference where an answer has no words left:
there 1.1 has F1 0, and 2.0 asks whether both have none. No question of 1.1 has such an answer.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from trainers.finetuning.questions import Question

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: in this order."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: str) -> float:
    """1 where both are the same, normalized."""
    return float(normalize(answer) == normalize(right))


def f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall of the words, each counted as often as it stands."""
    given, wanted = normalize(answer).split(), normalize(right).split()
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def judge(questions: Sequence[Question], answers: Mapping[str, str]) -> dict[str, float]:
    """Means over the questions, 0 to 1, of the best match with any right answer, by metric.

    `answers` are by the question's id; "" says that there is none. Questions with and without an
    answer are told apart where there are both.
    """
    rows = []
    for question in questions:
        # An answer without words, such as "the", counts as none.
        rights = [right for right in question.answers if normalize(right)] or [""]
        given = answers[question.id]
        best = [max(measure(given, right) for right in rights) for measure in (exact_match, f1)]
        rows.append((bool(question.answers), *best))
    table = np.array(rows, dtype=float)
    found = {"exact_match": table[:, 1].mean(), "f1": table[:, 2].mean()}
    with_answer = table[:, 0] == 1
    if with_answer.any() and not with_answer.all():
        found["answerable_exact_match"] = table[with_answer, 1].mean()
        found["answerable_f1"] = table[with_answer, 2].mean()
        found["unanswerable_exact_match"] = table[~with_answer, 1].mean()
    return {name: float(value) for name, value in found.items()}
