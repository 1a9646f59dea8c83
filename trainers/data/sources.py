"""Documents from files that a user names: text, WikiExtractor, JSON lines, parquet, in any mixture.

A document is a string whose line breaks end sentences.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from trainers.data.documents import Part, Piece, Source, Trouble, joined
from trainers.data.files import digest_files, form_of, text_files
from trainers.data.plain import read_plain
from trainers.data.records import read_jsonl, read_parquet

_PART_BYTES = 2**26  # small files share a part up to this size


def text_source(path: str, column: str, join_records: int = 1) -> Source:
    """The documents of a file or folder, so many records of a file in each.

    `column` holds the text of records.

    Raises DataError as `text_files` does, and while reading, for what is bad text (see `plain` and
    `records`) and a file that cannot be read.
    """
    files = text_files(path)
    # The same bytes are other documents under a name that says so: a.txt, a.jsonl.
    forms = hashlib.sha256(" ".join(map(form_of, files)).encode()).hexdigest()
    return Source(
        name=path,
        digest=f"{digest_files(files)} {forms} {column} {join_records}",
        parts=partial(_parts, path, column, join_records),
    )


def _parts(path: str, column: str, join_records: int) -> list[Part]:
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
        Part(str(files[0]), partial(_read_files, tuple(files), column, join_records), size)
        for files, size in zip(groups, sizes, strict=True)
    ]


def _read_files(
    files: Sequence[Path], column: str, join_records: int, trouble: Trouble
) -> Iterator[Piece]:
    for file in files:
        read = partial(_read_file, file, column)
        yield from joined(read, join_records, trouble) if join_records > 1 else read(trouble)


def _read_file(file: Path, column: str, trouble: Trouble) -> Iterator[Piece]:
    match form_of(file):
        case "records":
            return read_jsonl(file, column, trouble)
        case "table":
            return read_parquet(file, column, trouble)
        case "text":
            return read_plain(file, trouble)
