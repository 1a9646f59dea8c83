"""Where a task's samples come from: files of GLUE and SQuAD, or the hub."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.data.hub import in_words, reach
from trainers.errors import DataError
from trainers.finetuning.questions import Question, check, read_questions
from trainers.finetuning.settings import FinetuneConfig
from trainers.finetuning.tables import SUFFIXES, read_table
from trainers.finetuning.tasks import GLUE, GLUE_HUB, SQUAD_HUB, Example, Task, label_reader

Samples = Sequence[Example] | Sequence[Question]


@dataclass(frozen=True)
class TaskData:
    """What is learned from, the sets to be judged by, and what tells this data from another."""

    train: Samples
    dev: dict[str, Samples]
    origin: dict[str, str]  # sha256 of files, or the name of a dataset


def read_data(config: FinetuneConfig) -> TaskData:
    """The samples of the task. Raises DataError."""
    if config.data is None:
        return _from_hub(config.task)
    files = _files(config.task, config.data)
    if config.is_squad:
        answerable = config.task == "squad_v1"
        sets: dict[str, Samples] = {k: read_questions(f, answerable) for k, f in files.items()}
    else:
        sets = {name: read_table(file, GLUE[config.task]) for name, file in files.items()}
    origin = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    return TaskData(sets.pop("train"), sets, origin)


def _files(task: str, data: str) -> dict[str, Path]:
    """`train`, and the sets to be judged by, each in a file."""
    folder = Path(data)
    if folder.is_dir():
        names = ("train", *(GLUE[task].dev if task in GLUE else ("dev",)))
        return {name: _file_of(folder, name, task) for name in names}
    first, comma, second = data.partition(",")
    if comma and Path(first).is_file() and Path(second).is_file():
        return {"train": Path(first), "dev": Path(second)}
    raise DataError(f"data={data} is no folder, and no two files TRAIN_FILE,DEV_FILE")


def _file_of(folder: Path, name: str, task: str) -> Path:
    if task in GLUE:
        words = dict.fromkeys((name, name.replace("dev", "validation")))
        found = [folder / f"{word}{end}" for word in words for end in SUFFIXES]
        found = [file for file in found if file.is_file()]
        wanted = " or ".join(f"{name}{end}" for end in SUFFIXES)
    else:
        wanted = f"{name}*.json"
        found = sorted(folder.glob(wanted))
        version = "v1" if task == "squad_v1" else "v2"
        if len(found) > 1:
            found = [file for file in found if version in file.name]
    if len(found) == 1:
        return found[0]
    what = f"several {wanted} ({', '.join(f.name for f in found)})" if found else f"no {wanted}"
    raise DataError(f"data={folder} has {what}: name the files, data=TRAIN_FILE,DEV_FILE")


def _from_hub(task: str) -> TaskData:
    name, part = (GLUE_HUB, task) if task in GLUE else (SQUAD_HUB[task], None)
    reach(
        name,
        f"task={task}",
        "without the hub, set data=FOLDER with the task's files (train and dev), or "
        "data=TRAIN_FILE,DEV_FILE",
    )
    import datasets  # imports for seconds

    try:
        loaded = datasets.load_dataset(name, part)
    except Exception as error:  # of many kinds, and their words say which
        raise DataError(f"task={task}: {name} cannot be opened: {in_words(error)}") from error
    devs = GLUE[task].dev if task in GLUE else ("dev",)
    splits = {"train": "train", **{dev: dev.replace("dev", "validation") for dev in devs}}
    missing = [split for split in splits.values() if split not in loaded]
    if missing:
        raise DataError(f"task={task}: {name} has no split {missing[0]}, only {list(loaded)}")
    sets = {key: from_rows(loaded[split], task, split) for key, split in splits.items()}
    return TaskData(sets.pop("train"), sets, {"hub": name})


def from_rows(rows: Any, task: str, split: str) -> Samples:
    """The samples of a dataset as the hub has it. Raises DataError."""
    try:
        if task in GLUE:
            return [_example(row, GLUE[task]) for row in rows]
        found = [_question(row) for row in rows]
    except (KeyError, ValueError) as error:
        raise DataError(f"task={task}, split {split}: {in_words(error)}") from error
    for question in found:
        check(question, f"split {split}", task == "squad_v1")
    return found


def _example(row: dict[str, Any], task: Task) -> Example:
    # The hub's names stand last, and its labels are numbers.
    return Example(
        tuple(row[spellings[-1]].strip() for spellings in task.texts),
        label_reader(task)(str(row["label"])),
    )


def _question(row: dict[str, Any]) -> Question:
    answers = row["answers"]
    return Question(
        id=str(row["id"]),
        text=row["question"].strip(),
        context=row["context"],
        answers=tuple(answers["text"]),
        starts=tuple(answers["answer_start"]),
    )
