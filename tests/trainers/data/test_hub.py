"""Datasets by name: read with the library of the hub, here from local folders."""

import json
import socket
import time

import pytest

from tests.trainers.data.corpus import WORDS, data_config, sentences
from trainers.config import MixSource
from trainers.data.documents import Trouble
from trainers.data.hub import HubDataset, hub_source
from trainers.data.open_source import open_source
from trainers.data.prepare import prepare
from trainers.errors import DataError


def dataset(folder, files=3, rows=20, column="text"):
    """A folder that `datasets` can read, of several files."""
    folder.mkdir()
    for number in range(files):
        lines = [{column: f"The {WORDS[i % 7]} of {number} and {i}."} for i in range(rows)]
        (folder / f"{number}.jsonl").write_text("".join(f"{json.dumps(x)}\n" for x in lines))
    return HubDataset(str(folder), None, "train", None, column)


def test_every_file_is_a_part_and_every_row_comes_once(tmp_path):
    parts = hub_source(dataset(tmp_path / "set")).parts()
    texts = [[text for text, _ in part.read(Trouble("strict"))] for part in parts]
    assert [len(found) for found in texts] == [20, 20, 20]
    assert len({text for found in texts for text in found}) == 60


def test_a_dataset_is_prepared_without_any_network(tmp_path, monkeypatch):
    dataset(tmp_path / "set")

    def refuse(*words):
        raise AssertionError(f"asked for {words}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    config = data_config(None, tmp_path / "cache", name="hub", hub=str(tmp_path / "set"))
    prepared = prepare(config, sentences(32))
    assert prepared.statistics.num_documents == 60
    found = prepare(config, sentences(32))
    assert (found.folder, found.fingerprint) == (prepared.folder, prepared.fingerprint)


def test_a_folder_is_known_by_its_files_and_a_name_by_itself(tmp_path):
    """Folders were known by their names: what had been in one before was found again."""

    def digest(name):
        return hub_source(HubDataset(str(name), None, "train", None, "text")).digest

    dataset(tmp_path / "a", files=2)
    dataset(tmp_path / "b", files=2)
    before = digest(tmp_path / "a")
    assert before == digest(tmp_path / "b")
    (tmp_path / "a" / ".notes").write_text("not read")
    assert before == digest(tmp_path / "a")
    (tmp_path / "a" / "1.jsonl").rename(tmp_path / "a" / "test.jsonl")  # another split
    assert before != digest(tmp_path / "a")
    with open(tmp_path / "b" / "0.jsonl", "a") as file:
        file.write('{"text": "More."}\n')
    assert before != digest(tmp_path / "b")
    assert "some/set" in digest("some/set")


def test_a_missing_column_and_a_missing_split_are_told(tmp_path):
    given = dataset(tmp_path / "set", column="body")
    with pytest.raises(DataError, match=r"no column 'text' \(data.text_column, .* there is body"):
        hub_source(HubDataset(given.name, None, "train", None, "text")).parts()
    with pytest.raises(DataError, match="cannot be opened: .*nowhere"):
        hub_source(HubDataset(given.name, None, "nowhere", None, "body")).parts()


def silent_server():
    """A port that takes connections and says nothing."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen()
    return server


@pytest.mark.parametrize("how", ["closed", "silent", "unknown", "offline"])
def test_a_hub_that_cannot_be_reached_is_told_in_ten_seconds(monkeypatch, how):
    with silent_server() as server:
        port = server.getsockname()[1] if how == "silent" else 9
        host = "no-such-host.invalid" if how == "unknown" else "127.0.0.1"
        monkeypatch.setenv("HF_ENDPOINT", f"http://{host}:{port}")
        if how == "offline":
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        else:
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        if how == "silent":
            monkeypatch.setattr("trainers.data.hub._SECONDS", 1.0)
        started = time.monotonic()
        with pytest.raises(DataError, match="data.hub=some/set: .*data=text data.path=FOLDER"):
            hub_source(HubDataset("some/set", None, "train", None, "text")).parts()
        assert time.monotonic() - started < 10


def mixed(*weights, paths, tmp_path):
    sources = tuple(MixSource(path=str(p), weight=w) for p, w in zip(paths, weights, strict=True))
    return data_config(None, tmp_path / "cache", name="mix", sources=sources)


def test_weights_are_shares_of_the_text(tmp_path):
    for name, count in (("a", 4000), ("b", 1000)):
        (tmp_path / f"{name}.txt").write_text(
            "\n\n".join(f"The {name}{name} wind {i:05d} sings." for i in range(count))
        )
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    found = {}
    for weights in ((None, None), (1.0, 1.0), (1.0, 3.0)):
        prepared = prepare(mixed(*weights, paths=paths, tmp_path=tmp_path), sentences(32))
        stores = (prepared.train, prepared.heldout)
        text = " ".join(prepared.tokenizer.decode(store.tokens.tolist()) for store in stores)
        text = text.replace(" ", "")
        found[weights] = (text.count("theaawind"), text.count("thebbwind"))
    assert found[None, None] == (4000, 1000)
    assert found[1.0, 1.0][1] == 1000 and abs(found[1.0, 1.0][0] - 1000) < 100
    assert found[1.0, 3.0][1] == 1000 and abs(found[1.0, 3.0][0] - 333) < 60


def test_a_mix_of_files_and_the_hub(tmp_path):
    given = dataset(tmp_path / "set", files=2)
    (tmp_path / "a.txt").write_text("One.\n\nTwo.\n")
    sources = (MixSource(path=str(tmp_path / "a.txt")), MixSource(hub=given.name))
    source = open_source(data_config(None, tmp_path, name="mix", sources=sources))
    assert [part.group for part in source.parts()] == [0, 1, 1]
