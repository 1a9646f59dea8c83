"""Documents from records with a text in one column: lines of JSON, and parquet.

Bad are records that are broken, lack the column, or hold something else than text in it, an empty
text, or a NUL. Records are numbered from 1, those that are passed over too.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainers.data.documents import Piece, Trouble, check_text, cut, no_column
from trainers.data.files import DAMAGED, open_bytes
from trainers.errors import DataError

MAX_RECORD_BYTES = 2**28  # a record has to fit into memory
_ROWS_AT_ONCE = 64


def read_jsonl(file: Path, column: str, trouble: Trouble) -> Iterator[Piece]:
    """The texts of a .jsonl file, plain, .gz or .zst: one object a line, blank lines aside."""
    for number, line in _lines(file, trouble):
        where = f"record {number}"
        content = _decoded(line, "line", file, where, trouble)
        if content is None:
            continue
        try:
            record = json.loads(content.removeprefix("\ufeff") if number == 1 else content)
        except (ValueError, RecursionError) as error:
            trouble.add(file, where, f"broken JSON: {error}")
        else:
            if not isinstance(record, dict):
                trouble.add(file, where, f"not an object but {type(record).__name__}")
            elif column not in record:
                trouble.add(file, where, no_column(column, record))
            elif text := check_text(record[column], file, where, trouble):
                yield from cut(text)


def _decoded(raw: bytes, of: str, file: Path, where: str, trouble: Trouble) -> str | None:
    """Bytes as text, U+FFFD for bad ones if that is wanted; None when they are passed over."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{raw[error.start]:02x}"
        trouble.add(file, where, f"{byte} at byte {error.start} of the {of} is not UTF-8")
    return raw.decode("utf-8", "replace") if trouble.on_bad_text == "replace" else None


def _lines(file: Path, trouble: Trouble) -> Iterator[tuple[int, bytes]]:
    number = 0
    with open_bytes(file) as stream:
        try:
            while line := stream.readline(MAX_RECORD_BYTES):
                number += 1
                if len(line) == MAX_RECORD_BYTES:
                    while (more := stream.readline(2**20)) and not more.endswith(b"\n"):
                        pass
                    what = f"over {MAX_RECORD_BYTES:,} bytes, which is the most"
                    trouble.add(file, f"record {number}", what)
                elif not line.isspace():
                    yield number, line
        except DAMAGED as error:
            trouble.add(file, f"record {number + 1}", f"the file cannot be read on: {error}")


def read_parquet(file: Path, column: str, trouble: Trouble) -> Iterator[Piece]:
    """The texts of a parquet file, a few rows in memory at a time."""
    import pyarrow  # slow to import, and here for two formats alone
    import pyarrow.parquet

    number = 0
    try:
        with open(file, "rb") as stream, pyarrow.parquet.ParquetFile(stream) as table:
            names = table.schema_arrow.names
            if column not in names:
                trouble.add(file, "its schema", no_column(column, names))
                return
            for batch in table.iter_batches(_ROWS_AT_ONCE, columns=[column]):
                for value in batch.column(0):
                    number += 1
                    if text := _text(value, file, f"record {number}", trouble):
                        yield from cut(text)
    except (*DAMAGED, pyarrow.ArrowException) as error:
        if isinstance(error, OSError) and error.strerror:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        trouble.add(file, f"record {number + 1}", f"the file cannot be read on: {error}")


def _text(value: Any, file: Path, where: str, trouble: Trouble) -> str | None:
    """The text of a cell, if it is one; arrow takes any bytes for a string."""
    try:
        text = value.as_py()
    except UnicodeDecodeError:
        text = _decoded(value.as_buffer().to_pybytes(), "text", file, where, trouble)
        if text is None:
            return None
    return check_text(text, file, where, trouble)
