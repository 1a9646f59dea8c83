"""From text to token stores: read, train the vocabulary, encode; once for each set of inputs.

<data.cache_dir>/<name>-<hash of all inputs>/
    tokenizer.json  the vocabulary
    train/          the store to train on
    heldout/        the store to measure on: documents drawn by the hash of their content
    meta.json       fingerprints
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from trainers.config import DataConfig
from trainers.data.documentation import documentation_source
from trainers.data.progress import Step, step
from trainers.data.publish import build_once
from trainers.data.sentences import split_sentences
from trainers.data.sources import Source, digest_files, text_source
from trainers.data.store import Store, StoreWriter
from trainers.data.tokenizer import (
    SpecialIds,
    fingerprint,
    load_tokenizer,
    special_ids,
    tokenizer_file,
    train_tokenizer,
)
from trainers.errors import ConfigError, DataError

# The programs that decide what text becomes: a change in them makes other data.
_CODE = ("docstrings", "documentation", "prepare", "sentences", "sources", "store", "tokenizer")

# Two of each part: a random next sentence needs another document.
MIN_DOCUMENTS = 2
_ENCODED_AT_ONCE = 8192
MAX_UNKNOWN = 0.9  # share of [UNK] beyond which a vocabulary is not of this text

_MAX_WORD_CHARACTERS = 256  # WordPiece makes [UNK] of a word of over 100
_LONG_WORD = re.compile(rf"\S{{{_MAX_WORD_CHARACTERS}}}(?=\S)")


@dataclass(frozen=True)
class Prepared:
    """What a run reads. `fingerprint` names the content: the same for the same tokens anywhere."""

    tokenizer: Tokenizer
    special: SpecialIds
    train: Store
    heldout: Store
    fingerprint: str
    folder: Path


def prepare(data: DataConfig, sequence_length: int, timeout_seconds: float = 3600.0) -> Prepared:
    """Find the prepared data in the cache, or build it; safe to call from any number of processes.

    Sentences are cut to half of what `sequence_length` leaves beside the special tokens, so that
    two always fit. The builder shows its progress on stderr; the others wait at most
    `timeout_seconds`. Raises ConfigError for settings that cannot work, DataError for text that is
    missing, malformed or too small, and StorageError when the cache cannot be written.
    """
    if sequence_length < 5:
        raise ConfigError(f"objective.sequence_length={sequence_length}: need at least 5")
    source = _open_source(data)
    max_sentence_tokens = (sequence_length - 3) // 2
    key = _key(data, source, max_sentence_tokens)
    folder = Path(data.cache_dir) / f"{data.name}-{key}"
    build = partial(_build, data, source, max_sentence_tokens)
    build_once(folder, build, _is_whole, timeout_seconds)
    return _open(folder)


def _open_source(data: DataConfig) -> Source:
    if data.name == "pydocs":
        return documentation_source(data.packages)
    if data.name == "text" and data.path:
        return text_source(data.path, data.on_bad_text)
    raise ConfigError(
        f"data={data.name}, data.path={data.path}: need data=pydocs, or data=text with data.path"
    )


def _key(data: DataConfig, source: Source, max_sentence_tokens: int) -> str:
    """Hash of everything that decides what is built: contents of files, settings, programs."""
    if data.tokenizer:
        vocabulary = digest_files([tokenizer_file(data.tokenizer)])
    else:
        vocabulary = f"train {data.vocab_size} with tokenizers {tokenizers.__version__}"
    inputs = {
        "code": digest_files(Path(__file__).with_name(f"{name}.py") for name in _CODE),
        "source": source.digest,
        "vocabulary": vocabulary,
        "lowercase": data.lowercase,
        "heldout_fraction": data.heldout_fraction,
        "on_bad_text": data.on_bad_text,
        "max_sentence_tokens": max_sentence_tokens,
    }
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]


def _open(folder: Path) -> Prepared:
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        fingerprint = json.loads((folder / "meta.json").read_text())["fingerprint"]
        special = special_ids(tokenizer)
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{folder}: damaged: {error}; remove it and start again") from error
    return Prepared(
        tokenizer=tokenizer,
        special=special,
        train=Store.open(folder / "train"),
        heldout=Store.open(folder / "heldout"),
        fingerprint=fingerprint,
        folder=folder,
    )


def _is_whole(folder: Path) -> bool:
    try:
        _open(folder)
    except DataError:
        return False
    return True


def _build(data: DataConfig, source: Source, max_sentence_tokens: int, folder: Path) -> None:
    train_lines, heldout_lines = folder / "train.lines", folder / "heldout.lines"
    _split(source, data.heldout_fraction, train_lines, heldout_lines)
    if data.tokenizer:
        tokenizer = load_tokenizer(data.tokenizer, data.lowercase)
    else:
        with step("training the vocabulary"):
            tokenizer = train_tokenizer(train_lines, data.vocab_size, data.lowercase)
    tokenizer.save(str(folder / "tokenizer.json"))
    with step("encoding", "tokens") as progress:
        digests = [
            _encode(tokenizer, lines, max_sentence_tokens, progress)
            for lines in (train_lines, heldout_lines)
        ]
    content = json.dumps([fingerprint(tokenizer), *digests])
    meta = {"source": source.name, "fingerprint": hashlib.sha256(content.encode()).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _split(source: Source, heldout_fraction: float, train: Path, heldout: Path) -> None:
    """Write both parts as sentences, one a line, with a blank line after each document.

    A document is held out when the hash of its content is small: equal documents stay together, and
    documents that are added move no others. Of a small corpus the smallest hashes are held out.
    """
    threshold = int(heldout_fraction * 2**64)
    with step(f"reading {source.name}", "documents") as progress:
        counts, smallest = _write_parts(source, threshold, (train, heldout), progress)
    if counts[1] < MIN_DOCUMENTS < len(smallest):
        with step("reading again, to hold out enough", "documents") as progress:
            counts, _ = _write_parts(source, smallest[MIN_DOCUMENTS], (train, heldout), progress)
    if min(counts) < MIN_DOCUMENTS:
        raise DataError(
            f"{source.name}: {sum(counts)} documents, {counts[0]} to train on and {counts[1]} held "
            f"out (data.heldout_fraction={heldout_fraction}), but each part needs {MIN_DOCUMENTS} "
            "that differ; add text or change the fraction; "
            "in a .txt file blank lines separate documents"
        )


def _write_parts(
    source: Source, threshold: int, files: tuple[Path, Path], progress: Step
) -> tuple[list[int], list[int]]:
    """Write the documents; returns the number in each part, and the smallest hashes in order."""
    counts = [0, 0]
    smallest: list[int] = []
    # Strings of Python sources can hold lone surrogates, which UTF-8 cannot: "?" stands for them.
    with (
        open(files[0], "w", encoding="utf-8", errors="replace", newline="\n") as train,
        open(files[1], "w", encoding="utf-8", errors="replace", newline="\n") as heldout,
    ):
        for document in source.documents():
            lines = "".join(f"{_cut_words(line)}\n" for line in split_sentences(document))
            if not lines:
                continue
            digest = hashlib.blake2b(lines.encode("utf-8", "replace"), digest_size=8).digest()
            order = int.from_bytes(digest, "big")
            part = int(order < threshold)
            (train, heldout)[part].write(lines + "\n")
            counts[part] += 1
            progress.advance()
            if order not in smallest:
                smallest = sorted([*smallest, order])[: MIN_DOCUMENTS + 1]
    return counts, smallest


def _cut_words(sentence: str) -> str:
    """Put blanks into monsters such as base64: training a vocabulary is quadratic in a word."""
    if len(sentence) <= _MAX_WORD_CHARACTERS:
        return sentence
    return _LONG_WORD.sub(r"\g<0> ", sentence)


def _encode(tokenizer: Tokenizer, lines: Path, max_sentence_tokens: int, progress: Step) -> str:
    """Turn a file of sentences into a store beside it; returns the digest of its content."""
    writer = StoreWriter(lines.with_suffix(""), tokenizer.get_vocab_size(), max_sentence_tokens)
    # A text about BERT says "[MASK]" without meaning it: special tokens never come from text.
    tokenizer.encode_special_tokens = True
    unknown, num_unknown, num_tokens = special_ids(tokenizer).unk, 0, 0
    with open(lines, encoding="utf-8", newline="\n") as stream:
        while batch := list(islice(stream, _ENCODED_AT_ONCE)):
            encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            for line, encoding in zip(batch, encodings, strict=True):
                if line == "\n":
                    writer.end_document()
                else:
                    writer.add_sentence(encoding.ids)
                    num_unknown += encoding.ids.count(unknown)
                    num_tokens += len(encoding.ids)
            progress.advance(sum(map(len, encodings)))
    meta = writer.close()
    if meta.num_documents < MIN_DOCUMENTS:
        raise DataError(
            f"{meta.num_documents} documents of the {lines.stem} part hold a token, but "
            f"{MIN_DOCUMENTS} are needed: this tokenizer leaves next to nothing of this text"
        )
    if num_unknown > MAX_UNKNOWN * num_tokens:
        raise DataError(
            f"{num_unknown} of {num_tokens} tokens of the {lines.stem} part are [UNK]: the "
            "vocabulary of data.tokenizer does not fit this text"
        )
    lines.unlink()
    return meta.sha256
