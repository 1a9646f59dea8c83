"""Tokens on disk: written once as a stream, then read as a memory map.

tokens.bin           uint16 below 65,536 entries of the vocabulary, else uint32; no special tokens
sentence_starts.npy  int64 [num_sentences + 1]: where each sentence starts in tokens.bin
document_starts.npy  int64 [num_documents + 1]: where each document starts among the sentences
meta.json            counts, sizes, the digest of the content
"""

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.errors import DataError

FORMAT = 1
_FLUSH_TOKENS = 2**20


@dataclass(frozen=True)
class StoreMeta:
    """What meta.json holds. `max_sentence_tokens` is the limit that the writer cut sentences to."""

    format: int
    dtype: str
    num_tokens: int
    num_sentences: int
    num_documents: int
    max_sentence_tokens: int
    sha256: str


@dataclass(frozen=True)
class Store:
    """Token ids of documents of sentences; no document and no sentence is empty."""

    tokens: NDArray[np.unsignedinteger]
    sentence_starts: NDArray[np.int64]
    document_starts: NDArray[np.int64]
    meta: StoreMeta
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> "Store":
        """Map a store into memory. Raises DataError when a file is missing or its size is wrong."""
        try:
            meta = StoreMeta(**json.loads((folder / "meta.json").read_text()))
            tokens = mapped(folder / "tokens.bin", meta.dtype)
            sentence_starts = np.load(folder / "sentence_starts.npy", mmap_mode="r")
            document_starts = np.load(folder / "document_starts.npy", mmap_mode="r")
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise DataError(f"{folder}: not a whole token store: {error}") from error
        sizes = (len(tokens), len(sentence_starts) - 1, len(document_starts) - 1)
        expected = (meta.num_tokens, meta.num_sentences, meta.num_documents)
        if meta.format != FORMAT or sizes != expected:
            raise DataError(
                f"{folder}: (tokens, sentences, documents) = {sizes}, format {meta.format}, "
                f"but meta.json says {expected} and this program reads format {FORMAT}"
            )
        # Plain arrays over the same mapping: indexing a np.memmap costs several times as much.
        starts = (np.asarray(sentence_starts), np.asarray(document_starts))
        return cls(tokens, *starts, meta, folder)

    def windows(self, first: NDArray[np.int64], length: int) -> NDArray[np.unsignedinteger]:
        """[B, length]: tokens from each place of `first` [B]; outside of the text any token."""
        last = len(self.tokens) - length
        if last >= 0 and first.min(initial=0) >= 0 and first.max(initial=0) <= last:
            # Row by row, as they lie there: several times as fast as token by token.
            return np.lib.stride_tricks.sliding_window_view(self.tokens, length)[first]
        return np.take(self.tokens, first[:, None] + np.arange(length), mode="clip")

    def count(self, token: int) -> int:
        """How often a token occurs."""
        blocks = range(0, len(self.tokens), _FLUSH_TOKENS)
        return sum(int((self.tokens[at : at + _FLUSH_TOKENS] == token).sum()) for at in blocks)


def mapped(file: Path, dtype: str) -> NDArray[Any]:
    """The numbers in a file, mapped into memory where there are any: nothing cannot be mapped."""
    if not file.stat().st_size:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(file, dtype, mode="r"))


class StoreWriter:
    """Writes a store document by document, with memory for its sentence starts only.

    Sentences over `max_sentence_tokens` are cut into pieces; empty sentences and documents vanish.
    """

    def __init__(self, folder: Path, vocab_size: int, max_sentence_tokens: int) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._limit = max_sentence_tokens
        self._dtype = "uint16" if vocab_size < 2**16 else "uint32"
        self._buffer = array("H" if vocab_size < 2**16 else "I")
        self._sentence_starts = array("q", [0])
        self._document_starts = array("q", [0])
        self._num_tokens = 0
        self._digest = hashlib.sha256()
        self._file = open(folder / "tokens.bin", "wb")  # noqa: SIM115  closed by `close`

    def add_sentence(self, ids: Sequence[int]) -> None:
        """Append a sentence to the document that is open."""
        for start in range(0, len(ids), self._limit):
            piece = ids[start : start + self._limit]
            self._buffer.extend(piece)
            self._num_tokens += len(piece)
            self._sentence_starts.append(self._num_tokens)
        if len(self._buffer) >= _FLUSH_TOKENS:
            self._flush()

    def end_document(self) -> None:
        """Close the open document; the next sentence starts another."""
        num_sentences = len(self._sentence_starts) - 1
        if num_sentences > self._document_starts[-1]:
            self._document_starts.append(num_sentences)

    def close(self) -> StoreMeta:
        """Write what is left. The store is whole when this returns."""
        self.end_document()
        self._flush()
        self._file.close()
        for name in ("sentence_starts", "document_starts"):
            starts = np.frombuffer(getattr(self, f"_{name}"), dtype=np.int64)
            np.save(self._folder / f"{name}.npy", starts)
            self._digest.update(starts.tobytes())
        meta = StoreMeta(
            format=FORMAT,
            dtype=self._dtype,
            num_tokens=self._num_tokens,
            num_sentences=len(self._sentence_starts) - 1,
            num_documents=len(self._document_starts) - 1,
            max_sentence_tokens=self._limit,
            sha256=self._digest.hexdigest(),
        )
        (self._folder / "meta.json").write_text(json.dumps(asdict(meta), indent=2) + "\n")
        return meta

    def _flush(self) -> None:
        content = self._buffer.tobytes()
        self._file.write(content)
        self._digest.update(content)
        del self._buffer[:]


def merge_stores(folders: Sequence[Path], merged: Path) -> StoreMeta:
    """Join stores end to end, as if one writer had written them, with memory for one of them."""
    stores = [Store.open(folder) for folder in folders]
    metas = [store.meta for store in stores]
    merged.mkdir(parents=True)
    digest = hashlib.sha256()
    with open(merged / "tokens.bin", "wb") as file:
        for store in stores:
            for start in range(0, len(store.tokens), _FLUSH_TOKENS):
                content = store.tokens[start : start + _FLUSH_TOKENS].tobytes()
                file.write(content)
                digest.update(content)
    for name, sizes in (
        ("sentence_starts", [meta.num_tokens for meta in metas]),
        ("document_starts", [meta.num_sentences for meta in metas]),
    ):
        _join_starts(merged / f"{name}.npy", [getattr(s, name) for s in stores], sizes, digest)
    meta = replace(
        metas[0],
        num_tokens=sum(meta.num_tokens for meta in metas),
        num_sentences=sum(meta.num_sentences for meta in metas),
        num_documents=sum(meta.num_documents for meta in metas),
        sha256=digest.hexdigest(),
    )
    (merged / "meta.json").write_text(json.dumps(asdict(meta), indent=2) + "\n")
    return meta


def _join_starts(
    file: Path, parts: Sequence[NDArray[np.int64]], sizes: Sequence[int], digest: Any
) -> None:
    """Write the starts of all parts, each moved behind what the parts before it hold."""
    count = 1 + sum(len(part) - 1 for part in parts)
    header = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
    with open(file, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        before = 0
        for number, (part, size) in enumerate(zip(parts, sizes, strict=True)):
            content = (part[min(number, 1) :] + before).tobytes()
            stream.write(content)
            digest.update(content)
            before += size
