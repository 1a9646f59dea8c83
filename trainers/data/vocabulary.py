"""Train a vocabulary on the corpus: WordPiece (BERT), byte-level BPE (GPT-2) or Unigram (T5).

All three give the same result each time: what the tokenizers library leaves to the order of a hash
table is decided here.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, WordPieceTrainer

from trainers.data.tokenizer import bert_tokenizer, byte_level_tokenizer, know_special_tokens
from trainers.span_lengths import NUM_SENTINELS

# Given anew each time it is asked, so that a training can read the text more than once.
Texts = Callable[[], Iterable[str]]

BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
END_OF_TEXT = "<|endoftext|>"
T5_TOKENS = ("<pad>", "</s>", "<unk>")

# The roles of the special tokens that a vocabulary has when it is trained here.
TRAINED_ROLES = {
    "wordpiece": ("pad", "unk", "cls", "sep", "mask"),
    "bpe": ("pad", "eos"),
    "unigram": ("pad", "eos", "unk", "sentinels"),
}

# The commonest characters get an entry each; the others become [UNK] instead of crowding out words.
_ALPHABET = 1000
_LONGEST_PIECE = 16  # characters of a Unigram piece, as in SentencePiece
_SEED_RATIO = 2  # candidates for each Unigram piece that is kept
_ROUNDS = 3  # of estimation before and after the candidates are thinned out


def train_tokenizer(texts: Texts, kind: str, vocab_size: int, lowercase: bool) -> Tokenizer:
    """Train a tokenizer of a kind of `TRAINED_ROLES`.

    The vocabulary has at most `vocab_size` entries, special tokens included, fewer when the text is
    too small to fill it, and is the same each time.
    """
    train = {"wordpiece": _train_wordpiece, "bpe": _train_bpe, "unigram": _train_unigram}[kind]
    return know_special_tokens(train(texts, vocab_size, lowercase))


def _train_wordpiece(texts: Texts, vocab_size: int, lowercase: bool) -> Tokenizer:
    tokenizer = bert_tokenizer(models.WordPiece(unk_token="[UNK]"), lowercase)
    alphabet = _alphabet(texts(), tokenizer, min(_ALPHABET, vocab_size // 5))
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        # The library numbers "##a", "##b", ... in the order of a hash table, another each time, and
        # breaks ties between merges by these numbers. Special tokens it numbers in our order.
        special_tokens=[*BERT_TOKENS, *alphabet],
        initial_alphabet=[entry for entry in alphabet if len(entry) == 1],
        limit_alphabet=sum(len(entry) == 1 for entry in alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    model = models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]")
    return bert_tokenizer(model, lowercase)


def _alphabet(texts: Iterable[str], tokenizer: Tokenizer, limit: int) -> list[str]:
    """The commonest characters after normalisation, and c as "##c" where c can go on a word."""
    counts: Counter[str] = Counter()
    for character, count in _character_counts(texts).items():
        for normal in tokenizer.normalizer.normalize_str(character):
            counts[normal] += 0 if normal.isspace() else count
    common = _commonest(counts, limit)
    return common + [f"##{c}" for c in common if _goes_on_a_word(c, tokenizer)]


def _commonest(counts: Counter[str], limit: int) -> list[str]:
    return sorted((c for c in counts if counts[c]), key=lambda c: (-counts[c], c))[:limit]


def _goes_on_a_word(character: str, tokenizer: Tokenizer) -> bool:
    """Punctuation and Chinese characters are words of their own, also without spaces around."""
    text = tokenizer.normalizer.normalize_str(f"a{character}")
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) == 1


def _character_counts(texts: Iterable[str]) -> dict[str, int]:
    total = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    for block in _blocks(texts, 2**22):
        codes = np.frombuffer(block.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        total += np.bincount(codes, minlength=len(total))
    return {chr(code): int(total[code]) for code in np.flatnonzero(total)}


def _blocks(texts: Iterable[str], size: int) -> Iterator[str]:
    held, length = [], 0
    for text in texts:
        held.append(text)
        length += len(text)
        if length >= size:
            yield "\n".join(held)
            held, length = [], 0
    yield "\n".join(held)


def _train_bpe(texts: Texts, vocab_size: int, lowercase: bool) -> Tokenizer:
    tokenizer = byte_level_tokenizer(models.BPE(), lowercase)
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _train_unigram(texts: Texts, vocab_size: int, lowercase: bool) -> Tokenizer:
    """A Unigram model (Kudo 2018): pieces with probabilities, of which the likeliest are taken.

    The library's own trainer adds floats up in the order of a hash table. Ours takes the pieces of
    a BPE as candidates, twice too many, estimates how often each is used in the likeliest
    segmentation of every word, and keeps the most used; single characters always stay.
    """
    words = _word_counts(texts(), _unigram_normalizer(lowercase))
    room = vocab_size - len(T5_TOKENS) - NUM_SENTINELS
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    alphabet = _commonest(characters, min(_ALPHABET, room // 2))
    pieces = dict.fromkeys([*alphabet, *_candidates(words, alphabet, _SEED_RATIO * room)], 1)
    for _ in range(_ROUNDS):
        pieces = _usage(words, pieces)
    longer = Counter({piece: pieces[piece] for piece in pieces if len(piece) > 1})
    kept = {*alphabet, *_commonest(longer, room - len(alphabet))}
    pieces = {piece: count for piece, count in pieces.items() if piece in kept}
    for _ in range(_ROUNDS):
        pieces = _usage(words, pieces)
    tokenizer = Tokenizer(_unigram_model(pieces))
    tokenizer.normalizer = _unigram_normalizer(lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    # As in T5 the first sentinel has the last id.
    tokenizer.add_special_tokens([f"<extra_id_{n}>" for n in reversed(range(NUM_SENTINELS))])
    return tokenizer


def _unigram_normalizer(lowercase: bool) -> normalizers.Normalizer:
    """As in T5: compatible characters are one, and white space, line breaks too, is one blank."""
    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    blank = normalizers.Replace(Regex(r"\s+"), " ")
    return normalizers.Sequence([*steps, blank, normalizers.Strip(left=False, right=True)])


def _word_counts(texts: Iterable[str], normalizer: normalizers.Normalizer) -> Counter[str]:
    """Words as the model meets them, the blank before each as U+2581."""
    counts: Counter[str] = Counter()
    for block in _blocks(texts, 2**20):
        counts.update(normalizer.normalize_str(block).split())
    return Counter({f"\u2581{word}": counts[word] for word in sorted(counts)})


def _candidates(words: Counter[str], alphabet: list[str], size: int) -> list[str]:
    """The pieces that BPE merges the commonest characters of the words to."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        max_token_length=_LONGEST_PIECE,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_repeated(words), trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _repeated(words: Counter[str]) -> Iterator[str]:
    """Each word as often as it was counted, in texts of bounded length."""
    for word, count in words.items():
        for start in range(0, count, 1000):
            yield " ".join([word] * min(1000, count - start))


def _usage(words: Counter[str], pieces: dict[str, int]) -> dict[str, int]:
    """How often each piece is used in the likeliest segmentation of all words, at least once."""
    tokenizer = Tokenizer(_unigram_model(pieces))
    names = list(words)
    usage = np.zeros(len(T5_TOKENS) + len(pieces), dtype=np.int64)
    for start in range(0, len(names), 10_000):
        part = names[start : start + 10_000]
        encodings = tokenizer.encode_batch_fast(part, add_special_tokens=False)
        for word, encoding in zip(part, encodings, strict=True):
            for id_ in encoding.ids:
                usage[id_] += words[word]
    return {piece: max(int(n), 1) for piece, n in zip(pieces, usage[len(T5_TOKENS) :], strict=True)}


def _unigram_model(pieces: dict[str, int]) -> models.Unigram:
    total = math.log(sum(pieces.values()))
    scores = [(piece, math.log(count) - total) for piece, count in pieces.items()]
    special = [(token, 0.0) for token in T5_TOKENS]
    return models.Unigram([*special, *scores], unk_id=T5_TOKENS.index("<unk>"), byte_fallback=False)
