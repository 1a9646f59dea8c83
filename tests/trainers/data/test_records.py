"""Texts from JSON lines and parquet; what is bad in them is told by file and record."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainers.data.corpus import read_text
from trainers.data import records
from trainers.data.documents import Trouble
from trainers.data.records import read_jsonl
from trainers.errors import DataError

LINES = [json.dumps({"id": i, "text": f"Text {i}.\n\nIt has\ttwo lines."}) for i in range(3)]
GOOD = "\n".join(LINES).encode() + b"\n"
TEXTS = [json.loads(line)["text"] for line in LINES]
MANY = b"".join(b'{"text": "number %d %x"}\n' % (i, i**9) for i in range(5000))


def zst(content):
    return pa.compress(content, codec="zstd", asbytes=True)


PACKED = {"a.jsonl": bytes, "a.jsonl.gz": gzip.compress, "a.jsonl.zst": zst}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def table(path, values, column="text", **options):
    pq.write_table(pa.table({"id": range(len(values)), column: values}), path, **options)
    return str(path)


@pytest.mark.parametrize("name", PACKED)
def test_json_lines_packed_or_not(tmp_path, name):
    path = write(tmp_path / name, PACKED[name](b"\xef\xbb\xbf" + GOOD + b"\n \n"))
    assert list(read_text(path)) == TEXTS


def test_parquet_in_several_row_groups(tmp_path):
    path = table(tmp_path / "a.parquet", TEXTS * 50, row_group_size=7)
    assert list(read_text(path)) == TEXTS * 50


def test_a_folder_of_everything_is_read_in_order_of_names(tmp_path):
    (tmp_path / "b").mkdir()
    table(tmp_path / "b" / "c.parquet", ["parquet"])
    write(tmp_path / "a.jsonl", b'{"text": "json"}\n')
    write(tmp_path / "b" / "a.jsonl.gz", gzip.compress(b'{"text": "gz"}'))
    write(tmp_path / "b" / "b.txt", b"text\n\ntwo")
    write(tmp_path / "b" / "d.jsonl.zst", zst(b'{"text": "zst"}'))
    write(tmp_path / "b" / "notes.md", b"\xff")
    assert list(read_text(str(tmp_path))) == ["json", "gz", "text", "two", "parquet", "zst"]


def test_another_column(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": 1, "body": "words"}\n')
    assert list(read_text(path, column="body")) == ["words"]
    path = table(tmp_path / "a.parquet", ["words"], column="body")
    assert list(read_text(path, column="body")) == ["words"]


BAD = {
    b'{"text": "cut': "broken JSON",
    b"[" * 100_000: "broken JSON",
    b'["text"]': "not an object but list",
    b'{"body": "words"}': "data.sources[].text_column of a mix), there is body",
    b"{}": "there is none at all",
    b'{"text": null}': "the text is null",
    b'{"text": ["words"]}': "the text is list, not a string",
    b'{"text": " \\n"}': "the text is empty",
    b'{"text": "a\\u0000b"}': "NUL in the text",
    b'{"text": "na\xefve"}': "0xef at byte 12 of the line is not UTF-8",
}


@pytest.mark.parametrize("line", BAD, ids=list(BAD.values()))
def test_a_bad_record_stops_or_is_counted(tmp_path, line):
    path = write(tmp_path / "a.jsonl", GOOD + line + b"\n" + GOOD)
    with pytest.raises(DataError) as error:
        list(read_text(path))
    assert f"{path}: record 4: " in str(error.value) and BAD[line] in str(error.value)
    assert "data.on_bad_text=skip" in str(error.value)
    trouble = Trouble("skip")
    assert len(list(read_jsonl(tmp_path / "a.jsonl", "text", trouble))) == 6
    assert trouble.count == 1 and "record 4" in trouble.first


def test_bad_bytes_are_replaced_when_asked_and_counted(tmp_path, caplog):
    """They were replaced without a word."""
    path = write(tmp_path / "a.jsonl", b'{"text": "na\xefve"}\n{"text": "a\\u0000b"}\n')
    assert list(read_text(path, "replace")) == ["na\ufffdve", "a\ufffdb"]
    assert "applied 2 times, first at" in caplog.text and "record 1: 0xef" in caplog.text


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_archives(tmp_path, name, damage):
    content = PACKED[name](MANY)
    damaged = {"cut": content[:-40], "garbage": content + b"garbage", "empty": b"x"}[damage]
    path = write(tmp_path / name, damaged)
    with pytest.raises(DataError, match=rf"{name}: record \d+: .*(cannot be read on|broken)"):
        list(read_text(path))
    kept = list(read_text(path, "skip"))
    assert len(kept) > 1000 or damage == "empty"


def test_bad_cells_of_parquet(tmp_path, caplog):
    path = table(tmp_path / "a.parquet", ["one", None, "", "a\x00", "two"])
    with pytest.raises(DataError, match="a.parquet: record 2: the text is null"):
        list(read_text(path))
    assert list(read_text(path, "skip")) == ["one", "two"]
    assert "applied 3 times, first at" in caplog.text
    path = table(tmp_path / "b.parquet", [1, 2])
    with pytest.raises(DataError, match="record 1: the text is int, not a string"):
        list(read_text(path))
    with pytest.raises(DataError, match="no column 'body' .*there is id, text"):
        list(read_text(path, column="body"))


def test_a_string_of_parquet_that_is_not_utf8(tmp_path, caplog):
    """It was dropped whatever was asked."""
    bad = pa.array([b"fine", b"na\xefve"], pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(pa.table({"text": bad}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="record 2: 0xef at byte 2 of the text is not UTF-8"):
        list(read_text(str(tmp_path / "a.parquet")))
    assert list(read_text(str(tmp_path / "a.parquet"), "skip")) == ["fine"]
    assert list(read_text(str(tmp_path / "a.parquet"), "replace")) == ["fine", "na\ufffdve"]
    assert caplog.text.count("applied 1 times, first at") == 2


@pytest.mark.parametrize("damage", ["cut", "zeros", "empty"])
def test_damaged_parquet(tmp_path, damage):
    path = tmp_path / "a.parquet"
    table(path, [f"words {i}" for i in range(1000)], row_group_size=100)
    content = bytearray(path.read_bytes())
    if damage == "zeros":
        content[3000:3600] = bytes(600)
    path.write_bytes({"cut": content[:-50], "zeros": content, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"a\.parquet: record \d+: the file cannot be read on"):
        list(read_text(str(path)))
    assert len(list(read_text(str(path), "skip"))) < 1000


def test_a_record_beyond_all_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 100)
    path = write(tmp_path / "a.jsonl", GOOD + b'{"text": "' + b"x" * 500 + b'"}\n' + GOOD)
    with pytest.raises(DataError, match="record 4: over 100 bytes"):
        list(read_text(path))
    assert list(read_text(path, "skip")) == TEXTS * 2
