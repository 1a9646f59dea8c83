"""Windows over long contexts: nothing is lost, and an answer comes back as the text has it."""

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from trainers.errors import ConfigError
from trainers.finetuning.questions import Question
from trainers.finetuning.windows import NONE, best_span, cut, recover, targets, training_sample

WORDS = [f"w{number}" for number in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word, whatever stands between them."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *WORDS, "?"])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.normalizer = normalizers.Lowercase()
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    roles = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **roles)


def asked(number: int, rng: random.Random, size: int, answerable: bool = True) -> Question:
    """A question whose context has `size` words, capitals and odd spaces between them."""
    words = [rng.choice(WORDS).upper() for _ in range(size)]
    context = "".join(f"{word}{rng.choice([' ', '  ', ' - '])}" for word in words)
    if not answerable:
        return Question(f"q{number}", "w1 w2 ?", context, (), ())
    first = rng.randrange(size)
    last = min(size - 1, first + rng.randrange(4))
    places, at = [], 0
    for word in words:
        at = context.index(word, at)
        places.append((at, at + len(word)))
        at += len(word)
    start, end = places[first][0], places[last][1]
    return Question(f"q{number}", "w1 w2 ?", context, (context[start:end],), (start,))


def perfect(windows, questions, width: int):
    """Logits of a model that knows where the answers are."""
    starts, ends = np.zeros((2, len(windows), width), dtype=np.float32)
    for row, window in enumerate(windows):
        first, last = targets(window, questions[window.question])
        starts[row, first] = ends[row, last] = 10
    return starts, ends


@pytest.mark.parametrize("seed", range(5))
def test_what_is_marked_is_recovered(tokenizer, seed: int) -> None:
    rng = random.Random(seed)
    questions = [asked(n, rng, rng.randint(1, 70), rng.random() < 0.7) for n in range(20)]
    windows = cut(questions, tokenizer, length=24, stride=12)
    found = recover(questions, windows, perfect(windows, questions, 30), 8, 0.0)
    assert found == {q.id: q.answers[0] if q.answers else "" for q in questions}


def test_windows_cover_all_and_share_the_stride(tokenizer) -> None:
    (question,) = [asked(0, random.Random(0), 50)]
    windows = cut([question], tokenizer, length=24, stride=5)
    spans = [window.spans[window.spans[:, 0] != NONE] for window in windows]
    assert {len(window.inputs["input_ids"]) for window in windows[:-1]} == {24}
    for one, next_one in zip(spans, spans[1:], strict=False):
        assert (one[-5:] == next_one[:5]).all()
    together = sorted({tuple(span) for part in spans for span in part.tolist()})
    assert [question.context[first:end] for first, end in together] == question.context.split()
    assert all(window.cls == 0 for window in windows)


def test_a_window_that_cuts_the_answer_has_none(tokenizer) -> None:
    context = " ".join(WORDS[:30])
    start = context.index("w17")
    question = Question("q", "w1", context, ("w17 w18 w19",), (start,))
    windows = cut([question], tokenizer, length=14, stride=2)
    marked = [targets(window, question) for window in windows]
    whole = [m for m in marked if m != (0, 0)]
    assert len(windows) > 3 and len(whole) <= 1
    without = Question("q", "w1", context, (), ())
    sample = training_sample(windows[0], without)
    assert (sample["start_positions"], sample["end_positions"]) == (0, 0)
    assert sample.keys() >= {"input_ids", "attention_mask"}


def test_long_questions_are_cut_and_stride_must_fit(tokenizer) -> None:
    long = Question("q", " ".join(WORDS), "w1 w2", ("w2",), (3,))
    (window,) = cut([long], tokenizer, length=24, stride=4)
    assert len(window.inputs["input_ids"]) == 12 + 3 + 2
    with pytest.raises(ConfigError, match="max_length=24 leaves 9 tokens.*stride=9 must be below"):
        cut([long], tokenizer, length=24, stride=9)


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_the_best_span_is_the_best_of_all(tokenizer, longest: int) -> None:
    rng = np.random.default_rng(longest)
    (window, *_) = cut([asked(0, random.Random(1), 15)], tokenizer, 24, 4)
    size = len(window.spans)
    starts, ends = rng.normal(size=(2, size + 7)).astype(np.float32)
    starts[0] = ends[0] = starts[-1] = ends[-1] = 99  # [CLS] and padding are no answers
    inside = [at for at in range(size) if window.spans[at, 0] != NONE]
    pairs = [(i, j) for i in inside for j in inside if i <= j < i + longest]
    i, j = max(pairs, key=lambda pair: starts[pair[0]] + ends[pair[1]])
    assert best_span(window, starts, ends, longest) == (starts[i] + ends[j], i, j)


def test_no_answer_is_given_from_the_threshold_on(tokenizer) -> None:
    question = Question("q", "w1", "w3 w4", ("w4",), (3,))
    windows = cut([question], tokenizer, 24, 4)
    starts = np.zeros((1, 7), dtype=np.float32)
    starts[0, 0], starts[0, 4] = 3, 1  # [CLS] w1 [SEP] w3 w4 [SEP]
    ends = starts.copy()  # "no answer" scores 6, "w4" scores 2
    for threshold, answer in ((None, "w4"), (0.0, ""), (3.9, ""), (4.0, "w4"), (9.0, "w4")):
        assert recover([question], windows, (starts, ends), 5, threshold) == {"q": answer}


def test_no_answer_counts_where_all_windows_say_so(tokenizer) -> None:
    question = asked(0, random.Random(3), 40)
    windows = cut([question], tokenizer, 24, 4)
    assert len(windows) > 1
    starts, ends = perfect(windows, [question], 24)
    # Windows beside the answer shout that they have none: the least of them counts.
    for row, window in enumerate(windows):
        if targets(window, question) == (0, 0):
            starts[row, 0] = ends[row, 0] = 50
    assert recover([question], windows, (starts, ends), 5, 0.0) == {"q0": question.answers[0]}
