"""The files of a corpus: which they are, what is in them as a digest, and their bytes unpacked."""

import codecs
import gzip
import hashlib
import io
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from trainers.errors import DataError

TEXT, RECORDS, TABLES = (".txt",), (".jsonl", ".jsonl.gz", ".jsonl.zst"), (".parquet",)
_FORMATS = (*TEXT, *RECORDS, *TABLES)
_WHAT_IS_READ = f"What is read ends with {', '.join(_FORMATS)}, or is WikiExtractor's (wiki_00)"
_TOLD = 4  # endings and names of a folder without text, in the error
_WIKI_FILE = re.compile(r"(^|_)wiki_\d+$")
# Endings of what would pass for text, line by line, and be learned with its commas and its tags.
_NO_TEXT = (".csv", ".tsv", ".json", ".htm", ".html", ".xml")

Form = Literal["text", "records", "table"]

# What reading a damaged compressed file raises (pyarrow's errors are OSError and ValueError).
DAMAGED = (EOFError, OSError, zlib.error, ValueError)


def text_files(path: str) -> list[Path]:
    """The file itself, or all files of a folder in a known format, sorted.

    The formats are .txt, WikiExtractor's (AA/wiki_00), .jsonl, .jsonl.gz, .jsonl.zst and .parquet.
    A single file may have another name, and is then plain text. Raises DataError when the path is
    missing, the folder has no such file, or the name of the single file says that it is no text.
    """
    root = Path(path)
    if root.is_file():
        ending = Path(root.name.removesuffix(".gz").removesuffix(".zst")).suffix.lower()
        if ending in _NO_TEXT:
            raise DataError(f"data.path={path}: {ending} is not read. {_WHAT_IS_READ}")
        return [root]
    if not root.is_dir():
        raise DataError(f"data.path={path}: no such file or folder")
    found = sorted(file for file in _files(root) if _is_text(file.name))
    if not found:
        raise DataError(
            f"data.path={path}: no file of this folder is read: {_in_words(root)}. {_WHAT_IS_READ}"
        )
    for file in found:
        if file.exists() and not file.is_file():
            raise DataError(f"{file}: neither a file nor a link to one; remove it from data.path")
    return found


def form_of(file: Path) -> Form:
    """What a file is read as, by its name; WikiExtractor writes JSON lines under the same name."""
    if file.name.endswith(TABLES):
        return "table"
    if file.name.endswith(RECORDS) or (_WIKI_FILE.search(file.name) and _begins_an_object(file)):
        return "records"
    return "text"


def _begins_an_object(file: Path) -> bool:
    with open_bytes(file) as stream:
        while line := stream.readline(2**16):
            if line := line.removeprefix(codecs.BOM_UTF8).strip():
                return line.startswith(b"{")
    return False


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root, onerror=_refuse):
        yield from (Path(folder, name) for name in names)


def _is_text(name: str) -> bool:
    is_known = name.endswith(_FORMATS) or _WIKI_FILE.search(name) is not None
    return is_known and not name.startswith(".")


def _in_words(root: Path) -> str:
    """How many files there are of the commonest endings, and the first of their names."""
    files = sorted(_files(root))
    if not files:
        return "it has no files"
    kinds = Counter(file.suffix or "no ending" for file in files)
    told = [f"{count:,} with {kind}" for kind, count in kinds.most_common(_TOLD)]
    told += ["others"] * (len(kinds) > _TOLD)
    names = [str(file.relative_to(root)) for file in files[:_TOLD]]
    return f"it has {', '.join(told)} ({', '.join(names)}{', ...' * (len(files) > _TOLD)})"


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
