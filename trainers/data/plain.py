"""Documents from plain text and from WikiExtractor's output, told apart by the first line.

* WikiExtractor: `<doc id=".." url=".." title=".."> ... </doc>` blocks. HTML entities are unescaped.
  The title line is dropped: it is no sentence, and the first sentence repeats it. A page that is
  nothing else is no document.
* plain text: blank lines stand between documents.

Lines end at a line feed only, with or without a carriage return: U+2028 and its like are ordinary
characters.
"""

import html
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from trainers.data.documents import MAX_PIECE_CHARACTERS, Piece, Trouble
from trainers.data.files import DAMAGED, open_bytes

# Longer lines are handed on in windows of this size, so that memory stays bounded.
MAX_LINE_BYTES = 2**18

_BLOCK_ADVICE = "extract the file again, or set data.on_bad_text=skip to pass over such lines"
_TITLE = re.compile(r'title="(.*)"\s*>\s*$')


class Line(NamedTuple):
    """A line, or a window of a long one: `begins` is False for all windows but the first."""

    number: int
    text: str
    begins: bool
    blank: bool  # a whole line of white space


def read_plain(file: Path, trouble: Trouble) -> Iterator[Piece]:
    """The documents of a .txt or WikiExtractor file.

    A line that is not UTF-8, or has a NUL, is bad text: "skip" drops the line, "replace" puts
    U+FFFD for the bad bytes. In a broken <doc> block, both keep what is inside blocks.
    """
    return _group(_events(file, trouble))


def _group(events: Iterator[str | None]) -> Iterator[Piece]:
    """Join lines to documents; None ends a document. A line past the size limit begins a piece."""
    held: list[str] = []
    size, begun = 0, False
    for text in events:
        if held and (text is None or size + len(text) > MAX_PIECE_CHARACTERS):
            yield "".join(held), text is None
            held, size, begun = [], 0, text is not None
        if text is not None:
            held.append(text if held or begun else text.removeprefix("\n"))
            size += len(text)
    if held:
        yield "".join(held), True


def _events(file: Path, trouble: Trouble) -> Iterator[str | None]:
    """The text of a file without what is format; None where a document ends."""
    lines = _lines(file, trouble)
    for line in lines:
        if not line.blank:
            rest = chain([line], lines)
            is_wiki = line.text.lstrip().startswith("<doc ")
            yield from _wiki_events(file, rest, trouble) if is_wiki else _plain_events(rest)


def _plain_events(lines: Iterable[Line]) -> Iterator[str | None]:
    for line in lines:
        yield None if line.blank else f"\n{line.text}" if line.begins else line.text


def _wiki_events(file: Path, lines: Iterable[Line], trouble: Trouble) -> Iterator[str | None]:
    opened = 0  # the line of the <doc> that is open
    title: str | None = None
    for line in lines:
        text = line.text.strip()
        if line.begins and text.startswith(("<doc ", "</doc>")):
            is_start = text.startswith("<doc ")
            if is_start == bool(opened):
                what = f"<doc> of line {opened} is not closed" if opened else "</doc> without <doc>"
                trouble.add(file, f"line {line.number}", what, _BLOCK_ADVICE)
            opened = line.number if is_start else 0
            match = _TITLE.search(text)
            title = html.unescape(match.group(1)) if match else None
            yield None
        elif not opened:
            if text:
                what = "text outside a <doc> block"
                trouble.add(file, f"line {line.number}", what, _BLOCK_ADVICE)
        elif text:
            if (plain := html.unescape(line.text)).strip() != title:
                yield f"\n{plain}" if line.begins else plain
            title = None  # only the first line can be the title
    if opened:
        what = f"the file ends inside the <doc> of line {opened}"
        trouble.add(file, f"line {opened}", what, _BLOCK_ADVICE)


def _lines(file: Path, trouble: Trouble) -> Iterator[Line]:
    """Lines from number 1, without white space at their end or a leading byte order mark."""
    previous = 0
    for number, offset, raw in _raw_lines(file, trouble):
        text = _decoded(file, number, offset, raw, trouble)
        if text is None:
            continue
        text = text.removeprefix("\ufeff") if offset == 0 else text
        begins, is_whole = number != previous, raw.endswith(b"\n")
        previous = number
        blank = not text.strip()
        if blank and not (begins and is_whole):
            continue  # a blank window of a long line is no blank line
        yield Line(number, text.rstrip() if is_whole else text, begins, blank)


def _decoded(file: Path, number: int, offset: int, raw: bytes, trouble: Trouble) -> str | None:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"line {number}, byte {offset + error.start}"
        what = f"0x{raw[error.start]:02x} is not UTF-8"
        trouble.add(file, where, what, _encoding_advice(raw))
        if trouble.on_bad_text == "skip":
            return None
        text = raw.decode("utf-8", errors="replace")
    if "\x00" in text:
        where = f"line {number}, byte {offset + raw.index(0)}"
        trouble.add(file, where, "NUL in the text", _encoding_advice(raw))
        return None if trouble.on_bad_text == "skip" else text.replace("\x00", "\ufffd")
    return text


def _encoding_advice(raw: bytes) -> str:
    encoding = "UTF-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "LATIN1"
    return (
        f"convert the file (iconv -f {encoding} -t UTF-8), "
        "or set data.on_bad_text=skip (drops such lines) or =replace (puts U+FFFD)"
    )


def _raw_lines(file: Path, trouble: Trouble) -> Iterator[tuple[int, int, bytes]]:
    """(line number, byte offset, bytes); a line over MAX_LINE_BYTES comes in several windows."""
    number, offset, carried = 1, 0, b""
    with open_bytes(file) as stream:
        try:
            while block := stream.readline(MAX_LINE_BYTES):
                window = carried + block
                whole = window.endswith(b"\n") or len(window) < MAX_LINE_BYTES
                cut = len(window) if whole else _safe_cut(window)
                yield number, offset, window[:cut]
                number, offset, carried = number + whole, offset + cut, window[cut:]
            if carried:
                yield number, offset, carried
        except DAMAGED as error:
            trouble.add(file, f"after line {number - 1}", f"cannot be read: {error}")


def _safe_cut(window: bytes) -> int:
    """Where to cut a long line: before its last blank, else between two characters."""
    cut = len(window[: window.rfind(b" ") + 1].rstrip(b" "))
    if cut:
        return cut
    cut = len(window) - 1
    while cut > len(window) - 4 and window[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
