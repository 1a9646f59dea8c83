"""Sentences of a document, by rules.

A line break always ends a sentence. Inside a line a sentence ends after `.`, `!` or `?` (and
closing quotes or brackets) when white space follows and the next word does not start in lower case,
except after a known abbreviation or a single letter ("Mr. Smith", "J. R. R. Tolkien", "e.g.
Paris"). Full-width stops end a sentence wherever they stand.
"""

import re

_BOUNDARY = re.compile(
    r"""[.!?]+["')\]\u2019\u201d]*\s+|[\u3002\uff01\uff1f]+[\u300d\u300f\uff09]*\s*"""
)
_LAST_WORD = re.compile(r"[^\s(\[\"'\u2018\u201c]*$")
_ABBREVIATIONS = """
mr mrs ms dr prof st sr jr rev hon gen col lt capt sgt gov sen rep pres messrs mme vs etc al cf ca
approx fig figs eq eqs sec ch vol vols pp ed eds trans no nos inc ltd co corp dept e.g i.e viz resp
jan feb mar apr jun jul aug sep sept oct nov dec
"""
_IS_ABBREVIATION = frozenset(_ABBREVIATIONS.split()).__contains__


def split_sentences(document: str) -> list[str]:
    """Split a document into its sentences: stripped, none of them empty, in order."""
    sentences: list[str] = []
    for line in document.split("\n"):
        start = 0
        for match in _BOUNDARY.finditer(line):
            if _ends_sentence(line, start, match):
                sentences.append(line[start : match.end()].strip())
                start = match.end()
        sentences.append(line[start:].strip())
    return [sentence for sentence in sentences if sentence]


def _ends_sentence(line: str, start: int, match: re.Match[str]) -> bool:
    if match.end() == len(line) or line[match.start()] in "\u3002\uff01\uff1f":
        return True
    if line[match.end()].islower():
        return False
    if line[match.start()] != ".":
        return True
    # 24 characters hold every abbreviation; without the bound a long line costs quadratic time.
    before = line[max(start, match.start() - 24) : match.start()]
    word = _LAST_WORD.search(before).group()  # type: ignore[union-attr]  # matches the empty word too
    single_letter = len(word) == 1 and word.isalpha() or len(word) > 1 and word[-2] == "."
    return not (single_letter or _IS_ABBREVIATION(word.lower()))
