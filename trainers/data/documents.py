"""A stream of documents, each in pieces that fit into memory, and what was wrong with it."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainers.errors import DataError

_LOG = logging.getLogger(__name__)

# Longer documents are handed on in pieces of about this size, so that memory stays bounded.
MAX_PIECE_CHARACTERS = 2**18

# Text, and whether its document ends with it. The pieces of a document joined are its text. They
# are cut before white space: there no tokenizer of the families puts two characters together.
Piece = tuple[str, bool]

_LAST_WORD = re.compile(r"\S(?=\s+\S*\Z)")


class Trouble:
    """What is wrong with a text: an error when strict, else a count that is logged at its end."""

    def __init__(self, on_bad_text: str) -> None:
        self.on_bad_text = on_bad_text
        self.count, self.first = 0, ""

    def add(self, file: Path | str, where: str, what: str, advice: str = "") -> None:
        """Note one bad place. Raises DataError when bad text is not to be passed over."""
        if self.on_bad_text == "strict":
            advice = advice or "mend it, or set data.on_bad_text=skip to pass over what is bad"
            raise DataError(f"{file}: {where}: {what}; {advice}")
        self.first = self.first or f"{file}: {where}: {what}"
        self.count += 1

    def log(self, name: str) -> None:
        """Tell how often something was passed over."""
        if self.count:
            _LOG.warning(
                "%s: data.on_bad_text=%s was applied %d times, first at %s",
                name, self.on_bad_text, self.count, self.first,
            )  # fmt: skip


Read = Callable[[Trouble], Iterator[Piece]]


@dataclass(frozen=True)
class Part:
    """A share of a source that one process reads; `read` can be sent to another process."""

    name: str
    read: Read
    num_bytes: int  # about as much as is read, to tell whether it is worth another process
    group: int = 0  # which source of a mix it belongs to


@dataclass(frozen=True)
class Source:
    """Documents that can be read more than once, and a digest of all that decides their content.

    `parts` finds the parts, in an order that depends on nothing but the content; it may take long.
    `weights`, one for each source of a mix: its share of the text. Empty: all text is taken.
    """

    name: str
    digest: str
    parts: Callable[[], list[Part]]
    weights: tuple[float, ...] = ()


def cut(text: str) -> Iterator[Piece]:
    """A whole document as pieces."""
    start = 0
    while len(text) - start > MAX_PIECE_CHARACTERS:
        end = start + _place_to_cut(text[start : start + MAX_PIECE_CHARACTERS])
        yield text[start:end], False
        start = end
    yield text[start:] if start else text, True


def _place_to_cut(text: str) -> int:
    """Before the last line break, or else the last white space; else at the end."""
    for end in (text.rfind("\n"), len(text)):
        # The white space that is cut before must be the first of its run.
        found = _LAST_WORD.search(text, max(0, end - 2**12), end + 1) if end > 0 else None
        if found:
            return found.end()
    return len(text)


def joined(read: Read, number: int, trouble: Trouble) -> Iterator[Piece]:
    """The documents of `read`, `number` of them together as the lines of one.

    `read` is of one file: no document begins in one file and ends in another.
    """
    held: Piece | None = None
    count, begins = 0, True
    for text, ends in read(trouble):
        if held is not None:
            yield held
        count = count % number
        text = "\n" + text if begins and count else text
        count, begins = count + ends, ends
        held = text, count == number
    if held is not None:
        yield held[0], True


def no_column(column: str, names: Iterable[str]) -> str:
    """What to say of records that have other columns than the one that was asked for."""
    found = list(names)
    shown = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
    key = "data.text_column, or data.sources[].text_column of a mix"
    return f"no column '{column}' ({key}), there is {shown or 'none at all'}"


def check_text(text: object, file: Path | str, where: str, trouble: Trouble) -> str | None:
    """The text of a record, if it is one; None when it is to be passed over."""
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        trouble.add(file, where, f"the text is {kind}, not a string")
        return None
    if not text.strip():
        trouble.add(file, where, "the text is empty")
        return None
    if "\x00" in text:
        trouble.add(file, where, "NUL in the text")
        return text.replace("\x00", "\ufffd") if trouble.on_bad_text == "replace" else None
    return text
