"""Tokenizers: files that the user gives, and what the special tokens in them are for."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from trainers.data.sentencepiece import read_sentencepiece
from trainers.errors import ConfigError, DataError
from trainers.span_lengths import NUM_SENTINELS

# How the families spell the special tokens: of the spellings in a vocabulary the first one counts.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>"),
    "bos": ("<s>", "<|begin_of_text|>"),
}
_SPECIAL = re.compile(r"\[.+\]")
_SENTINEL = re.compile(r"<extra_id_(\d+)>")

# What a folder may hold, in this order, and the pairs of files that are one vocabulary.
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "encoder.json")
_MERGES = {"vocab.json": "merges.txt", "encoder.json": "vocab.bpe"}
_CONFIG = "tokenizer_config.json"  # beside a vocab.txt: whether its entries are lower case
_MAX_CAPITALS = 0.01  # share of entries: lower-case vocabularies may have a few odd ones
_WHAT = "vocab.txt, tokenizer.json, vocab.json with merges.txt, or a SentencePiece .model"


@dataclass(frozen=True)
class SpecialIds:
    """The ids of special tokens by their role; None and () for those that a vocabulary lacks.

    A vocabulary without a token for padding has the end of a text stand for it, as with GPT-2.
    `sentinels` are those of T5, in the order of their numbers.
    """

    pad: int
    unk: int | None = None
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    eos: int | None = None
    bos: int | None = None
    sentinels: tuple[int, ...] = ()

    def sorted(self) -> tuple[int, ...]:
        """Every id that is a special token, once."""
        roles = (self.pad, self.unk, self.cls, self.sep, self.mask, self.eos, self.bos)
        return tuple(sorted({id_ for id_ in (*roles, *self.sentinels) if id_ is not None}))

    def require(self, roles: tuple[str, ...]) -> None:
        """Raise ConfigError that names the roles whose token the vocabulary lacks."""
        missing = [role for role in roles if getattr(self, role) in (None, ())]
        if missing:
            spelled = [SPELLINGS.get(role, ("<extra_id_0>",))[0] for role in missing]
            raise ConfigError(
                f"the vocabulary of data.tokenizer has no {', '.join(spelled)}, which the "
                "objective needs; add them, or set data.tokenizer=null and data.tokenizer_model "
                "to train one"
            )


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Look up the special tokens. Raises ConfigError when nothing can stand for padding."""
    found = {role: _first_id(tokenizer, names) for role, names in SPELLINGS.items()}
    numbered = {
        int(match[1]): id_
        for token, id_ in tokenizer.get_vocab().items()
        if (match := _SENTINEL.fullmatch(token))
    }
    pad = found.pop("pad")
    pad = found["eos"] if pad is None else pad
    if pad is None:
        raise ConfigError(
            "the vocabulary of data.tokenizer has no [PAD], no <pad> and no end of text "
            f"({', '.join(SPELLINGS['eos'])}); add one, or set data.tokenizer=null to train one"
        )
    return SpecialIds(pad, **found, sentinels=tuple(numbered[n] for n in sorted(numbered)))


def _first_id(tokenizer: Tokenizer, names: tuple[str, ...]) -> int | None:
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((id_ for id_ in ids if id_ is not None), None)


def tokenizer_files(path: str) -> list[Path]:
    """The files that `path` means, the one that names the format first.

    `path` is one of `_FILES`, a SentencePiece model, or a folder with one of them. Raises
    ConfigError when there is none.
    """
    given = Path(path)
    candidates = [given]
    if given.is_dir():
        candidates = [*(given / name for name in _FILES), *sorted(given.glob("*.model"))]
    for file in candidates:
        files = [file, file.with_name(_MERGES[file.name])] if file.name in _MERGES else [file]
        if file.suffix == ".txt" and file.with_name(_CONFIG).is_file():
            files.append(file.with_name(_CONFIG))
        known = file.suffix in (".json", ".txt", ".model")
        if known and all(part.is_file() for part in files):
            return files
    raise ConfigError(f"data.tokenizer={path}: need a {_WHAT}, or a folder with one of them")


