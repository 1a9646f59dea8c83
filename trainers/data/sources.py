"""Documents from files that a user names.

A document is a string whose line breaks end sentences. Two formats, told apart by the first line:

* WikiExtractor: `<doc id=".." url=".." title=".."> ... </doc>` blocks. HTML entities are unescaped.
  The title line is dropped: it is no sentence, and the first sentence repeats it. A page that is
  nothing else is no document.
* plain text: blank lines stand between documents.

Lines end at a line feed only, with or without a carriage return: U+2028 and its like are ordinary
characters.
"""

import hashlib
import html
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from trainers.errors import DataError

_LOG = logging.getLogger(__name__)

# Longer lines and documents are handed on in windows of this size, so that memory stays bounded.
MAX_LINE_BYTES = 2**20
MAX_DOCUMENT_CHARACTERS = 2**20

_WIKI_FILE = re.compile(r"(^|_)wiki_\d+$")
_BLOCK_ADVICE = "extract the file again, or set data.on_bad_text=skip to pass over such lines"
_TITLE = re.compile(r'title="(.*)"\s*>\s*$')


@dataclass(frozen=True)
class Source:
    """Documents that can be read more than once, and a digest of all that decides their content."""

    name: str
    digest: str
    documents: Callable[[], Iterator[str]]


def text_source(path: str, on_bad_text: str) -> Source:
    """The documents of a file or folder. Raises DataError as `text_files` and `read_text` do."""
    return Source(
        name=path,
        digest=digest_files(text_files(path)),
        documents=lambda: read_text(path, on_bad_text),
    )


def text_files(path: str) -> list[Path]:
    """The file itself, or all .txt and WikiExtractor files (AA/wiki_00) of a folder, sorted.

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
        if not name.startswith(".") and (name.endswith(".txt") or _WIKI_FILE.search(name))
    )
    if not found:
        raise DataError(
            f"data.path={path}: no .txt file and no WikiExtractor file (wiki_00) in this folder"
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


def read_text(path: str, on_bad_text: str = "strict") -> Iterator[str]:
    """The documents of a .txt or WikiExtractor file, or of all such files under a folder.

    `on_bad_text` says what happens to a line that is not UTF-8: "strict" raises DataError with
    file, line and byte offset, "skip" drops the line, "replace" puts U+FFFD for the bad bytes. In a
    broken <doc> block, "strict" raises too, the others keep what is inside blocks. What they pass
    over is counted and logged. Raises DataError as well for a file that cannot be read, and for a
    path without any document. A document over MAX_DOCUMENT_CHARACTERS comes in several parts.
    """
    num_documents = 0
    for file in text_files(path):
        trouble = _Trouble(file, on_bad_text)
        for document in _group(_events(file, trouble)):
            num_documents += 1
            yield document
        trouble.log()
    if not num_documents:
        raise DataError(f"data.path={path}: 0 documents in {path}, only blank lines or titles")


class _Trouble:
    """What is wrong with a file: an error when strict, else a count that is logged at its end."""

    def __init__(self, file: Path, on_bad_text: str) -> None:
        self.file, self.on_bad_text = file, on_bad_text
        self.count, self.first = 0, ""

    def add(self, where: str, what: str, advice: str) -> None:
        if self.on_bad_text == "strict":
            raise DataError(f"{self.file}: {where}: {what}; {advice}")
        self.first = self.first or f"{where}: {what}"
        self.count += 1

    def log(self) -> None:
        if self.count:
            _LOG.warning(
                "%s: data.on_bad_text=%s was applied %d times, first at %s",
                self.file, self.on_bad_text, self.count, self.first,
            )  # fmt: skip


def _group(events: Iterator[str | None]) -> Iterator[str]:
    """Join lines to documents; None ends a document, and so does a line past the size limit."""
    lines: list[str] = []
    size = 0
    for line in events:
        if lines and (line is None or size + len(line) > MAX_DOCUMENT_CHARACTERS):
            yield "\n".join(lines)
            lines, size = [], 0
        if line:
            lines.append(line)
            size += len(line)
    if lines:
        yield "\n".join(lines)


def _events(file: Path, trouble: _Trouble) -> Iterator[str | None]:
    """The lines of a file without those that are format; None where a document ends."""
    lines = _decoded_lines(file, trouble)
    for number, line in lines:
        if line:
            rest = chain([(number, line)], lines)
            is_wiki = line.startswith("<doc ")
            yield from _wiki_events(rest, trouble) if is_wiki else _plain_events(rest)


def _plain_events(lines: Iterable[tuple[int, str]]) -> Iterator[str | None]:
    for _, line in lines:
        yield line or None


def _wiki_events(lines: Iterable[tuple[int, str]], trouble: _Trouble) -> Iterator[str | None]:
    opened = 0  # the line of the <doc> that is open
    title: str | None = None
    for number, line in lines:
        if line.startswith(("<doc ", "</doc>")):
            is_start = line.startswith("<doc ")
            if is_start == bool(opened):
                what = f"<doc> of line {opened} is not closed" if opened else "</doc> without <doc>"
                trouble.add(f"line {number}", what, _BLOCK_ADVICE)
            opened = number if is_start else 0
            match = _TITLE.search(line)
            title = html.unescape(match.group(1)) if match else None
            yield None
        elif not opened:
            if line:
                trouble.add(f"line {number}", "text outside a <doc> block", _BLOCK_ADVICE)
        elif line:
            text = html.unescape(line)
            if text != title:
                yield text
            title = None  # only the first line can be the title
    if opened:
        what = f"the file ends inside the <doc> of line {opened}"
        trouble.add(f"line {opened}", what, _BLOCK_ADVICE)


def _decoded_lines(file: Path, trouble: _Trouble) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and lines without white space around them or a leading BOM."""
    previous = 0
    for number, offset, raw in _raw_lines(file):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"0x{raw[error.start]:02x} is not UTF-8"
            trouble.add(f"line {number}, byte {offset + error.start}", what, _encoding_advice(raw))
            if trouble.on_bad_text == "skip":
                continue
            text = raw.decode("utf-8", errors="replace")
        line = (text.removeprefix("\ufeff") if offset == 0 else text).strip()
        is_piece = number == previous or not raw.endswith(b"\n")
        previous = number
        if line or not is_piece:  # a blank piece of a long line is no blank line
            yield number, line


def _encoding_advice(raw: bytes) -> str:
    encoding = "UTF-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "LATIN1"
    return (
        f"convert the file (iconv -f {encoding} -t UTF-8), "
        "or set data.on_bad_text=skip (drops such lines) or =replace (puts U+FFFD)"
    )


def _raw_lines(file: Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number, byte offset, bytes); a line over MAX_LINE_BYTES comes in several pieces."""
    number, offset, carried = 1, 0, b""
    try:
        with open(file, "rb") as stream:
            while block := stream.readline(MAX_LINE_BYTES):
                piece = carried + block
                whole = piece.endswith(b"\n") or len(piece) < MAX_LINE_BYTES
                cut = len(piece) if whole else _safe_cut(piece)
                yield number, offset, piece[:cut]
                number, offset, carried = number + whole, offset + cut, piece[cut:]
            if carried:
                yield number, offset, carried
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from error


def _safe_cut(piece: bytes) -> int:
    """Where to cut a long line: after its last blank, else between two characters."""
    cut = piece.rfind(b" ") + 1
    if cut:
        return cut
    cut = len(piece) - 1
    while cut > len(piece) - 4 and piece[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
