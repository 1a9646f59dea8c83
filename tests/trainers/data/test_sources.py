import json
import logging
import os
from itertools import pairwise
from pathlib import Path

import pytest

from tests.rights import as_a_user
from tests.trainers.data.corpus import read_text
from trainers.data import documents, plain
from trainers.data.documents import Trouble
from trainers.data.files import text_files
from trainers.data.sources import text_source
from trainers.errors import DataError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_blank_lines_separate_documents(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n\n \t\nthree\r\n\r\nfour")
    assert list(read_text(path)) == ["one\ntwo", "three", "four"]


def test_byte_order_mark_is_dropped_and_line_separators_are_text(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffone\u2028still\x0bone\x85 line\n\ntwo")
    assert list(read_text(path)) == ["one\u2028still\x0bone\x85 line", "two"]


WIKI = """\
<doc id="1" url="u" title="Fish &amp; Chips">
Fish & Chips

Fish &amp; chips is a dish.
History.
It is &quot;old&quot;.

</doc>
<doc id="2" url="u" title="Only a title">
Only a title

</doc>
<doc id="3" url="u" title="Other">
No title line here.
Other
</doc>
"""


def test_wiki_extractor(tmp_path):
    path = write(tmp_path / "AA_wiki_00", WIKI)
    assert list(read_text(path)) == [
        'Fish & chips is a dish.\nHistory.\nIt is "old".',
        "No title line here.\nOther",
    ]


def test_wiki_extractors_json_is_records(tmp_path):
    """`wikiextractor --json` writes wiki_00 too: its braces and urls were once learned as text."""
    lines = [{"id": "1", "url": "u", "title": "A", "text": "One.\nTwo."}, {"text": "Three."}]
    content = "\n \n" + "".join(f"{json.dumps(line)}\n" for line in lines)
    write(tmp_path / "AA" / "wiki_00", content)
    write(tmp_path / "AA" / "wiki_01", WIKI.split("<doc", 2)[0] + "<doc id='9'>\n{wiki\n</doc>\n")
    assert list(read_text(str(tmp_path))) == ["One.\nTwo.", "Three.", "{wiki"]


@pytest.mark.parametrize("name", ["a.csv", "a.TSV", "a.csv.gz", "a.json", "a.html"])
def test_a_file_that_is_no_text_is_refused_by_its_name(tmp_path, name):
    path = write(tmp_path / name, "one,two\n")
    with pytest.raises(
        DataError, match=rf"{name}: \.\w+ is not read. What is read ends with .txt, "
    ):
        text_source(path, "text")
    assert list(read_text(write(tmp_path / "wiki.train.raw", "words"))) == ["words"]


def test_folder_is_read_in_order_of_names_and_only_texts(tmp_path):
    write(tmp_path / "b" / "wiki_00", WIKI.split("<doc", 2)[0] + "<doc id='9'>\nwiki\n</doc>\n")
    write(tmp_path / "b" / "a.txt", "b a")
    write(tmp_path / "a.txt", "a")
    for name in ("c.md", "wiki_x", ".hidden.txt"):
        write(tmp_path / name, b"\xff")
    assert list(read_text(str(tmp_path))) == ["a", "b a", "wiki"]


def test_a_folder_without_text_is_told_with_what_it_has(tmp_path):
    for name in ("a.epub", "b/c.epub", "d.docx", "e.txt.gz", ".hidden.txt", "LICENSE"):
        write(tmp_path / name, "x")
    with pytest.raises(DataError) as error:
        text_files(str(tmp_path))
    told = str(error.value)
    assert "2 with .epub, 1 with" in told and "others" in told
    assert "LICENSE, a.epub" in told and ", ...)" in told
    assert ".txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet, or is WikiExtractor's" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"fine\n\nna\xefve\n", "line 3, byte 8: 0xef is not UTF-8"),
        (b"\xef\xbb\xbfcaf\xe9", "line 1, byte 6: 0xe9 is not UTF-8"),
        (b"\xff\xfea\x00", "iconv -f UTF-16"),
        (b"ok\n\xed\xa0\x80\n", "line 2, byte 3: 0xed"),  # a lone surrogate
    ],
)
def test_bad_bytes_are_named_by_file_line_and_byte(tmp_path, content, words):
    path = write(tmp_path / "bad.txt", content)
    with pytest.raises(DataError) as error:
        list(read_text(path))
    assert path in str(error.value) and words in str(error.value)
    assert "data.on_bad_text=skip" in str(error.value)


def test_bad_lines_are_skipped_or_replaced_and_counted(tmp_path, caplog):
    path = write(tmp_path / "bad.txt", b"a\nb\xff\nc\nd\xfe\n")
    with caplog.at_level(logging.WARNING):
        assert list(read_text(path, "skip")) == ["a\nc"]
        assert list(read_text(path, "replace")) == ["a\nb\ufffd\nc\nd\ufffd"]
    assert [record.getMessage().count("2 times, first at") for record in caplog.records] == [
        1, 1,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "line", "kept"),
    [
        ("<doc id='1'>\na\n", 1, ["a"]),
        ("<doc id='1'>\na\n<doc id='2'>\nb\n</doc>\n", 3, ["a", "b"]),
        ("<doc id='1'>\na\n</doc>\nstray\n", 4, ["a"]),
        ("<doc id='1'>\na\n</doc>\n</doc>\n", 4, ["a"]),
    ],
)
def test_broken_blocks(tmp_path, content, line, kept):
    path = write(tmp_path / "wiki_00", content)
    with pytest.raises(DataError, match=rf"wiki_00: line {line}: "):
        list(read_text(path))
    assert list(read_text(path, "skip")) == kept


