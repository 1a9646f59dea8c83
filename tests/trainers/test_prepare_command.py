"""`came-prepare`: the words of came-train, and numbers for a person or a program."""

import json
import os
import subprocess
import sys

import pytest

from tests.trainers.data.corpus import write_text
from trainers import prepare
from trainers.compose import compose
from trainers.words import long_words


def run(monkeypatch, capfd, *words):
    monkeypatch.setattr(sys, "argv", ["came-prepare", *words])
    with pytest.raises(SystemExit) as ended:
        prepare.main()
    out, err = capfd.readouterr()
    return ended.value.code, out, err


def test_the_short_word_for_a_tokenizer():
    assert long_words(["tokenizer=bpe", "a=b"]) == [
        "data.tokenizer=null", "data.tokenizer_model=bpe", "a=b",
    ]  # fmt: skip
    assert long_words(["tokenizer"]) == ["tokenizer"]
    assert long_words(["tokenizer=my/vocab.txt"]) == ["data.tokenizer=my/vocab.txt"]
    # The words of came-prepare are said to find what it has prepared: came-train did not know this.
    data = compose(["tokenizer=bert/vocab.txt"], 2).data
    assert (data.tokenizer, data.tokenizer_model) == ("bert/vocab.txt", "wordpiece")


def test_it_tells_what_it_has_prepared(tmp_path, monkeypatch, capfd):
    text = write_text(tmp_path / "a.txt", num_documents=60)
    text.write_text(text.read_text() + "\nbad\x00line\n")
    words = [
        *("data=text", f"data.path={text}", f"data.cache_dir={tmp_path / 'cache'}"),
        *("data.vocab_size=300", "data.on_bad_text=skip", "data.heldout_fraction=0.1"),
    ]
    code, out, err = run(monkeypatch, capfd, *words)
    assert code == 0 and "reading" in err
    assert "documents  60" in out and "bad places passed over 1" in out and "#" in out
    code, out, err = run(monkeypatch, capfd, *words, "--json")
    found = json.loads(out)
    assert code == 0 and err == ""  # it lies there already
    assert found["num_documents"] == 60 == sum(found["lengths"].values())
    assert found["num_bad"] == 1 and os.path.isdir(found["folder"])
    assert found["num_tokens"] > found["num_heldout_tokens"] > 0
    for limit, count in found["lengths"].items():
        assert count > 0 and int(limit) & (int(limit) - 1) == 0


def test_typing_errors_are_answered_as_by_came_train(monkeypatch, capfd):
    code, _, err = run(monkeypatch, capfd, "data.vocabsize=3")
    assert code == 2 and "did you mean 'data.vocab_size'" in err
    code, _, err = run(monkeypatch, capfd, "data=text", "data.path=nowhere.txt")
    assert code == 3 and "nowhere.txt: no such file" in err
    code, out, _ = run(monkeypatch, capfd, "--help")
    assert code == 0 and "came-prepare data=text" in out


def test_an_unreachable_hub_names_the_local_way(tmp_path):
    """As a command, with the time that its imports take."""
    words = [sys.executable, "-m", "trainers.prepare", "data=hub", "data.hub=some/set"]
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [*words, f"data.cache_dir={tmp_path}"],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr and "data=text data.path=FOLDER" in done.stderr
    assert not list(tmp_path.glob("hub-*.part"))
