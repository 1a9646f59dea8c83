"""Long contexts in windows, and the best answer over the windows of a question.

    [CLS] question [SEP] context, tokens 0 to 299 [SEP]         two windows of one context: they
    [CLS] question [SEP] context, tokens 172 to 420 [SEP]       share `stride` = 128 tokens

A window without the answer, or of a question without one, has its answer at [CLS].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from trainers.errors import ConfigError
from trainers.finetuning.questions import Question

Spans = NDArray[np.int64]
NONE = -1  # the place in the context of a token that is not of the context


@dataclass(frozen=True)
class Window:
    """Part of a question's context; `spans` (tokens, 2) has the characters of each token."""

    question: int  # its number
    inputs: Mapping[str, list[int]]  # what the model takes
    spans: Spans
    cls: int  # the token that stands for "no answer"


def cut(
    questions: Sequence[Question],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    stride: int,
) -> list[Window]:
    """The windows of `questions`, in order, of at most `length` tokens.

    A question keeps half of a window at most. Raises ConfigError when the rest of a window is not
    longer than `stride`.
    """
    most = length // 2
    texts = tokenizer(
        [question.text for question in questions],
        add_special_tokens=False,
        truncation=True,
        max_length=most,
        return_offsets_mapping=True,
    )["offset_mapping"]
    room = length - max(map(len, texts)) - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= stride:
        raise ConfigError(
            f"max_length={length} leaves {room} tokens beside the longest question: "
            f"stride={stride} must be below that"
        )
    found = tokenizer(
        [
            q.text[: spans[-1][1]] if spans else ""
            for q, spans in zip(questions, texts, strict=True)
        ],
        [question.context for question in questions],
        truncation="only_second",
        max_length=length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    numbers = found.pop("overflow_to_sample_mapping")
    offsets = found.pop("offset_mapping")
    windows = []
    for at, (number, pairs) in enumerate(zip(numbers, offsets, strict=True)):
        inside = np.array([part == 1 for part in found.sequence_ids(at)])
        spans = np.where(inside[:, None], np.array(pairs, dtype=np.int64), NONE)
        inputs = {name: column[at] for name, column in found.items()}
        cls = inputs["input_ids"].index(tokenizer.cls_token_id)
        windows.append(Window(number, inputs, spans, cls))
    return windows


def targets(window: Window, question: Question) -> tuple[int, int]:
    """First and last token of the question's first answer in the window, or [CLS] twice."""
    if not question.answers:
        return window.cls, window.cls
    first, end = question.starts[0], question.starts[0] + len(question.answers[0])
    held = (window.spans[:, 0] < end) & (window.spans[:, 1] > first)
    (tokens,) = np.nonzero(held)
    context = window.spans[window.spans[:, 0] != NONE]
    whole = len(context) and context[0, 0] <= first and context[-1, 1] >= end
    if not whole or not len(tokens):
        return window.cls, window.cls
    return int(tokens[0]), int(tokens[-1])


def training_sample(window: Window, question: Question) -> dict[str, Any]:
    """What a model for question answering takes with its labels."""
    start, end = targets(window, question)
    return {**window.inputs, "start_positions": start, "end_positions": end}


def best_span(
    window: Window, starts: NDArray[np.float32], ends: NDArray[np.float32], longest: int
) -> tuple[float, int, int]:
    """The highest starts[i] + ends[j], i <= j < i + longest, both in the context; and i, j.

    Every span is tried, a diagonal at a time. `starts` and `ends` are the logits of the window's
    tokens, and of padding behind them, which is not looked at.
    """
    size = len(window.spans)
    inside = window.spans[:, 0] != NONE
    first = np.where(inside, starts[:size], -np.inf)
    last = np.where(inside, ends[:size], -np.inf)
    best = (-np.inf, 0, 0)
    for more in range(min(longest, size)):
        totals = first[: size - more] + last[more:]
        at = int(np.argmax(totals))
        if totals[at] > best[0]:
            best = (float(totals[at]), at, at + more)
    return best


def recover(
    questions: Sequence[Question],
    windows: Sequence[Window],
    logits: tuple[NDArray[np.float32], NDArray[np.float32]],
    longest: int,
    null_threshold: float | None,
) -> dict[str, str]:
    """The answer to each question by its id: the best span over its windows, as the text has it.

    Args:
        logits: of first and last tokens, each (windows, tokens).
        longest: tokens of an answer, at most.
        null_threshold: "" is the answer where the least score of [CLS] over the windows is more
            than this above the best span's; None = there always is an answer.
    """
    spans = [(-np.inf, 0, 0)] * len(questions)
    nulls = [np.inf] * len(questions)
    for window, starts, ends in zip(windows, *logits, strict=True):
        at = window.question
        score, i, j = best_span(window, starts, ends, longest)
        if score > spans[at][0]:
            spans[at] = (score, int(window.spans[i, 0]), int(window.spans[j, 1]))
        nulls[at] = min(nulls[at], float(starts[window.cls] + ends[window.cls]))
    answers = {}
    for question, (score, first, end), null in zip(questions, spans, nulls, strict=True):
        silent = null_threshold is not None and null - score > null_threshold
        answers[question.id] = "" if silent or score == -np.inf else question.context[first:end]
    return answers
