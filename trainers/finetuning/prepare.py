"""From samples to what the Trainer takes, and from the model's outputs back to metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from trainers.errors import ConfigError
from trainers.finetuning.answers import judge
from trainers.finetuning.questions import Question
from trainers.finetuning.scores import SCORES
from trainers.finetuning.settings import FinetuneConfig
from trainers.finetuning.tasks import GLUE, Example, Task
from trainers.finetuning.windows import cut, recover, training_sample

Rows = list[dict[str, Any]]
Measure = Callable[[Any], dict[str, float]]  # of the arrays that Trainer.predict gives


class Kind(Protocol):
    """One of the two kinds of tasks, with its settings."""

    num_labels: int | None  # of the model's head; 1 for a score, None for spans
    always: str  # what the baseline says

    def train_rows(self, samples: Sequence[Any]) -> Rows:
        """Inputs with labels."""

    def dev_rows(self, samples: Sequence[Any]) -> tuple[Rows, Measure]:
        """Inputs, and what makes metrics of the outputs for them."""

    def baseline(self, samples: Sequence[Any]) -> dict[str, float]:
        """The metrics of who always says the same: the commonest label, or that nothing answers."""


class Texts:
    """GLUE: one or two texts and a label or a score."""

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        if len(task.texts) > 1 and not tokenizer.num_special_tokens_to_add(pair=True):
            raise ConfigError(f"task={task.name} has two texts, and the tokenizer nothing between")
        self.task, self.tokenizer, self.length = task, tokenizer, length
        self.num_labels: int | None = len(task.labels) or 1
        self.always = "the commonest label" if task.labels else "the same score"

    def train_rows(self, samples: Sequence[Example]) -> Rows:
        return [
            {**row, "labels": sample.label}
            for row, sample in zip(self._rows(samples), samples, strict=True)
        ]

    def dev_rows(self, samples: Sequence[Example]) -> tuple[Rows, Measure]:
        truth = np.array([sample.label for sample in samples], dtype=float)

        def metrics(outputs: Any) -> dict[str, float]:
            outputs = outputs[0] if isinstance(outputs, tuple) else outputs  # T5 gives more
            guesses = outputs.argmax(-1) if self.task.labels else outputs[:, 0]
            return {name: SCORES[name](guesses.astype(float), truth) for name in self.task.metrics}

        return self._rows(samples), metrics

    def baseline(self, samples: Sequence[Example]) -> dict[str, float]:
        """Of a score any number, always the same: it correlates with nothing."""
        truth = np.array([sample.label for sample in samples], dtype=float)
        labels, counts = np.unique(truth, return_counts=True)
        guesses = np.full_like(truth, labels[counts.argmax()])
        return {name: SCORES[name](guesses, truth) for name in self.task.metrics}

    def _rows(self, samples: Sequence[Example]) -> Rows:
        columns = zip(*(sample.texts for sample in samples), strict=True)
        found = self.tokenizer(
            *(list(column) for column in columns), truncation=True, max_length=self.length
        )
        return [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]


class Spans:
    """SQuAD: a question, a context, and an answer in it."""

    num_labels: int | None = None
    always = "that there is no answer"

    def __init__(self, config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.cls_token_id is None:
            raise ConfigError(f"task={config.task} needs a model of BERT's kind, with a [CLS]")
        self.config, self.tokenizer = config, tokenizer

    def train_rows(self, samples: Sequence[Question]) -> Rows:
        windows = self._cut(samples)
        return [training_sample(window, samples[window.question]) for window in windows]

    def dev_rows(self, samples: Sequence[Question]) -> tuple[Rows, Measure]:
        windows = self._cut(samples)
        threshold = self.config.null_threshold if self.config.task == "squad_v2" else None

        def metrics(outputs: Any) -> dict[str, float]:
            longest = self.config.max_answer
            return judge(samples, recover(samples, windows, outputs[:2], longest, threshold))

        return [dict(window.inputs) for window in windows], metrics

    def baseline(self, samples: Sequence[Question]) -> dict[str, float]:
        return judge(samples, {sample.id: "" for sample in samples})

    def _cut(self, samples: Sequence[Question]) -> list[Any]:
        return cut(samples, self.tokenizer, self.config.length, self.config.stride)


def kind_of(config: FinetuneConfig, tokenizer: PreTrainedTokenizerBase) -> Kind:
    """The kind of the task that was asked for. Raises ConfigError where the tokenizer is none."""
    if config.is_squad:
        return Spans(config, tokenizer)
    return Texts(GLUE[config.task], tokenizer, config.length)


def over_sets(
    sets: Mapping[str, Sequence[Any]], measure: Callable[[Sequence[Any]], Mapping[str, float]]
) -> dict[str, float]:
    """The metrics of all sets, by name and what tells the set: of MNLI _matched, _mismatched."""
    return {
        f"{metric}{name.removeprefix('dev')}": value
        for name, samples in sets.items()
        for metric, value in measure(samples).items()
    }
