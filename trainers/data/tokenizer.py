"""The tokenizer: a WordPiece vocabulary trained on the corpus, or one that the user gives."""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from trainers.errors import ConfigError, DataError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The commonest characters get an entry each; the others become [UNK] instead of crowding out words.
_ALPHABET = 1000


@dataclass(frozen=True)
class SpecialIds:
    """The ids of BERT's special tokens."""

    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    eos: int | None = None

    def sorted(self) -> tuple[int, ...]:
        return tuple(sorted((self.pad, self.unk, self.cls, self.sep, self.mask)))


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Look up the special tokens. Raises ConfigError that names those the vocabulary lacks."""
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    missing = [token for token, id_ in zip(SPECIAL_TOKENS, ids, strict=True) if id_ is None]
    if missing:
        raise ConfigError(
            f"the vocabulary of data.tokenizer has no {', '.join(missing)}, but needs all of "
            f"{', '.join(SPECIAL_TOKENS)}; add them, or set data.tokenizer=null to train one"
        )
    return SpecialIds(*ids)


def train_tokenizer(lines: Path, vocab_size: int, lowercase: bool) -> Tokenizer:
    """Train a BERT WordPiece tokenizer on a UTF-8 file of sentences, one a line.

    The vocabulary has at most `vocab_size` entries, fewer when the text is too small to fill it,
    and is the same each time.
    """
    tokenizer = _bert_tokenizer(WordPiece(unk_token="[UNK]"), lowercase)
    alphabet = _alphabet(lines, tokenizer, min(_ALPHABET, vocab_size // 5))
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        # The library numbers "##a", "##b", ... in the order of a hash table, another each time, and
        # breaks ties between merges by these numbers. Special tokens it numbers in our order.
        special_tokens=[*SPECIAL_TOKENS, *alphabet],
        initial_alphabet=[entry for entry in alphabet if len(entry) == 1],
        limit_alphabet=sum(len(entry) == 1 for entry in alphabet),
        show_progress=False,
    )
    tokenizer.train([str(lines)], trainer)
    model = WordPiece(tokenizer.get_vocab(), unk_token="[UNK]")
    return _with_special_tokens(_bert_tokenizer(model, lowercase))


def _alphabet(lines: Path, tokenizer: Tokenizer, limit: int) -> list[str]:
    """The commonest characters after normalisation, and c as "##c" where c can go on a word."""
    counts: Counter[str] = Counter()
    for character, count in _character_counts(lines).items():
        for normal in tokenizer.normalizer.normalize_str(character):
            counts[normal] += 0 if normal.isspace() else count
    common = sorted((c for c in counts if counts[c]), key=lambda c: (-counts[c], c))[:limit]
    return common + [f"##{c}" for c in common if _goes_on_a_word(c, tokenizer)]


def _goes_on_a_word(character: str, tokenizer: Tokenizer) -> bool:
    """Punctuation and Chinese characters are words of their own, also without spaces around."""
    text = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _character_counts(file: Path) -> dict[str, int]:
    total = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    with open(file, encoding="utf-8", newline="\n") as stream:
        while block := stream.read(2**22):
            codes = np.frombuffer(block.encode("utf-32-le"), dtype=np.uint32)
            total += np.bincount(codes, minlength=len(total))
    return {chr(code): int(total[code]) for code in np.flatnonzero(total)}


def tokenizer_file(path: str) -> Path:
    """The file that `path` means: itself, or the tokenizer.json or vocab.txt in the folder `path`.

    Raises ConfigError when there is none.
    """
    given = Path(path)
    candidates = [given / "tokenizer.json", given / "vocab.txt"] if given.is_dir() else [given]
    for candidate in candidates:
        if candidate.is_file() and candidate.suffix in (".json", ".txt"):
            return candidate
    raise ConfigError(
        f"data.tokenizer={path}: need a vocab.txt, a tokenizer.json, or a folder with one of them"
    )


def load_tokenizer(path: str, lowercase: bool) -> Tokenizer:
    """Read a vocab.txt (one entry a line) or a tokenizer.json, or a folder that holds one.

    `lowercase` counts for vocab.txt; a tokenizer.json says itself. Raises ConfigError when there is
    none, or special tokens are missing; DataError when the file cannot be understood.
    """
    file = tokenizer_file(path)
    if file.suffix == ".txt":
        model = WordPiece(_read_vocabulary(file), unk_token="[UNK]")
        return _given(_bert_tokenizer(model, lowercase))
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{file}: not a tokenizer of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return _given(tokenizer)


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


def _bert_tokenizer(model: WordPiece, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    return tokenizer


def _given(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that somebody else made, if a model can be built for its vocabulary."""
    special_ids(tokenizer)
    ids = tokenizer.get_vocab().values()
    if len(ids) == len(SPECIAL_TOKENS):
        raise ConfigError("data.tokenizer: its vocabulary has special tokens and nothing else")
    if max(ids) >= len(ids):
        raise ConfigError(
            f"data.tokenizer: its {len(ids)} entries have ids up to {max(ids)}; a model needs ids "
            "without gaps, from 0 up"
        )
    return _with_special_tokens(tokenizer)


def _with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Make the library know the special tokens as such, having checked that all have an id."""
    special_ids(tokenizer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def fingerprint(tokenizer: Tokenizer) -> str:
    """Sha256 of all that the tokenizer does to a text: vocabulary, normaliser and the rest."""
    content = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
