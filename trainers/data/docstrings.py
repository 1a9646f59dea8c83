"""The texts in one Python file; also a worker process that does this for many files.

Needs the standard library alone, and is run by path (`python docstrings.py`): a worker then starts
in milliseconds, whatever program it works for, and shares no locks with it, as a fork would.
"""

import ast
import gc
import inspect
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

# Shorter texts ("Initialize self.") are labels more than language.
MIN_CHARACTERS = 20

_OWN_LINE = re.compile(r">>>|\.\.\. |[-*+] |\d+\. |\|")


def documents(file: Path) -> list[list[str]]:
    """The documents of a file, each a list of texts: one line a paragraph, very short ones dropped.

    A file is one document; the file `pydoc_data/topics.py` is one for each topic. A file that
    cannot be read, or is written for another Python, has none.
    """
    try:
        source = file.read_bytes()
        is_manual = file.parts[-2:] == ("pydoc_data", "topics.py")
        if not is_manual and b'"""' not in source and b"'''" not in source:
            return []  # the quickest way through the half of all files that say nothing
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    found = [[text] for text in _dictionary_values(tree)] if is_manual else [list(_texts(tree))]
    cleaned = ([unwrap(inspect.cleandoc(text)) for text in texts] for texts in found)
    return [[text for text in texts if len(text) >= MIN_CHARACTERS] for texts in cleaned]


def _texts(node: ast.AST) -> Iterator[str]:
    """Docstrings and other documentation in the body of a module, class or function, in order."""
    for field in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, field, ()):
            for decorator in getattr(child, "decorator_list", ()):
                yield from _arguments(decorator)
            if isinstance(child, ast.Expr):
                yield _string(child.value)  # docstrings, those of attributes included
            if isinstance(child, ast.Assign) and "doc" in _name(child.targets[0]).lower():
                yield _string(child.value)
            if isinstance(child, (ast.Expr, ast.Assign)):
                yield from _arguments(child.value)
            elif isinstance(child, (ast.stmt, ast.ExceptHandler)):
                yield from _texts(child)


def _arguments(call: ast.expr) -> Iterator[str]:
    """The strings handed to a function with "doc" in its name."""
    if isinstance(call, ast.Call) and "doc" in _name(call.func):
        yield from map(_string, call.args)
        yield from (_string(keyword.value) for keyword in call.keywords)


def _name(node: ast.expr) -> str:
    """The last part of a name, such as c of a.b.c."""
    return getattr(node, "attr", None) or getattr(node, "id", "")


def _dictionary_values(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            yield from map(_string, statement.value.values)


def _string(node: ast.expr) -> str:
    """The value of a literal, also of one that is formatted: the gaps stay as {name}."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def unwrap(text: str) -> str:
    """Join the lines of a paragraph, since a line break ends a sentence in our documents.

    A paragraph ends at a blank line, where the indentation changes, and before list items and
    doctests.
    """
    paragraphs: list[list[str]] = []
    indentation = -1
    for line in text.splitlines():
        content = line.strip()
        depth = len(line) - len(line.lstrip())
        if not content:
            indentation = -1
        elif depth == indentation and not _OWN_LINE.match(content):
            paragraphs[-1].append(content)
        else:
            paragraphs.append([content])
            indentation = depth
    return "\n".join(" ".join(lines) for lines in paragraphs)


def main() -> None:
    """Worker: names of files on stdin, one a line; their documents on stdout, as JSON lines."""
    # A syntax tree is many objects and no garbage: collecting costs a quarter of the time.
    gc.disable()
    warnings.simplefilter("ignore")  # invalid escapes in other people's strings
    for name in sys.stdin.read().splitlines():
        print(json.dumps(documents(Path(name))), flush=True)


if __name__ == "__main__":
    main()