def load_tokenizer(path: str, lowercase: bool) -> Tokenizer:
    """Read the tokenizer that `path` means, see `tokenizer_files`.

    `lowercase` counts for a vocab.txt without a tokenizer_config.json that says it; the other
    formats say it themselves. Raises ConfigError when there is none, no model can be built for it,
    or it would never see its own capitals; DataError when a file cannot be understood.
    """
    file, *others = tokenizer_files(path)
    if file.suffix == ".txt":
        said = _says_lowercase(others[0]) if others else None
        if said is None and lowercase:
            _refuse_capitals(file)
        tokenizer = bert_tokenizer(_wordpiece(file), lowercase if said is None else said)
    elif others:
        tokenizer = byte_level_tokenizer(_bpe(file, others[0]), lowercase=False)
    elif file.suffix == ".model":
        tokenizer = read_sentencepiece(file)
        if isinstance(tokenizer.model, models.Unigram) and not special_ids(tokenizer).sentinels:
            # T5 adds them to its SentencePiece model, which does not hold them.
            names = [f"<extra_id_{n}>" for n in reversed(range(NUM_SENTINELS))]
            tokenizer.add_special_tokens(names)
    else:
        tokenizer = _from_json(file)
    return _given(tokenizer)


def _says_lowercase(file: Path) -> bool | None:
    """Whether a tokenizer_config.json has text made lower case; None if it does not say."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: broken JSON: {error}") from error
    said = content.get("do_lower_case") if isinstance(content, dict) else None
    return said if isinstance(said, bool) else None


def _refuse_capitals(file: Path) -> None:
    entries = [entry for entry in _read_vocabulary(file) if not _SPECIAL.fullmatch(entry)]
    capitals = [entry for entry in entries if entry != entry.lower()]
    if len(capitals) > _MAX_CAPITALS * len(entries):
        raise ConfigError(
            f"data.lowercase=true, but {len(capitals):,} of {len(entries):,} entries of {file} "
            f"have capitals ({', '.join(capitals[:3])}), which no text would reach: set "
            "data.lowercase=false"
        )


def _wordpiece(file: Path) -> models.WordPiece:
    vocabulary = _read_vocabulary(file)
    if "[UNK]" not in vocabulary:
        raise ConfigError(f"{file} has no [UNK], which stands for what it cannot spell; add it")
    return models.WordPiece(vocabulary, unk_token="[UNK]")


def _bpe(vocabulary: Path, merges: Path) -> models.BPE:
    try:
        return models.BPE(*models.BPE.read_file(str(vocabulary), str(merges)))
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{vocabulary} with {merges.name}: not a BPE: {error}") from error


def _from_json(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{file}: not a tokenizer of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_vocabulary(file: Path) -> dict[str, int]:
    try:
        lines = file.read_bytes().decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8") from error
    vocabulary: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        token = line.removesuffix("\r")
        if not token or token in vocabulary:
            what = f"{token!r} is also on line {vocabulary[token] + 1}" if token else "empty"
            raise DataError(
                f"{file}: line {number}: {what}; each line must hold an entry of its own"
            )
        vocabulary[token] = number - 1
    return vocabulary


def bert_tokenizer(model: models.WordPiece, lowercase: bool) -> Tokenizer:
    """BERT's words and punctuation around a WordPiece model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def byte_level_tokenizer(model: models.BPE, lowercase: bool) -> Tokenizer:
    """GPT-2's words, blanks kept, around a BPE model of bytes."""
    tokenizer = Tokenizer(model)
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _given(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that somebody else made, if a model can be built for its vocabulary."""
    ids = tokenizer.get_vocab().values()
    if len(ids) == len(special_ids(tokenizer).sorted()):
        raise ConfigError("data.tokenizer: its vocabulary has special tokens and nothing else")
    if max(ids) >= len(ids):
        raise ConfigError(
            f"data.tokenizer: its {len(ids)} entries have ids up to {max(ids)}; a model needs ids "
            "without gaps, from 0 up"
        )
    return know_special_tokens(tokenizer)


def know_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Make the library know the special tokens as such; none is added to the vocabulary."""
    ids = special_ids(tokenizer).sorted()
    tokenizer.add_special_tokens([tokenizer.id_to_token(id_) for id_ in ids])
    return tokenizer


def fingerprint(tokenizer: Tokenizer) -> str:
    """Sha256 of all that the tokenizer does to a text: vocabulary, normaliser and the rest."""
    content = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
