import logging
import sys
import textwrap

import pytest

from trainers.data import docstrings
from trainers.data.documentation import documentation_source, read_documentation
from trainers.data.documents import Trouble
from trainers.errors import DataError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that cannot be imported, to show that nothing is."""
    folder = tmp_path / "talkative"
    (folder / "tests").mkdir(parents=True)
    files = {
        "__init__.py": '"""The first module says a few words."""\nraise RuntimeError("imported")\n',
        "broken.py": '"""This file is for another Python."""\nprint "hello"\n',
        "code.py": CODE,
        "repeat.py": '"""The first module says a few words."""\n"""But this one is new to us."""\n',
        "silent.py": "x = 1\n",
        "tests/test_it.py": '"""Nobody wants to read about tests."""\n',
    }
    for name, content in files.items():
        (folder / name).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


CODE = '''
"""The module, in two lines
that are one paragraph."""

class Thing(Base):
    """The class has a docstring too.

    Args:
        size: how large
            it is.
        name: what it is called.
    """

    attribute: int = 1
    """The attribute is described below itself."""

    @add_start_docstrings("The decorator brings this text.", more=r"And this one as a keyword.")
    async def method(self):
        """Short."""
        if self:
            def inner():
                """The function inside a branch counts."""

        return "This is a value, and no documentation."

add_docstr(torch.abs, r"""Computes the {kind} value of each element.""".format(kind=1))
run = _add_docstr(torch.run, "The assigned call has documentation.", 3)
START_DOCSTRING = "A constant with a telling name."
OTHER = "A constant that says nothing to us."
print("This is printed, and no documentation.")
'''

EXPECTED = [
    "The module, in two lines that are one paragraph.",
    "The class has a docstring too.\nArgs:\nsize: how large\nit is.\nname: what it is called.",
    "The attribute is described below itself.",
    "The decorator brings this text.",
    "And this one as a keyword.",
    "The function inside a branch counts.",
    "Computes the {kind} value of each element.",
    "The assigned call has documentation.",
    "A constant with a telling name.",
]


def test_texts_of_a_package_in_order_without_importing_it(package):
    assert list(read_documentation(("talkative",))) == [
        "The first module says a few words.",
        "\n".join(EXPECTED),
        "But this one is new to us.",
    ]
    assert "talkative" not in sys.modules


def test_missing_packages_are_reported_and_passed_over(package, caplog):
    with caplog.at_level(logging.WARNING):
        documents = list(read_documentation(("no_such_package", "talkative", "a.b")))
    assert len(documents) == 3
    assert "not installed and left out: no_such_package, a.b" in caplog.text
    with pytest.raises(DataError, match="none of these packages is installed"):
        documentation_source(("no_such_package",))


def test_source_can_be_read_twice_and_its_digest_follows_the_content(package):
    source = documentation_source(("talkative",))
    [part] = source.parts()
    first, second = (list(part.read(Trouble("strict"))) for _ in range(2))
    assert first == second and first
    (package / "silent.py").write_text("x = 2\n")
    assert documentation_source(("talkative",)).digest != source.digest


def test_reading_can_be_broken_off(package):
    documents = read_documentation(("talkative",))
    next(documents)
    documents.close()


def test_a_worker_that_dies_is_an_error(package, monkeypatch):
    monkeypatch.setattr(docstrings, "__file__", str(package / "broken.py"))
    with pytest.raises(DataError, match=r"__init__\.py: the process that parses it has ended"):
        list(read_documentation(("talkative",)))


def test_manual_of_python():
    topics = list(read_documentation(("pydoc_data",)))
    assert len(topics) > 50 and sum(map(len, topics)) > 300_000
    assert any("assert" in topic for topic in topics)


def test_unwrap():
    text = """\
        A paragraph
        of two lines.
        - an item
        - another
          goes on
        >>> f(1)
        2

        New."""
    lines = [
        "A paragraph of two lines.",
        "- an item",
        "- another",
        "goes on",
        ">>> f(1)",
        "2",
        "New.",
    ]
    unwrapped = docstrings.unwrap(textwrap.dedent(text)).split("\n")
    assert unwrapped == [*lines[:4], ">>> f(1) 2", "New."]
