"""From text to token stores: read, train the vocabulary, encode; once for each set of inputs.

<data.cache_dir>/<name>-<hash of all inputs>/
    tokenizer.json  the vocabulary
    train/          the store to train on
    heldout/        the store to measure on: documents drawn by the hash of their content
    meta.json       fingerprint and statistics

While it is being built, with the suffix .part, it also holds shards/ and tokens/: what is finished
in them is kept when the program is killed, and the next one goes on from there.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer

from trainers.config import DataConfig
from trainers.data.choose import MIN_DOCUMENTS, Choice, choose
from trainers.data.documents import Source
from trainers.data.encode import PARTS, encode_task, tasks_of
from trainers.data.files import digest_files, text_files
from trainers.data.needs import Needs
from trainers.data.open_source import open_source
from trainers.data.progress import say, step
from trainers.data.publish import build_once
from trainers.data.shards import Shard, cut_words, write_shard
from trainers.data.statistics import Statistics, statistics, too_short
from trainers.data.store import Store, StoreMeta, merge_stores
from trainers.data.tokenizer import (
    SpecialIds,
    fingerprint,
    load_tokenizer,
    special_ids,
    tokenizer_files,
)
from trainers.data.vocabulary import TRAINED_ROLES, train_tokenizer
from trainers.data.workers import run_all
from trainers.durable import write_text
from trainers.errors import ConfigError, DataError

# The programs that decide what text becomes: a change in them makes other data.
_CODE = (
    *("choose", "docstrings", "documentation", "documents", "encode", "files", "hub"),
    *(
        "open_source",
        "plain",
        "prepare",
        "random_access",
        "records",
        "sentencepiece",
        "sentences",
        "shards",
    ),
    *("sources", "store", "tokenizer", "vocabulary"),
)

MAX_UNKNOWN = 0.9  # share of [UNK] beyond which a vocabulary is not of this text
_UNITS_AT_ONCE = 64  # that are read for a vocabulary: a unit may be long

Shards = list[tuple[Path, int]]  # where a shard lies, and the number of its group


@dataclass(frozen=True)
class Prepared:
    """What a run reads. `fingerprint` names the content: the same for the same tokens anywhere."""

    tokenizer: Tokenizer
    special: SpecialIds
    train: Store
    heldout: Store
    fingerprint: str
    statistics: Statistics
    folder: Path


def prepare(data: DataConfig, needs: Needs, timeout_seconds: float = 3600.0) -> Prepared:
    """Find the prepared data in the cache, or build it; safe to call from any number of processes.

    The builder shows its progress on stderr; the others wait at most `timeout_seconds`. Raises
    ConfigError for settings that cannot work, DataError for text that is missing, malformed or too
    small, and StorageError when the cache cannot be written.
    """
    _check_vocabulary(data, needs)
    source = open_source(data)
    folder = _place(data, source, needs)
    build_once(folder, partial(_build, data, source, needs), _is_whole, timeout_seconds)
    return _open(folder)


def look_for(data: DataConfig, needs: Needs) -> None:
    """Raise what `prepare` would for files that are not there and a vocabulary that does not fit.

    At once: no text is read, and the hub is not asked.
    """
    _check_vocabulary(data, needs)
    paths = (data.path, *(one.path for one in data.sources))
    for path in filter(None, paths):
        text_files(path)


def find(data: DataConfig, needs: Needs) -> tuple[Source, Prepared | None]:
    """What `prepare` would read, and what it would find in the cache; builds nothing.

    Raises what `prepare` does, as far as that shows before anything is read.
    """
    _check_vocabulary(data, needs)
    source = open_source(data)
    folder = _place(data, source, needs)
    return source, _open(folder) if folder.is_dir() and _is_whole(folder) else None


def _place(data: DataConfig, source: Source, needs: Needs) -> Path:
    return Path(data.cache_dir) / f"{data.name}-{_key(data, source, needs)}"


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
        "weights": source.weights,
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
        meta = json.loads((folder / "meta.json").read_text())
        return Prepared(
            tokenizer=tokenizer,
            special=special_ids(tokenizer),
            train=Store.open(folder / "train"),
            heldout=Store.open(folder / "heldout"),
            fingerprint=meta["fingerprint"],
            statistics=Statistics(**meta["statistics"]),
            folder=folder,
        )
    except DataError:
        raise
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{folder}: damaged: {error}; remove it and start again") from error


def _is_whole(folder: Path) -> bool:
    try:
        _open(folder)
    except DataError:
        return False
    return True


def _build(data: DataConfig, source: Source, needs: Needs, folder: Path) -> None:
    shards = _read(data, source, needs, folder / "shards")
    opened = [(Shard.open(shard), group) for shard, group in shards]
    choice = choose(source.name, opened, source.weights, data.heldout_fraction)
    tokenizer = _tokenizer(data, opened, choice, needs, folder / "tokenizer.json")
    metas = _encode(data, shards, choice, needs, folder)
    for part in PARTS if data.heldout_fraction else PARTS[:1]:
        least = MIN_DOCUMENTS if data.heldout_fraction else 1
        _check_fit(Store.open(folder / part), special_ids(tokenizer).unk, part, least)
    content = json.dumps([fingerprint(tokenizer), *(meta.sha256 for meta in metas)])
    found = statistics(
        *(Store.open(folder / part) for part in PARTS),
        vocab_size=tokenizer.get_vocab_size(),
        num_text_bytes=sum(len(shard.texts) for shard, _ in opened),
        num_bad=sum(shard.meta.num_bad for shard, _ in opened),
    )
    if warning := too_short(found, needs.fills):
        say(warning)
    meta = {
        "source": source.name,
        "fingerprint": hashlib.sha256(content.encode()).hexdigest(),
        "statistics": asdict(found),
    }
    write_text(folder / "meta.json", json.dumps(meta, indent=2) + "\n")
    shutil.rmtree(folder / "shards")
    shutil.rmtree(folder / "tokens")


def _read(data: DataConfig, source: Source, needs: Needs, root: Path) -> Shards:
    """Read all parts of the source into shards, those that are not there yet."""
    parts = source.parts()
    shards = [(root / f"{number:06d}", part.group) for number, part in enumerate(parts)]
    missing = [n for n, (shard, _) in enumerate(shards) if not shard.exists()]
    if len(missing) < len(shards):
        say(f"{len(shards) - len(missing)} of {len(shards)} parts have been read before")
    work = [
        partial(write_shard, parts[n], needs.units, data.on_bad_text, shards[n][0]) for n in missing
    ]
    with step(f"reading {source.name}", "documents", len(work)) as progress:
        num_bytes = sum(parts[n].num_bytes for n in missing)
        for index, count in run_all(work, data.workers, num_bytes):
            progress.advance(count, done=index + 1)
    return shards


def _tokenizer(
    data: DataConfig,
    shards: list[tuple[Shard, int]],
    choice: Choice,
    needs: Needs,
    file: Path,
) -> Tokenizer:
    if file.exists():
        return Tokenizer.from_file(str(file))
    if data.tokenizer:
        tokenizer = load_tokenizer(data.tokenizer, data.lowercase)
    else:
        with step("training the vocabulary"):
            texts = partial(_training_texts, shards, choice)
            kind, size = data.tokenizer_model, data.vocab_size
            tokenizer = train_tokenizer(texts, kind, size, data.lowercase)
    write_text(file, tokenizer.to_str(pretty=True))
    return tokenizer


def _training_texts(shards: list[tuple[Shard, int]], choice: Choice) -> Iterator[str]:
    for shard, group in shards:
        first = 0
        chosen = choice.for_vocabulary(shard, group)
        for last, is_chosen in zip(shard.document_ends.tolist(), chosen, strict=True):
            if is_chosen:
                for begin in range(first, last, _UNITS_AT_ONCE):
                    end = min(begin + _UNITS_AT_ONCE, last)
                    yield from map(cut_words, shard.units(begin, end))
            first = last


def _encode(
    data: DataConfig, shards: Shards, choice: Choice, needs: Needs, folder: Path
) -> list[StoreMeta]:
    """Encode what is not encoded yet, and join it to the stores of both parts."""
    root = folder / "tokens"
    tasks = [task for shard, group in shards for task in tasks_of(shard, group, root)]
    missing = [task for task in tasks if not task.folder.exists()]
    if len(missing) < len(tasks):
        say(f"{len(tasks) - len(missing)} of {len(tasks)} tasks have been encoded before")
    vocabulary = folder / "tokenizer.json"
    work = [partial(encode_task, t, choice, vocabulary, needs.max_tokens) for t in missing]
    with step("encoding", "tokens", len(work)) as progress:
        num_bytes = sum(task.num_bytes for task in missing)
        for index, count in run_all(work, data.workers, num_bytes):
            progress.advance(count, done=index + 1)
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
    return [merge_stores([task.folder / part for task in tasks], folder / part) for part in PARTS]


def _check_fit(store: Store, unknown: int | None, part: str, least: int) -> None:
    """Refuse a vocabulary that is not of this text."""
    if store.meta.num_documents < least:
        raise DataError(
            f"{store.meta.num_documents} documents of the {part} part hold a token, but "
            f"{least} are needed: this tokenizer leaves next to nothing of this text"
        )
    num_unknown = store.count(unknown) if unknown is not None else 0
    if num_unknown > MAX_UNKNOWN * store.meta.num_tokens:
        raise DataError(
            f"{num_unknown} of {store.meta.num_tokens} tokens of the {part} part are [UNK]: the "
            "vocabulary of data.tokenizer does not fit this text"
        )
