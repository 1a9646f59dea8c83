"""Documents from files that a user names: text, WikiExtractor, JSON lines, parquet, in any mixture.

A document is a string whose line breaks end sentences.
"""

import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from trainers.data.documents import Part, Piece, Source, Trouble
from trainers.data.files import RECORDS, TABLES, digest_files, text_files
from trainers.data.plain import read_plain
from trainers.data.records import read_jsonl, read_parquet

_PART_BYTES = 2**26  # small files share a part up to this size


def text_source(path: str, column: str) -> Source:
    """The documents of a file or folder; `column` holds the text of records.

    Raises DataError as `text_files` does, and while reading, for what is bad text (see `plain` and
    `records`) and a file that cannot be read.
    """
    return Source(
        name=path,
        digest=f"{digest_files(text_files(path))} {column}",
        parts=partial(_parts, path, column),
    )


def _parts(path: str, column: str) -> list[Part]:
    """Whole files in the order of their names."""
    groups: list[list[Path]] = []
    sizes: list[int] = []
    for file in text_files(path):
        size = os.path.getsize(file)
        if not groups or sizes[-1] + size > _PART_BYTES:
            groups.append([])
            sizes.append(0)
        groups[-1].append(file)
        sizes[-1] += size
    return [
        Part(str(files[0]), partial(_read_files, tuple(files), column), size)
        for files, size in zip(groups, sizes, strict=True)
    ]


def _read_files(files: Sequence[Path], column: str, trouble: Trouble) -> Iterator[Piece]:
    for file in files:
        if file.name.endswith(RECORDS):
            yield from read_jsonl(file, column, trouble)
        elif file.name.endswith(TABLES):
            yield from read_parquet(file, column, trouble)
        else:
            yield from read_plain(file, trouble)
