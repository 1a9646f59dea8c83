"""The little of protocol buffers that a SentencePiece model needs, against models made by hand."""

import os
import struct
from pathlib import Path

import pytest

from trainers.data.tokenizer import load_tokenizer, special_ids
from trainers.errors import DataError

NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, value):
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def model(pieces, kind):
    entries = (
        field(1, field(1, text.encode()) + field(2, float(score)) + field(3, type_))
        for text, score, type_ in pieces
    )
    return b"".join(entries) + field(2, field(3, kind)) + field(3, field(1, b"identity"))


SPECIAL = [("<pad>", 0, CONTROL), ("</s>", 0, CONTROL), ("<unk>", 0, UNKNOWN)]


def test_a_unigram_model_takes_the_likeliest_pieces(tmp_path):
    pieces = [("\u2581", -3, 1), ("wind", -9, 1), ("\u2581wi", -2, 1), ("nd", -2, 1), ("s", -4, 1)]
    (tmp_path / "spiece.model").write_bytes(model([*SPECIAL, *pieces], 1))
    tokenizer = load_tokenizer(str(tmp_path), lowercase=False)
    assert tokenizer.encode("wind  winds ").tokens == [
        "\u2581wi", "nd", "\u2581wi", "nd", "s",
    ]  # fmt: skip
    special = special_ids(tokenizer)
    assert (special.pad, special.eos, special.unk) == (0, 1, 2)
    assert special.sentinels == tuple(range(107, 7, -1))  # T5's, which the file does not hold


def test_a_bpe_model_merges_the_best_first_and_spells_the_rest_in_bytes(tmp_path):
    letters = [(letter, -100 - i, NORMAL) for i, letter in enumerate("\u2581abc")]
    merged = [("ab", -1, NORMAL), ("bc", 0, NORMAL), ("\u2581a", -2, NORMAL)]
    letters_of_bytes = [(f"<0x{i:02X}>", 0, BYTE) for i in range(256)]
    special = [("<unk>", 0, UNKNOWN), ("<s>", 0, CONTROL), ("</s>", 0, CONTROL)]
    content = model([*special, *letters_of_bytes, *merged, *letters], 2)
    (tmp_path / "tokenizer.model").write_bytes(content)
    tokenizer = load_tokenizer(str(tmp_path / "tokenizer.model"), lowercase=False)
    assert tokenizer.encode("abc").tokens == ["\u2581a", "bc"]
    assert tokenizer.encode("ab ab").tokens == ["\u2581", "ab", "\u2581", "ab"]
    assert tokenizer.encode("a\u00e9").tokens == ["\u2581a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("a\u00e9 abc").ids) == "a\u00e9 abc"
    found = special_ids(tokenizer)
    assert (found.pad, found.bos, found.eos, found.sentinels) == (2, 1, 2, ())


@pytest.mark.parametrize("content", [b"", b"x", b"\x0a\x05ab", model(SPECIAL, 3)])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "a.model").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.model: not a SentencePiece model"):
        load_tokenizer(str(tmp_path / "a.model"), lowercase=False)


@pytest.mark.skipif(
    "CAME_SHARED_DATA" not in os.environ,
    reason="real text is not in the repository; CAME_SHARED_DATA may name it",
)
def test_the_published_model_of_t5_is_its_tokenizer_json():
    shared = Path(os.environ["CAME_SHARED_DATA"])
    t5 = shared / "tokenizers" / "t5"
    ours, theirs = (load_tokenizer(str(t5 / n), False) for n in ("spiece.model", "tokenizer.json"))
    for file in sorted((shared / "wikipedia-en" / "valid").iterdir())[:1]:
        for line in file.read_text().splitlines():
            ids = ours.encode(line, add_special_tokens=False).ids
            assert ids == theirs.encode(line, add_special_tokens=False).ids
