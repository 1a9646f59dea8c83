import json

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from tests.trainers.data.corpus import WORDS
from trainers.data.tokenizer import (
    fingerprint,
    load_tokenizer,
    special_ids,
    tokenizer_files,
)
from trainers.data.vocabulary import BERT_TOKENS, train_tokenizer
from trainers.errors import ConfigError, DataError


@pytest.fixture
def lines(tmp_path):
    file = tmp_path / "lines"
    file.write_text("".join(f"The {a} {b} is Here.\n" for a in WORDS for b in WORDS))
    return file


def wordpiece(file, vocab_size, lowercase):
    return trained("wordpiece", file, vocab_size, lowercase)


def trained(kind, file, vocab_size, lowercase=False):
    lines = file.read_text(encoding="utf-8").splitlines()
    return train_tokenizer(lambda: lines, kind, vocab_size, lowercase)


def vocabulary(folder, entries):
    file = folder / "vocab.txt"
    file.write_text("".join(f"{entry}\n" for entry in entries))
    return file


def test_training_fills_the_vocabulary_and_is_repeatable(lines):
    trained = [wordpiece(lines, 120, lowercase=True) for _ in range(5)]
    first = trained[0]
    assert first.get_vocab_size() <= 120
    assert set(BERT_TOKENS) < set(first.get_vocab())
    # Five times, since the library's own order differs between one training and the next.
    assert len({fingerprint(tokenizer) for tokenizer in trained}) == 1
    assert first.encode("The WIND").tokens[:1] == first.encode("the wind").tokens[:1] == ["the"]


def test_case_is_kept_when_asked(lines):
    tokenizer = wordpiece(lines, 400, lowercase=False)
    assert "The" in tokenizer.get_vocab() and "the" in tokenizer.get_vocab()


def test_vocab_file_json_and_folder_are_the_same(tmp_path):
    file = vocabulary(tmp_path, [*BERT_TOKENS, "wind", "##y", "."])
    from_text = load_tokenizer(str(file), lowercase=True)
    from_folder = load_tokenizer(str(tmp_path), lowercase=True)
    from_text.save(str(tmp_path / "tokenizer.json"))
    from_json = load_tokenizer(str(tmp_path / "tokenizer.json"), lowercase=True)
    assert fingerprint(from_text) == fingerprint(from_folder) == fingerprint(from_json)
    assert from_json.encode("Windy.").ids == [5, 6, 7]
    assert special_ids(from_json).sorted() == (0, 1, 2, 3, 4)


CASED = [*BERT_TOKENS, "Wind", "wind", "##y", "."]


def test_capitals_in_a_vocabulary_refuse_lowercase(tmp_path):
    """Cased BERT's vocab.txt was taken with text made lower case: half of it was never used."""
    file = vocabulary(tmp_path, CASED)
    with pytest.raises(ConfigError, match=r"1 of 4 entries .*\(Wind\).* data.lowercase=false"):
        load_tokenizer(str(file), lowercase=True)
    assert load_tokenizer(str(file), lowercase=False).encode("Windy").ids == [5, 7]
    odd = ["\u1d2c", "[unused0]", "Odd", *(f"word{i}" for i in range(200))]
    assert load_tokenizer(str(vocabulary(tmp_path, [*BERT_TOKENS, *odd])), lowercase=True)


def test_the_tokenizer_config_beside_a_vocabulary_says_its_case(tmp_path):
    file, config = vocabulary(tmp_path, CASED), tmp_path / "tokenizer_config.json"
    for lowercase, ids in ((True, [6]), (False, [5])):
        config.write_text(json.dumps({"do_lower_case": lowercase}))
        for path in (file, tmp_path):
            tokenizer = load_tokenizer(str(path), lowercase=not lowercase)
            assert tokenizer.encode("Wind").ids == ids
    assert tokenizer_files(str(tmp_path)) == [file, config]  # which the store is found by
    config.write_text("{}")
    with pytest.raises(ConfigError, match="data.lowercase=false"):
        load_tokenizer(str(file), lowercase=True)
    config.write_text("{")
    with pytest.raises(DataError, match="tokenizer_config.json: broken JSON"):
        load_tokenizer(str(file), lowercase=True)


def test_truncation_and_padding_of_a_given_tokenizer_are_off(tmp_path, lines):
    tokenizer = wordpiece(lines, 200, lowercase=True)
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(load_tokenizer(str(tmp_path), True).encode("the wind " * 10).ids) == 20


