import os
import time
from pathlib import Path

import numpy as np
import pytest

from tests.trainers.data.corpus import data_config, objective_config, sentences, write_text
from trainers.data.batches import IGNORED_LABEL
from trainers.data.masked import MaskedLMBatches
from trainers.data.needs import Needs
from trainers.data.prepare import prepare
from trainers.errors import ConfigError, DataError, StorageError

LENGTH = 32
DOCUMENTS = Needs("documents", 2**16, ("eos",))


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path / "text.txt", num_documents=60)


def documents(prepared, store):
    """The text of each document, as the tokenizer gives it back."""
    starts = store.sentence_starts[store.document_starts]
    tokens = store.tokens
    return [
        prepared.tokenizer.decode(tokens[a:b].tolist())
        for a, b in zip(starts[:-1], starts[1:], strict=True)
    ]


def test_text_becomes_tokens_and_back(tmp_path, text):
    prepared = prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))
    found = documents(prepared, prepared.train) + documents(prepared, prepared.heldout)
    expected = [document.lower().split() for document in text.read_text().split("\n\n")]
    assert sorted(document.replace(".", " . ").split() for document in found) == sorted(
        " ".join(words).replace(".", " . ").split() for words in expected
    )
    assert prepared.folder.parent == tmp_path / "cache"
    assert sorted(os.listdir(prepared.folder)) == [
        "heldout", "meta.json", "tokenizer.json", "train",
    ]  # fmt: skip


def test_builds_once_and_says_so(tmp_path, text, capfd):
    config = data_config(text, tmp_path / "cache")
    first = prepare(config, sentences(LENGTH))
    told = capfd.readouterr().err
    assert "60 documents" in told and "training the vocabulary" in told and "tokens (" in told
    second = prepare(config, sentences(LENGTH))
    assert capfd.readouterr().err == ""
    assert (first.folder, first.fingerprint) == (second.folder, second.fingerprint)


def test_inputs_decide_what_is_found(tmp_path, text):
    cache = tmp_path / "cache"
    base = prepare(data_config(text, cache), sentences(LENGTH))
    others = [
        prepare(data_config(text, cache, heldout_fraction=0.3), sentences(LENGTH)),
        prepare(data_config(text, cache, vocab_size=400), sentences(LENGTH)),
        prepare(data_config(text, cache, lowercase=False), sentences(LENGTH)),
        prepare(data_config(text, cache), sentences(LENGTH + 2)),
    ]
    assert len({prepared.folder for prepared in [base, *others]}) == 5


def test_a_change_of_content_is_seen_though_size_and_date_stay(tmp_path, text):
    config = data_config(text, tmp_path / "cache")
    before, stat = prepare(config, sentences(LENGTH)), os.stat(text)
    text.write_text(text.read_text().replace("wind", "mind"))
    os.utime(text, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = prepare(config, sentences(LENGTH))
    assert before.folder != after.folder and before.fingerprint != after.fingerprint


def test_fingerprint_is_of_the_content_not_the_place(tmp_path, text):
    copy = tmp_path / "elsewhere" / "copy.txt"
    copy.parent.mkdir()
    copy.write_bytes(text.read_bytes())
    first = prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))
    second = prepare(data_config(copy, tmp_path / "cache2"), sentences(LENGTH))
    assert first.fingerprint == second.fingerprint


def test_equal_documents_fall_on_one_side_and_new_ones_move_nothing(tmp_path, text):
    config = data_config(text, tmp_path / "cache", heldout_fraction=0.4)
    before = prepare(config, sentences(LENGTH))
    content = text.read_text()
    text.write_text(f"{content}\n{content}\n" + "A new one comes in.\n\nAnd the other is new.\n")
    after = prepare(config, sentences(LENGTH))
    held, trained = (set(documents(after, part)) for part in (after.heldout, after.train))
    assert not held & trained
    assert set(documents(before, before.heldout)) <= held
    assert set(documents(before, before.train)) <= trained
    assert 2 * before.heldout.meta.num_documents <= after.heldout.meta.num_documents


