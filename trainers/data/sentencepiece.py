"""A SentencePiece .model file as a tokenizer of the tokenizers library, read without its package.

The file is a protocol buffer (google/sentencepiece, src/sentencepiece_model.proto); the few fields
that decide what a text becomes are read here by their numbers.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from trainers.errors import DataError

_BLANK = "\u2581"
_UNIGRAM, _BPE = 1, 2  # of TrainerSpec.model_type
_NORMAL, _UNKNOWN, _USER_DEFINED, _BYTE = 1, 2, 4, 6  # of SentencePiece.type


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: int


def read_sentencepiece(file: Path) -> Tokenizer:
    """Read a Unigram or BPE model. Raises DataError when the file is something else."""
    try:
        top = _fields(file.read_bytes())
        pieces = [_piece(content) for content in top.get(1, [])]
        trainer, normalizer = (_fields(top[number][-1]) for number in (2, 3))
        kind = _last(trainer, 3, _UNIGRAM)
        if not pieces or kind not in (_UNIGRAM, _BPE):
            raise ValueError("it holds no Unigram and no BPE model")
        tokenizer = Tokenizer(_unigram(pieces) if kind == _UNIGRAM else _bpe(pieces))
        _set_blanks(tokenizer, normalizer)
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise DataError(f"{file}: not a SentencePiece model: {error}") from error
    return tokenizer


def _set_blanks(tokenizer: Tokenizer, normalizer: dict[int, list]) -> None:
    steps: list[normalizers.Normalizer] = []
    if charsmap := _last(normalizer, 2, b""):
        steps.append(normalizers.Precompiled(charsmap))
    if _last(normalizer, 4, 1):  # remove_extra_whitespaces
        steps += [normalizers.Strip(left=False, right=True)]
        steps += [normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    prefix = "always" if _last(normalizer, 3, 1) else "never"
    # BPE has pieces of several blanks, which a split at blanks would never find.
    split = isinstance(tokenizer.model, models.Unigram)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=split)
    strip = [decoders.Strip(" ", 1, 0)] if prefix == "always" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _unigram(pieces: list[_Piece]) -> models.Unigram:
    unknown = next(i for i, piece in enumerate(pieces) if piece.kind == _UNKNOWN)
    fallback = any(piece.kind == _BYTE for piece in pieces)
    return models.Unigram([(p.text, p.score) for p in pieces], unknown, fallback)


def _bpe(pieces: list[_Piece]) -> models.BPE:
    """SentencePiece keeps no merges: two pieces are merged whenever their union is one.

    The best union comes first, which the order of the merges says here.
    """
    ids = {piece.text: number for number, piece in enumerate(pieces)}
    merged = {p.text: p.score for p in pieces if p.kind in (_NORMAL, _USER_DEFINED)}
    found = [
        (-score, ids[text[:cut]], ids[text[cut:]], (text[:cut], text[cut:]))
        for text, score in merged.items()
        for cut in range(1, len(text))
        if text[:cut] in merged and text[cut:] in merged
    ]
    unknown = next((piece.text for piece in pieces if piece.kind == _UNKNOWN), None)
    return models.BPE(
        ids,
        [merge for *_, merge in sorted(found)],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=any(piece.kind == _BYTE for piece in pieces),
    )


def _piece(content: bytes) -> _Piece:
    fields = _fields(content)
    (score,) = struct.unpack("<f", _last(fields, 2, bytes(4)))
    return _Piece(_last(fields, 1, b"").decode("utf-8"), score, _last(fields, 3, _NORMAL))


def _last(fields: dict[int, list], number: int, default):  # type: ignore[no-untyped-def]
    return fields.get(number, [default])[-1]


def _fields(content: bytes) -> dict[int, list]:
    """The values of a message by field number: whole numbers, or bytes."""
    found: dict[int, list] = {}
    for number, value in _walk(content):
        found.setdefault(number, []).append(value)
    return found


def _walk(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(content):
        key, at = _varint(content, at)
        if key & 7 == 0:
            value, at = _varint(content, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, at = _varint(content, at)
        else:
            size = {1: 8, 5: 4}[key & 7]
        if at + size > len(content):
            raise ValueError("it is cut off")
        yield key >> 3, content[at : at + size]
        at += size


def _varint(content: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
