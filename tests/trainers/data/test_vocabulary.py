import pytest

from tests.trainers.data.corpus import WORDS
from trainers.data.tokenizer import fingerprint, special_ids
from trainers.data.vocabulary import TRAINED_ROLES, train_tokenizer
from trainers.span_lengths import NUM_SENTINELS

LINES = [f"The {a} {b} is Here.\n" for a in WORDS for b in WORDS]


def trained(kind, vocab_size=400, lowercase=False, lines=LINES):
    return train_tokenizer(lambda: lines, kind, vocab_size, lowercase)


@pytest.mark.parametrize("kind", TRAINED_ROLES)
def test_each_kind_is_repeatable_small_enough_and_has_its_special_tokens(kind):
    tokenizers = [trained(kind) for _ in range(4)]
    assert len({fingerprint(tokenizer) for tokenizer in tokenizers}) == 1
    assert tokenizers[0].get_vocab_size() <= 400
    special = special_ids(tokenizers[0])
    special.require(TRAINED_ROLES[kind])
    absent = {"cls", "sep", "mask", "eos", "sentinels"} - set(TRAINED_ROLES[kind])
    assert all(getattr(special, role) in (None, ()) for role in absent)


@pytest.mark.parametrize("kind", TRAINED_ROLES)
def test_case_is_kept_when_asked(kind):
    assert trained(kind).encode("The WIND").ids != trained(kind).encode("the wind").ids
    lowered = trained(kind, lowercase=True)
    assert lowered.encode("The WIND").ids == lowered.encode("the wind").ids


def test_bytes_spell_everything_and_come_back():
    tokenizer = trained("bpe")
    text = "  Na\u00efve \U0001f600\n\n\tthe wind \x00 <|endoftext|> \u4f60"
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    special = special_ids(tokenizer)
    assert special.pad == special.eos == 0 and 0 not in ids
    assert len(tokenizer.encode(" wind").ids) == 1


def test_unigram_has_the_sentinels_of_t5_and_gives_text_back():
    tokenizer = trained("unigram")
    special = special_ids(tokenizer)
    assert (special.pad, special.eos, special.unk) == (0, 1, 2)
    last = tokenizer.get_vocab_size() - 1
    assert special.sentinels == tuple(range(last, last - NUM_SENTINELS, -1))
    assert tokenizer.encode("<extra_id_0>").ids == [last]
    ids = tokenizer.encode("The  wind\nis Here.", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "The wind is Here."


def test_unigram_keeps_what_is_used_most():
    """A word of many is a piece; a word of few is spelled."""
    lines = ["windmill " * 50 + f"w{i}q" for i in range(200)]
    tokenizer = trained("unigram", 150, lines=lines)
    assert tokenizer.encode("windmill").tokens == ["\u2581windmill"]
    assert len(tokenizer.encode("w123q").tokens) > 1 and tokenizer.get_vocab_size() <= 150