def test_heldout_fraction_is_met(tmp_path):
    text = write_text(tmp_path / "text.txt", num_documents=2000, seed=1)
    prepared = prepare(
        data_config(text, tmp_path / "cache", heldout_fraction=0.1), sentences(LENGTH)
    )
    assert abs(prepared.heldout.meta.num_documents / 2000 - 0.1) < 0.03


def test_of_a_small_corpus_two_documents_are_held_out(tmp_path):
    text = write_text(tmp_path / "text.txt", num_documents=6)
    prepared = prepare(
        data_config(text, tmp_path / "cache", heldout_fraction=0.001), sentences(LENGTH)
    )
    assert prepared.heldout.meta.num_documents == 2
    assert prepared.train.meta.num_documents == 4


@pytest.mark.parametrize(
    ("content", "words"),
    [
        *(("", "there is no document in it"), ("\n" * 1000, "there is no document in it")),
        ("Only one.", r"1 documents, .*blank lines separate"),
        ("One.\n\nTwo.\n\nThree.", r"3 documents, .*blank lines separate"),
        ("Same.\n\n" * 9, r"9 documents, .*blank lines separate"),
    ],
)
def test_too_few_documents(tmp_path, content, words):
    text = tmp_path / "text.txt"
    text.write_text(content)
    with pytest.raises(DataError, match=rf"text\.txt: {words}"):
        prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))
    assert not list((tmp_path / "cache").glob("text-*[!k]"))  # nothing but the lock


def test_errors_of_reading_leave_no_half_built_folder(tmp_path, text):
    text.write_bytes(text.read_bytes() + b"\nna\xefve\n")
    with pytest.raises(DataError, match=r"text\.txt: line \d+, byte \d+: 0xef is not UTF-8"):
        prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))
    assert not list((tmp_path / "cache").glob("text-*[!k]"))
    assert prepare(data_config(text, tmp_path / "cache", on_bad_text="skip"), sentences(LENGTH))


def test_long_sentences_are_cut_so_that_two_fit(tmp_path, text):
    text.write_text(text.read_text() + "\n" + "wind " * 100)
    prepared = prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))
    sizes = np.diff(prepared.train.sentence_starts)
    assert sizes.max() <= (LENGTH - 3) // 2 == prepared.train.meta.max_sentence_tokens


def test_a_monstrous_word_costs_no_time(tmp_path, text):
    """Training once took quadratic time in the longest word: a megabyte of one ended never."""
    text.write_text(text.read_text() + "\n" + "z" * 1_000_000)
    started = time.monotonic()
    prepared = prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))
    assert time.monotonic() - started < 30
    parts = (prepared.train, prepared.heldout)  # wherever its hash has put it
    assert sum((part.tokens == prepared.special.unk).sum() for part in parts) > 3000


def test_special_tokens_never_come_from_text(tmp_path, text):
    text.write_text(text.read_text().replace("wind", "[MASK] [SEP]"))
    prepared = prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))
    special = prepared.special
    present = set(prepared.train.tokens.tolist()) | set(prepared.heldout.tokens.tolist())
    assert not present & {special.mask, special.sep, special.cls, special.pad}
    # Where a person writes them, the tokenizer still knows them.
    assert prepared.tokenizer.encode("[MASK]", add_special_tokens=False).ids == [special.mask]


def test_a_given_vocabulary_is_used(tmp_path, text):
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "wind", "the", "."]
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("".join(f"{entry}\n" for entry in entries))
    config = data_config(text, tmp_path / "cache", tokenizer=str(vocabulary))
    prepared = prepare(config, sentences(LENGTH))
    assert set(prepared.train.tokens.tolist()) == {1, 5, 6, 7}
    vocabulary.write_text(vocabulary.read_text() + "river\n")
    assert prepare(config, sentences(LENGTH)).folder != prepared.folder


def test_text_without_a_token(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join("\u200b\u200c" * i for i in range(1, 20)))
    with pytest.raises(DataError, match="leaves next to nothing of this text"):
        prepare(data_config(text, tmp_path / "cache"), sentences(LENGTH))


