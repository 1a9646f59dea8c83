import time

import pytest

from trainers.data.sentences import split_sentences

CASES = {
    "One. Two! Three? Four": ["One.", "Two!", "Three?", "Four"],
    "Mr. Smith met Dr. J. R. Jones. They left.": ["Mr. Smith met Dr. J. R. Jones.", "They left."],
    "Use tools, e.g. Python, etc. and more.": ["Use tools, e.g. Python, etc. and more."],
    "She said \u201cGo.\u201d Then (later.) He went.": [
        "She said \u201cGo.\u201d", "Then (later.)", "He went.",
    ],
    "Version 3.11 is at docs.python.org today. Good": [
        "Version 3.11 is at docs.python.org today.", "Good",
    ],
    "It costs 5 vs. Ten. 7 did.": ["It costs 5 vs. Ten.", "7 did."],
    "Wait... what? really": ["Wait... what? really"],
    "Wait... What?! Really": ["Wait...", "What?!", "Really"],
    "first line\nSecond line.\n\n  Third  ": ["first line", "Second line.", "Third"],
    "\u4f60\u597d\u3002\u518d\u89c1\uff01": ["\u4f60\u597d\u3002", "\u518d\u89c1\uff01"],
    "separator\u2028inside": ["separator\u2028inside"],
    "": [],
    " \n\t\n": [],
    "...": ["..."],
}  # fmt: skip


@pytest.mark.parametrize("document", CASES)
def test_rules(document):
    assert split_sentences(document) == CASES[document]


def test_nothing_but_white_space_is_lost():
    document = " ".join(CASES) * 3
    assert "".join("".join(split_sentences(document)).split()) == "".join(document.split())


@pytest.mark.parametrize("piece", ["a. ", "x", ". ", "A.", "word ", "(.\u201d "])
def test_long_lines_take_linear_time(piece):
    started = time.process_time()
    split_sentences(piece * 200_000)
    assert time.process_time() - started < 5