@pytest.mark.parametrize("content", ["", "\n" * 1000, "\ufeff \r\n\t\n", WIKI.split("<doc", 3)[0]])
def test_no_document(tmp_path, content):
    assert list(read_text(write(tmp_path / "a.txt", content))) == []


def test_missing_path_and_folder_without_texts(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        text_source(str(tmp_path / "nowhere"), "text")
    with pytest.raises(DataError, match="it has no files"):
        text_source(str(tmp_path), "text")


def test_unreadable_file():
    with as_a_user() as place:
        path = write(place / "a.txt", "a")
        os.chmod(path, 0)
        with pytest.raises(DataError, match="a.txt: cannot be read: Permission denied"):
            text_source(path, "text")


def test_file_that_vanishes_while_reading(tmp_path):
    path = write(tmp_path / "a.txt", "a")
    source = text_source(path, "text")
    os.remove(path)
    with pytest.raises(DataError, match="a.txt"):
        [list(part.read(Trouble("strict"))) for part in source.parts()]


@pytest.mark.parametrize("text", ["\u00e9\u4f60\U0001f600" * 300, "word  \u4f60 " * 300])
def test_windows_of_a_long_line_are_one_line(tmp_path, monkeypatch, text):
    monkeypatch.setattr(plain, "MAX_LINE_BYTES", 50)
    path = write(tmp_path / "a.txt", f"short\n{text}\nshort")
    assert list(read_text(path)) == [f"short\n{text.rstrip()}\nshort"]


def test_bad_byte_in_a_long_line_has_its_own_offset(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "MAX_LINE_BYTES", 50)
    path = write(tmp_path / "a.txt", b"x\n" + b"y" * 333 + b"\xff" + b"z" * 70)
    with pytest.raises(DataError, match="line 2, byte 335: 0xff"):
        list(read_text(path))


def test_long_documents_come_in_pieces_cut_before_white_space(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "MAX_PIECE_CHARACTERS", 100)
    path = write(tmp_path / "a.txt", "0123456789\n" * 35 + "\n\nother")
    pieces = list(plain.read_plain(Path(path), Trouble("strict")))
    assert [ends for _, ends in pieces] == [False] * 3 + [True] * 2
    assert [text[:3] for text, _ in pieces] == ["012", "\n01", "\n01", "\n01", "oth"]
    assert "".join(text for text, _ in pieces[:4]) == "0123456789\n" * 34 + "0123456789"


@pytest.mark.parametrize("text", ["ab  \n cd " * 40, "x" * 400, "ab\n" + "x" * 300 + "  y" * 50])
def test_a_text_is_cut_before_a_run_of_white_space(monkeypatch, text):
    monkeypatch.setattr(documents, "MAX_PIECE_CHARACTERS", 100)
    pieces = list(documents.cut(text))
    assert "".join(piece for piece, _ in pieces) == text
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]
    for (before, _), (after, _) in pairwise(pieces):
        assert 0 < len(before) <= 100
        assert not before[-1].isspace() and (after[0].isspace() or " " not in before.strip())


def test_indentation_stays(tmp_path):
    path = write(tmp_path / "a.txt", "def f():  \n    return 1\r\n")
    assert list(read_text(path)) == ["def f():\n    return 1"]


def test_nul_is_bad_text(tmp_path):
    path = write(tmp_path / "a.txt", "fine\nb\x00d\n")
    with pytest.raises(DataError, match="a.txt: line 2, byte 6: NUL"):
        list(read_text(path))
    assert list(read_text(path, "skip")) == ["fine"]
    assert list(read_text(path, "replace")) == ["fine\nb\ufffdd"]


def test_digest_knows_content_not_place_or_date(tmp_path):
    first = write(tmp_path / "a" / "x.txt", "same")
    second = write(tmp_path / "b" / "y.txt", "same")
    before = text_source(first, "text").digest
    assert before == text_source(second, "text").digest
    assert before != text_source(write(tmp_path / "a.jsonl", "same"), "text").digest
    stat = os.stat(first)
    write(tmp_path / "a" / "x.txt", "sama")
    os.utime(first, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert before != text_source(first, "text").digest


def test_a_pipe_is_no_text(tmp_path):
    """Opening it would wait for a writer for ever."""
    (tmp_path / "a.txt").write_text("words\n")
    os.mkfifo(tmp_path / "b.txt")
    with pytest.raises(DataError, match="b.txt: neither a file"):
        text_files(str(tmp_path))


def test_a_locked_folder_is_not_left_out():
    with as_a_user() as place:
        (place / "a.txt").write_text("words\n")
        (place / "locked").mkdir(mode=0)
        with pytest.raises(DataError, match="locked: cannot be read"):
            text_files(str(place))
