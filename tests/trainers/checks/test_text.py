"""The check of a run's text: whether it is there, and how many times the steps read it."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainers.data.corpus import write_text
from trainers.checks import text
from trainers.compose import compose
from trainers.config import PhaseConfig
from trainers.data.splits import open_phases

SMALL = ("data=text", "data.vocab_size=300", "batch.global_size=8", "objective.sequence_length=32")


def test_text_that_is_prepared_is_counted(tmp_path: Path) -> None:
    file = write_text(tmp_path / "text.txt", num_documents=200)
    words = [*SMALL, f"data.path={file}", f"data.cache_dir={tmp_path}/cache"]
    config = compose(words, 2)
    before = text.check_text(config, words)
    assert before.is_green and f"came-prepare {words[0]}" in before.text
    num_bytes = file.stat().st_size
    assert before.details["text_bytes"] == num_bytes
    tokens = config.train.steps * 8 * 32
    about = before.details["estimated_passes"]
    assert about == pytest.approx(tokens / (num_bytes / 4)) and 1 < about < 100
    assert "passes over it, at four bytes a token" in before.text and "WARNING" not in before.text
    open_phases(config)
    after = text.check_text(config, words)
    assert after.is_green and "documents 200" in after.text
    assert after.details["statistics"]["num_documents"] == 200
    assert 1 < after.details["passes"] < 100 and "WARNING" not in after.text
    long = text.check_text(replace(config, train=replace(config.train, steps=16_000)), words)
    assert long.is_green and "times: WARNING, beyond 100" in long.text
    # A vocabulary this small has tokens of less than four bytes: the text is longer than estimated.
    assert about / 4 < text.check_text(config, words).details["passes"] < about
    many = replace(config, batch=replace(config.batch, global_size=10**6))
    few = text.check_text(many, words)
    assert (few.is_green, few.exit_code) == (False, 3) and "smaller batch.global_size" in few.text


def test_too_little_text_is_told_before_it_is_prepared(tmp_path: Path) -> None:
    """1.5 MB for the 83.9 billion tokens of bert_large_32k were OK, without a word."""
    file = tmp_path / "text.txt"
    file.write_text("A sentence of text.\n\n" * 75_000)
    places = (f"data.path={file}", f"data.cache_dir={tmp_path}/cache")
    found = text.check_text(compose(["experiment=bert_large_32k", *places], 2), places)
    assert found.is_green and found.details["estimated_passes"] == pytest.approx(
        20_000 * 32_768 * 128 / (file.stat().st_size / 4)
    )
    assert "about 213,044 passes over it, at four bytes a token: WARNING, beyond 100" in found.text


@pytest.mark.parametrize(
    ("name", "words", "known"),
    [
        ("a.txt", (), True),
        ("a.jsonl", (), True),
        ("a.jsonl.gz", (), False),  # whose text is several times as long
        ("a.parquet", (), False),
        ("a.txt", ("data=mix", "data.sources=[{path: FILE}, {path: FILE}]"), True),
        ("a.txt", ("data=mix", "data.sources=[{path: FILE, weight: 1}]"), False),  # a part of it
        ("a.txt", ("data=mix", "data.sources=[{path: FILE}, {hub: a/b}]"), False),
        ("a.txt", ("data=pydocs",), False),
    ],
)
def test_of_which_text_the_size_is_known(tmp_path: Path, name: str, words, known: bool) -> None:
    (tmp_path / name).write_bytes(bytes(1000))
    words = words or ("data=text", "data.path=FILE")
    config = compose([word.replace("FILE", f"{tmp_path / name}") for word in words], 2)
    twice = 2 if "data=mix" in words else 1
    assert text.known_bytes(config.data) == (1000 * twice if known else None)


def test_how_many_times_the_text_is_read() -> None:
    words = ("train.steps=100", "batch.global_size=8", "objective.next_sentence=false")
    config = compose([*SMALL, *words, "data.path=x"], 2)
    assert text.passes(config, [50]) == 16.0
    phases = (PhaseConfig(share=0.9), PhaseConfig(share=0.1, sequence_length=64))
    config = replace(config, train=replace(config.train, phases=phases))
    assert text.passes(config, [60, 20]) == pytest.approx(12 + 4)