def test_missing_special_tokens_are_named(tmp_path):
    file = vocabulary(tmp_path, ["[PAD]", "[UNK]", "[CLS]", "wind"])
    special = special_ids(load_tokenizer(str(file), lowercase=True))
    with pytest.raises(ConfigError, match=r"has no \[SEP\], \[MASK\]"):
        special.require(("pad", "cls", "sep", "mask"))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([*BERT_TOKENS, "wind", "wind"], r"line 7: 'wind' is also on line 6"),
        ([*BERT_TOKENS, "", "wind"], r"line 6: empty"),
    ],
)
def test_bad_vocabulary(tmp_path, entries, words):
    with pytest.raises(DataError, match=words):
        load_tokenizer(str(vocabulary(tmp_path, entries)), lowercase=True)


def test_files_that_are_no_tokenizer(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "vocab.bin").write_text("x")
    for path in ("empty", "vocab.bin", "nowhere"):
        with pytest.raises(ConfigError, match=f"{path}: need a vocab.txt"):
            load_tokenizer(str(tmp_path / path), lowercase=True)
    with pytest.raises(DataError, match=r"vocab.txt: byte 6 is not UTF-8"):
        load_tokenizer(str(tmp_path / "vocab.txt"), lowercase=True)
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer"):
        load_tokenizer(str(tmp_path / "tokenizer.json"), lowercase=True)


def test_fingerprint_sees_every_setting(lines):
    tokenizer = wordpiece(lines, 200, lowercase=True)
    other = wordpiece(lines, 100, lowercase=True)
    cased = wordpiece(lines, 200, lowercase=False)
    assert len({fingerprint(tokenizer), fingerprint(other), fingerprint(cased)}) == 3


def test_every_common_character_can_be_spelled(tmp_path):
    file = tmp_path / "lines"
    file.write_text("Na\u00efve zoo, \u4f60\u597d!\n" * 50 + "rare: \u0416\n", encoding="utf-8")
    tokenizer = wordpiece(file, 300, lowercase=True)
    assert "[UNK]" not in tokenizer.encode("ozone, \u597d a \u4f60 naive \u0416 zen! vino").tokens
    assert "##\u4f60" not in tokenizer.get_vocab()  # stands alone, so it never goes on a word


def test_rare_characters_become_unknown(tmp_path):
    file = tmp_path / "lines"
    rare = "".join(chr(0x4E00 + i) for i in range(500))
    file.write_text("the wind in the house\n" * 50 + rare + "\n", encoding="utf-8")
    tokenizer = wordpiece(file, 300, lowercase=True)
    assert tokenizer.get_vocab_size() <= 300
    assert tokenizer.encode("wind " + chr(0x4E00 + 499)).tokens[-1] == "[UNK]"


def test_a_vocabulary_with_gaps_is_refused(tmp_path):
    vocabulary = {token: 1000 * number for number, token in enumerate([*BERT_TOKENS, "a"])}
    file = tmp_path / "tokenizer.json"
    Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")).save(str(file))
    with pytest.raises(ConfigError, match="ids up to 5000"):
        load_tokenizer(str(file), lowercase=True)


def test_a_vocabulary_of_special_tokens_alone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nothing else"):
        load_tokenizer(str(vocabulary(tmp_path, BERT_TOKENS)), lowercase=True)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_vocabulary_and_merges_of_a_bpe(tmp_path, names):
    entries = ["<|endoftext|>", "a", "b", "\u0120", "\u0120a", "\u0120ab"]
    (tmp_path / names[0]).write_text(json.dumps({entry: i for i, entry in enumerate(entries)}))
    with pytest.raises(ConfigError, match="vocab.json with merges.txt"):
        load_tokenizer(str(tmp_path / names[0]), lowercase=False)
    (tmp_path / names[1]).write_text("#version: 0.2\n\u0120 a\n\u0120a b\n", encoding="utf-8")
    for path in (tmp_path, tmp_path / names[0]):
        tokenizer = load_tokenizer(str(path), lowercase=False)
        assert tokenizer.encode("a ab").ids == [1, 5]
        special = special_ids(tokenizer)
        assert special.eos == special.pad == 0 and special.sorted() == (0,)
    (tmp_path / names[1]).write_text("#version: 0.2\nq z\n")
    with pytest.raises(DataError, match=names[1]):
        load_tokenizer(str(tmp_path), lowercase=False)


def test_a_vocabulary_that_nothing_can_pad(tmp_path):
    file = tmp_path / "tokenizer.json"
    Tokenizer(WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(file))
    with pytest.raises(ConfigError, match=r"no \[PAD\], no <pad> and no end of text"):
        load_tokenizer(str(file), lowercase=True)
