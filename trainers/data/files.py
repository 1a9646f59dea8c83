"""The files of a corpus: which they are, what is in them as a digest, and their bytes unpacked."""

import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from trainers.errors import DataError

TEXT, RECORDS, TABLES = (".txt",), (".jsonl", ".jsonl.gz", ".jsonl.zst"), (".parquet",)
_FORMATS = (*TEXT, *RECORDS, *TABLES)
_WIKI_FILE = re.compile(r"(^|_)wiki_\d+$")

# What reading a damaged compressed file raises (pyarrow's errors are OSError and ValueError).
DAMAGED = (EOFError, OSError, zlib.error, ValueError)


def text_files(path: str) -> list[Path]:
    """The file itself, or all files of a folder in a known format, sorted.

    The formats are .txt, WikiExtractor's (AA/wiki_00), .jsonl, .jsonl.gz, .jsonl.zst and .parquet.
    Raises DataError when the path is missing or the folder has no such file.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise DataError(f"data.path={path}: no such file or folder")
    found = sorted(
        Path(folder, name)
        for folder, _, names in os.walk(root, onerror=_refuse)
        for name in names
        if not name.startswith(".") and (name.endswith(_FORMATS) or _WIKI_FILE.search(name))
    )
    if not found:
        raise DataError(
            f"data.path={path}: no .txt file and no WikiExtractor file (wiki_00) in this folder, "
            f"and none of {', '.join((*RECORDS, *TABLES))}"
        )
    for file in found:
        if file.exists() and not file.is_file():
            raise DataError(f"{file}: neither a file nor a link to one; remove it from data.path")
    return found


def _refuse(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error


def digest_files(files: Iterable[Path]) -> str:
    """Digest of the contents of files in order: neither their place nor their dates count."""
    total = hashlib.blake2b(digest_size=20)
    for file in files:
        digest = hashlib.blake2b(digest_size=20)
        try:
            with open(file, "rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from error
        total.update(digest.digest())
    return total.hexdigest()


@contextmanager
def open_bytes(file: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked as its name says. Reading may raise one of `DAMAGED`."""
    try:
        stream = open(file, "rb")  # noqa: SIM115  closed below
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error
    with stream:
        if file.suffix == ".gz":
            yield gzip.GzipFile(fileobj=stream)  # type: ignore[misc]
        elif file.suffix == ".zst":
            import pyarrow  # slow to import, and here for one format alone

            yield io.BufferedReader(pyarrow.CompressedInputStream(stream, "zstd"), 2**16)
        else:
            yield stream
