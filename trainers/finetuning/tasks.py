"""What the tasks are: their columns, their labels, and the metrics that their authors publish."""

from collections.abc import Callable
from dataclasses import dataclass, field

GLUE_HUB = "nyu-mll/glue"  # its configurations have the names that the tasks have here
SQUAD_HUB = {"squad_v1": "rajpurkar/squad", "squad_v2": "rajpurkar/squad_v2"}


@dataclass(frozen=True)
class Task:
    """A task of GLUE: one or two texts in, a label or a score out.

    `texts` and `label` have for each column the names that it goes by: in GLUE's own files, on the
    hub, in copies. `labels` stand in the order of their numbers; none means a score.
    """

    name: str
    texts: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    label: tuple[str, ...] = ("label",)
    dev: tuple[str, ...] = ("dev",)  # names of its sets to be judged by
    headless: tuple[int, ...] = field(default=())  # columns of a file without names: label, texts


_SENTENCE, _PAIR = (("sentence",),), (("sentence1",), ("sentence2",))
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", _SENTENCE, ("negative", "positive"), ("accuracy",)),
        Task(
            "cola",
            _SENTENCE,
            ("unacceptable", "acceptable"),
            ("matthews_correlation",),
            headless=(1, 3),
        ),
        Task(
            "mrpc",
            (("#1 String", "sentence1"), ("#2 String", "sentence2")),
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            label=("Quality", "label"),
        ),
        Task("stsb", _PAIR, (), ("pearson", "spearman"), label=("score", "label")),
        Task(
            "mnli",
            (("sentence1", "premise"), ("sentence2", "hypothesis")),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            label=("gold_label", "label"),
            dev=("dev_matched", "dev_mismatched"),
        ),
        Task("qnli", (("question",), ("sentence",)), _ENTAILMENT, ("accuracy",)),
        Task("rte", _PAIR, _ENTAILMENT, ("accuracy",)),
    )
}


@dataclass(frozen=True)
class Example:
    """A sample of GLUE; `label` is the number of a label, or a score."""

    texts: tuple[str, ...]
    label: int | float


def label_reader(task: Task) -> Callable[[str], int | float]:
    """The function from a label as it is written, by name or number, to what it means.

    It raises ValueError, with the reason, for what is no label of the task.
    """
    known = {name: number for number, name in enumerate(task.labels)}
    known |= {str(number): number for number in known.values()}

    def read(text: str) -> int | float:
        if task.labels:
            if text not in known:
                raise ValueError(f"'{text}' is no label of {task.name}: {', '.join(known)}")
            return known[text]
        score = float(text)
        if not 0 <= score <= 5:
            raise ValueError(f"{score} is no score of {task.name}: 0 to 5")
        return score

    return read
