"""Documents that are put together from records."""

from collections.abc import Iterator

from trainers.data.documents import Piece, Trouble, joined


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
