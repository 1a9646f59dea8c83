"""Documents that are put together from records."""

from collections.abc import Iterator
from pathlib import Path

from tests.trainers.data.corpus import data_config
from trainers.config import MixSource
from trainers.data.documents import Piece, Trouble, joined
from trainers.data.open_source import open_source


def read(_: Trouble) -> Iterator[Piece]:
    """Five documents, the second in three pieces."""
    yield from [("a", True), ("b", False), (" b", False), (" b", True)]
    yield from [("c", True), ("d", True), ("e", True)]


def whole(number: int) -> list[str]:
    found, text = [], ""
    for piece, ends in joined(read, number, Trouble("strict")):
        text += piece
        if ends:
            found.append(text)
            text = ""
    assert not text, "the last document ends"
    return found


def test_so_many_records_are_the_lines_of_a_document() -> None:
    assert whole(1) == ["a", "b b b", "c", "d", "e"]
    assert whole(2) == ["a\nb b b", "c\nd", "e"]
    assert whole(5) == whole(9) == ["a\nb b b\nc\nd\ne"]


def test_records_of_two_files_are_never_joined(tmp_path: Path) -> None:
    """Small files share a part, and the joining once ran on from one of them to the next."""
    for name in "abcd":
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"{name}{i}" for i in range(3)))
    sources = (MixSource(path=str(tmp_path), join_records=2),)
    (part,) = open_source(data_config(None, tmp_path, name="mix", sources=sources)).parts()
    found = "".join(text + "|" * ends for text, ends in part.read(Trouble("strict")))
    assert found == "".join(f"{name}0\n{name}1|{name}2|" for name in "abcd")
