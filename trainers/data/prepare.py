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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from trainers.config import DataConfig
from trainers.data.documentation import documentation_source
from trainers.data.needs import Needs
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
    tokenizer_files,
)
from trainers.data.vocabulary import TRAINED_ROLES, train_tokenizer
from trainers.errors import ConfigError, DataError

# The programs that decide what text becomes: a change in them makes other data.
_CODE = (
    "docstrings",
    "documentation",
    "prepare",
    "sentencepiece",
    "sentences",
    "sources",
    "store",
    "tokenizer",
    "vocabulary",
)

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


def prepare(data: DataConfig, needs: Needs, timeout_seconds: float = 3600.0) -> Prepared:
    """Find the prepared data in the cache, or build it; safe to call from any number of processes.

    The builder shows its progress on stderr; the others wait at most `timeout_seconds`. Raises
    ConfigError for settings that cannot work, DataError for text that is missing, malformed or too
    small, and StorageError when the cache cannot be written.
    """
    _check_vocabulary(data, needs)
    source = _open_source(data)
    folder = Path(data.cache_dir) / f"{data.name}-{_key(data, source, needs)}"
    build_once(folder, partial(_build, data, source, needs), _is_whole, timeout_seconds)
    return _open(folder)


def _check_vocabulary(data: DataConfig, needs: Needs) -> None:
    """What can be said before anything is read: a tokenizer has the special tokens, or will."""
    if data.tokenizer:
        special_ids(load_tokenizer(data.tokenizer, data.lowercase)).require(needs.special)
        return
    kinds = [kind for kind, roles in TRAINED_ROLES.items() if set(needs.special) <= set(roles)]
    if data.tokenizer_model not in kinds:
        raise ConfigError(
            f"data.tokenizer_model={data.tokenizer_model} has not all special tokens that the "
            f"objective needs ({', '.join(needs.special)}): set it to {' or '.join(kinds)}"
        )


def _open_source(data: DataConfig) -> Source:
    if data.name == "pydocs":
        return documentation_source(data.packages)
    if data.name == "text" and data.path:
        return text_source(data.path, data.on_bad_text)
    raise ConfigError(
        f"data={data.name}, data.path={data.path}: need data=pydocs, or data=text with data.path"
    )


def _key(data: DataConfig, source: Source, needs: Needs) -> str:
    """Hash of everything that decides what is built: contents of files, settings, programs."""
    if data.tokenizer:
        vocabulary = digest_files(tokenizer_files(data.tokenizer))
    else:
        kind = f"{data.tokenizer_model} {data.vocab_size}"
        vocabulary = f"train {kind} with tokenizers {tokenizers.__version__}"
    inputs = {
        "code": digest_files(Path(__file__).with_name(f"{name}.py") for name in _CODE),
        "source": source.digest,
        "vocabulary": vocabulary,
        "lowercase": data.lowercase,
        "heldout_fraction": data.heldout_fraction,
        "on_bad_text": data.on_bad_text,
        "units": needs.units,
        "max_tokens": needs.max_tokens,
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


def _build(data: DataConfig, source: Source, needs: Needs, folder: Path) -> None:
    train_lines, heldout_lines = folder / "train.lines", folder / "heldout.lines"
    _split(source, needs, data.heldout_fraction, train_lines, heldout_lines)
    if data.tokenizer:
        tokenizer = load_tokenizer(data.tokenizer, data.lowercase)
    else:
        with step("training the vocabulary"):
            tokenizer = train_tokenizer(
                partial(_units, train_lines),
                data.tokenizer_model,
                data.vocab_size,
                data.lowercase,
            )
    tokenizer.save(str(folder / "tokenizer.json"))
    with step("encoding", "tokens") as progress:
        digests = [
            _encode(tokenizer, lines, needs.max_tokens, progress)
            for lines in (train_lines, heldout_lines)
        ]
    content = json.dumps([fingerprint(tokenizer), *digests])
    meta = {"source": source.name, "fingerprint": hashlib.sha256(content.encode()).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def _units(lines: Path) -> Iterator[str]:
    """The units of text in a file that `_split` has written."""
    with open(lines, encoding="utf-8", newline="\n") as stream:
        yield from (json.loads(line) for line in stream if line != "\n")


def _split(
    source: Source, needs: Needs, heldout_fraction: float, train: Path, heldout: Path
) -> None:
    """Write both parts as units of text, a JSON string a line, with a blank line after a document.

    A document is held out when the hash of its content is small: equal documents stay together, and
    documents that are added move no others. Of a small corpus the smallest hashes are held out.
    """
    threshold = int(heldout_fraction * 2**64)
    with step(f"reading {source.name}", "documents") as progress:
        counts, smallest = _write_parts(source, needs, threshold, (train, heldout), progress)
    if counts[1] < MIN_DOCUMENTS < len(smallest):
        with step("reading again, to hold out enough", "documents") as progress:
            counts, _ = _write_parts(
                source, needs, smallest[MIN_DOCUMENTS], (train, heldout), progress
            )
    if min(counts) < MIN_DOCUMENTS:
        raise DataError(
            f"{source.name}: {sum(counts)} documents, {counts[0]} to train on and {counts[1]} held "
            f"out (data.heldout_fraction={heldout_fraction}), but each part needs {MIN_DOCUMENTS} "
            "that differ; add text or change the fraction; "
            "in a .txt file blank lines separate documents"
        )


def _write_parts(
    source: Source, needs: Needs, threshold: int, files: tuple[Path, Path], progress: Step
) -> tuple[list[int], list[int]]:
    """Write the documents; returns the number in each part, and the smallest hashes in order."""
    counts = [0, 0]
    smallest: list[int] = []
    # Strings of Python sources can hold lone surrogates, which UTF-8 cannot: "?" stands for them.
    with (
        open(files[0], "w", encoding="utf-8", newline="\n") as train,
        open(files[1], "w", encoding="utf-8", newline="\n") as heldout,
    ):
        for document in source.documents():
            by_sentence = needs.units == "sentences"
            units = split_sentences(document) if by_sentence else [document]
            units = [_cut_words(unit).encode("utf-8", "replace").decode() for unit in units]
            if not "".join(units).strip():
                continue
            content = "".join(f"{unit}\n" for unit in units).encode()
            order = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
            part = int(order < threshold)
            (train, heldout)[part].write("".join(f"{json.dumps(unit)}\n" for unit in units) + "\n")
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
            texts = ["" if line == "\n" else json.loads(line) for line in batch]
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
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
