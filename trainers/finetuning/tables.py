"""GLUE's samples from .tsv and .csv, as GLUE publishes them and as copies go about."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from trainers.errors import DataError
from trainers.finetuning.tasks import Example, Task, label_reader

SUFFIXES = (".tsv", ".csv")


def read_table(file: Path, task: Task) -> list[Example]:
    """The samples of a file with named columns.

    GLUE's .tsv know no quotes: a line is a row, whatever stands in it. Raises DataError that names
    the file and the line for a missing column, a row too short, and what is no label.
    """
    rows = list(_rows(file))
    places, headless = _columns(rows[0][1] if rows else [], task, file)
    read, found = label_reader(task), []
    for number, row in rows if headless else rows[1:]:
        where = f"{file}, line {number}"
        if len(row) <= max(places):
            raise DataError(f"{where}: {len(row)} columns, at least {max(places) + 1} are needed")
        label, *texts = (row[place].strip() for place in places)
        try:
            found.append(Example(tuple(texts), read(label)))
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
    if not found:
        raise DataError(f"{file} has no samples")
    return found


def _columns(first: Sequence[str], task: Task, file: Path) -> tuple[list[int], bool]:
    """Where label and texts stand, and whether the file begins without names."""
    names = [name.strip() for name in first]
    places = [
        next((names.index(name) for name in spellings if name in names), None)
        for spellings in (task.label, *task.texts)
    ]
    found = [place for place in places if place is not None]
    if len(found) == len(places):
        return found, False
    if task.headless and not found and len(first) > max(task.headless):
        return list(task.headless), True
    lacking = next(s for s, p in zip((task.label, *task.texts), places, strict=True) if p is None)
    raise DataError(
        f"{file}, line 1: no column {' or '.join(map(repr, lacking))}, which {task.name} needs; "
        f"there is {', '.join(map(repr, names))}"
    )


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of their last line, from 1; empty lines are none."""
    try:
        # Bytes, for read_text() makes ends of lines of what stands inside sentences; MRPC begins
        # with a byte order mark.
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no UTF-8: byte {error.start}") from error
    lines = text.split("\n")  # and "\r" before it; no other end of line
    if file.suffix == ".tsv":
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, line.rstrip("\r").split("\t")
        return
    reader = csv.reader((f"{line}\n" for line in lines), strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}") from error
