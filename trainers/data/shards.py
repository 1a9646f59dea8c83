"""Text on disk between reading and encoding: one shard for each part of a source.

texts.bin      the units of text (sentences, or pieces of documents), UTF-8, one after the other
units.npy      int64 [num_units]: where each unit ends in texts.bin
documents.npy  uint64 [num_documents, 2]: the number of units up to its end; the hash of its content
meta.json      how much bad text was passed over

A shard appears whole, under its name, by one rename.
"""

import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.data.documents import Part, Piece, Trouble
from trainers.data.sentences import split_sentences
from trainers.data.store import mapped
from trainers.durable import sync

_MAX_WORD_CHARACTERS = 256  # WordPiece makes [UNK] of a word of over 100
_LONG_WORD = re.compile(rf"\S{{{_MAX_WORD_CHARACTERS}}}(?=\S)")
_FLUSH_BYTES = 2**22


@dataclass(frozen=True)
class ShardMeta:
    """What was passed over while a part was read, and the first place."""

    num_bad: int
    first_bad: str


@dataclass(frozen=True)
class Shard:
    """The text of one part of a source, mapped into memory."""

    texts: NDArray[np.uint8]
    unit_ends: NDArray[np.int64]
    document_ends: NDArray[np.int64]  # in units
    hashes: NDArray[np.uint64]
    meta: ShardMeta

    @classmethod
    def open(cls, folder: Path) -> "Shard":
        """Map a shard that `write_shard` has finished."""
        documents = np.load(folder / "documents.npy").reshape(-1, 2)
        return cls(
            mapped(folder / "texts.bin", "uint8"),
            # One for each sentence of a file of any size: each process reads those of its task.
            np.asarray(np.load(folder / "units.npy", mmap_mode="r")),
            documents[:, 0].astype(np.int64),
            documents[:, 1],
            ShardMeta(**json.loads((folder / "meta.json").read_text())),
        )

    def units(self, first: int, last: int) -> list[str]:
        """The texts of units [first, last)."""
        ends = self.unit_ends[first:last].tolist()
        begin = start = int(self.unit_ends[first - 1]) if first else 0
        content = self.texts[begin : ends[-1] if ends else begin].tobytes()
        found = []
        for end in ends:
            found.append(content[start - begin : end - begin].decode())
            start = end
        return found

    def document_bytes(self) -> NDArray[np.int64]:
        """The bytes of text in each document."""
        ends = self.unit_ends[self.document_ends - 1]
        return np.diff(ends, prepend=0)


def write_shard(part: Part, units: str, on_bad_text: str, folder: Path) -> int:
    """Read a part and leave its text in `folder`, in units ("sentences" or "documents").

    Returns the number of documents; empty ones vanish. Raises what reading raises.
    """
    building = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    trouble = Trouble(on_bad_text)
    to_units = _sentences if units == "sentences" else _as_it_is
    unit_ends, documents = array("q"), array("Q")
    with open(building / "texts.bin", "wb") as file:
        held, size = bytearray(), 0
        for content, order in _documents(part.read(trouble), to_units):
            if content is None:
                documents.extend((len(unit_ends), order))
                continue
            held += content
            size += len(content)
            unit_ends.append(size)
            if len(held) > _FLUSH_BYTES:
                file.write(held)
                held.clear()
        file.write(held)
    np.save(building / "units.npy", np.frombuffer(unit_ends, np.int64))
    np.save(building / "documents.npy", np.frombuffer(documents, np.uint64))
    meta = ShardMeta(trouble.count, trouble.first)
    (building / "meta.json").write_text(json.dumps(asdict(meta)))
    trouble.log(part.name)
    publish(building, folder)
    return len(documents) // 2


def publish(building: Path, folder: Path) -> None:
    """Give a folder that is finished its name; what lies under a name is on the disk."""
    for file in building.rglob("*"):
        sync(file)
    building.rename(folder)
    sync(folder.parent)


def _sentences(text: str) -> list[str]:
    return [cut_words(sentence) for sentence in split_sentences(text)]


def _as_it_is(text: str) -> list[str]:
    return [text]


def _documents(
    pieces: Iterable[Piece], to_units: Callable[[str], list[str]]
) -> Iterator[tuple[bytes | None, int]]:
    """(text of a unit, 0), and (None, hash of the content) after the last unit of a document."""
    digest = hashlib.blake2b(digest_size=8)
    blank: list[bytes] = []  # units without a word: kept back until it is known that one follows
    has_words = False
    for text, ends in pieces:
        for unit in to_units(text):
            # Strings of Python sources can hold lone surrogates, which UTF-8 cannot.
            content = unit.encode("utf-8", "replace")
            has_words = has_words or bool(unit.strip())
            if not has_words:
                blank.append(content)
                continue
            for each in chain(blank, [content]):
                digest.update(each + b"\n")
                yield each, 0
            blank = []
        if ends:
            if has_words:
                yield None, int.from_bytes(digest.digest(), "big")
            digest, has_words, blank = hashlib.blake2b(digest_size=8), False, []


def cut_words(text: str) -> str:
    """Put blanks into monsters such as base64: training a vocabulary is quadratic in a word."""
    return _LONG_WORD.sub(r"\g<0> ", text) if len(text) > _MAX_WORD_CHARACTERS else text
