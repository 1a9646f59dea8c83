"""What is told of prepared text: here of documents that are too short to fill a sequence."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainers.data.corpus import data_config, objective_config, random_store
from trainers.compose import compose
from trainers.data.needs import needs_of
from trainers.data.prepare import prepare
from trainers.data.statistics import Statistics, statistics, too_short


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    folder = tmp_path_factory.mktemp("stores")
    stores = [random_store(folder / name, seed=n) for n, name in enumerate(("train", "heldout"))]
    return statistics(*stores, vocab_size=10, num_text_bytes=1, num_bad=0)


def test_documents_that_fill_a_quarter_of_a_sequence_are_long_enough(found: Statistics) -> None:
    assert too_short(replace(found, median_length=32.0), 128) is None
    assert too_short(replace(found, median_length=1.0), 0) is None, "they lie end to end"
    told = too_short(replace(found, median_length=31.0), 128)
    assert told and "no more than 31 tokens, and a sequence has 128" in told
    words = re.search(r"data=mix '(data.sources=[^']*)'", told)
    assert words
    (source,) = compose(["data=mix", words[1].replace("FOLDER", "books")], 2).data.sources
    assert (source.path, source.join_records) == ("books", 5)


def test_whether_a_document_has_to_fill_a_sequence() -> None:
    assert needs_of(objective_config(sequence_length=128)).fills == 128
    packed = objective_config(packing=True, next_sentence=False)
    assert needs_of(packed).fills == 0
    assert needs_of(objective_config(name="causal_lm")).fills == 0


def test_paragraphs_of_a_book_are_told_of_while_it_is_prepared(tmp_path: Path, capsys) -> None:
    file = tmp_path / "book.txt"
    file.write_text("\n\n".join(f"{'the river runs ' * 2}{n}." for n in range(100)))
    prepare(data_config(file, tmp_path / "cache"), needs_of(objective_config(sequence_length=128)))
    assert "WARNING, documents are short" in capsys.readouterr().err