def test_a_damaged_store_is_built_again(tmp_path, text):
    config = data_config(text, tmp_path / "cache")
    before = prepare(config, sentences(LENGTH))
    tokens = before.folder / "train" / "tokens.bin"
    content = tokens.read_bytes()
    tokens.unlink()
    tokens.write_bytes(content[:-2])
    after = prepare(config, sentences(LENGTH))
    assert after.fingerprint == before.fingerprint and tokens.read_bytes() == content


def test_settings_that_cannot_work(tmp_path, text):
    with pytest.raises(ConfigError, match="sequence_length=4"):
        prepare(data_config(text, tmp_path / "cache"), sentences(4))
    with pytest.raises(ConfigError, match="data=text with data.path"):
        prepare(data_config(None, tmp_path / "cache"), sentences(LENGTH))
    with pytest.raises(StorageError, match="data.cache_dir"):
        prepare(data_config(text, text), sentences(LENGTH))


def test_documentation_of_python(tmp_path):
    packages = ("pydoc_data", "json")
    config = data_config(None, tmp_path / "cache", name="pydocs", packages=packages)
    prepared = prepare(config, sentences(LENGTH))
    assert prepared.train.meta.num_tokens > 50_000


@pytest.mark.skipif(
    "CAME_SHARED_DATA" not in os.environ,
    reason="real text is not in the repository; CAME_SHARED_DATA may name it",
)
def test_wikipedia_with_the_published_vocabulary(tmp_path):
    shared = Path(os.environ["CAME_SHARED_DATA"])
    vocabulary = str(shared / "tokenizers" / "bert-uncased" / "vocab.txt")
    config = data_config(shared / "wikipedia-en" / "valid", tmp_path, tokenizer=vocabulary)
    prepared = prepare(config, sentences(128))
    assert prepared.special.mask == 103
    unknown = (prepared.train.tokens == prepared.special.unk).mean()
    assert unknown < 0.002
    batches = MaskedLMBatches(
        prepared.train, prepared.special, 30_522, objective_config(sequence_length=128), seed=0
    )
    batch = batches.batch(np.arange(1000))
    used = (batch["masked_labels"] != IGNORED_LABEL).sum()
    assert used == batches.num_labels(np.arange(1000))["mlm"]


def test_a_vocabulary_of_another_language_is_refused(tmp_path, text):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nxyzzy\n")
    config = data_config(text, tmp_path / "cache", tokenizer=str(vocabulary))
    with pytest.raises(DataError, match=r"are \[UNK\]"):
        prepare(config, sentences(LENGTH))


@pytest.mark.parametrize("content", ["{}", "[]", "null", "{"])
def test_a_damaged_description_is_built_again(tmp_path, text, content):
    config = data_config(text, tmp_path / "cache")
    before = prepare(config, sentences(LENGTH))
    (before.folder / "meta.json").write_text(content)
    assert prepare(config, sentences(LENGTH)).fingerprint == before.fingerprint


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_documents_keep_their_blanks(tmp_path, kind):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The wind  sings.\nA river {i} runs." for i in range(40)))
    config = data_config(text, tmp_path / "cache", tokenizer_model=kind, lowercase=False)
    prepared = prepare(config, DOCUMENTS)
    found = documents(prepared, prepared.train) + documents(prepared, prepared.heldout)
    expected = text.read_text().split("\n\n")
    if kind == "unigram":  # which has one kind of blank, as in T5
        expected = [" ".join(document.split()) for document in expected]
    assert sorted(found) == sorted(expected)


def test_an_objective_without_its_special_tokens_is_told_before_anything_is_read(tmp_path):
    config = data_config(None, tmp_path / "cache", tokenizer_model="bpe")
    with pytest.raises(ConfigError, match="tokenizer_model=bpe .*set it to wordpiece"):
        prepare(config, sentences(LENGTH))
    with pytest.raises(ConfigError, match="set it to bpe or unigram"):
        prepare(data_config(None, tmp_path / "cache"), DOCUMENTS)
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nxyzzy\n")
    config = data_config(None, tmp_path / "cache", tokenizer=str(vocabulary))
    with pytest.raises(ConfigError, match=r"has no \[MASK\], which the objective needs"):
        prepare(config, sentences(LENGTH))
