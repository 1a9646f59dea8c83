"""The documentation of installed Python packages: tens of megabytes of English on every machine.

A document is a source file: the docstrings of its module, classes, functions and attributes in
order, and the texts that it hands to functions named after documentation (torch's `add_docstr`,
numpy's `add_newdoc`, transformers' `auto_docstring`). Files are parsed, never imported.
`pydoc_data.topics` holds Python's manual as a dictionary, and each of its values is a document.
"""

import hashlib
import importlib.util
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

from trainers.data import docstrings
from trainers.data.documents import Part, Piece, Source, Trouble, cut
from trainers.data.files import digest_files
from trainers.errors import DataError

_LOG = logging.getLogger(__name__)

_MAX_WORKERS = 8
_SKIPPED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests"})


def documentation_source(packages: Sequence[str]) -> Source:
    """The documentation of packages ("stdlib": the standard library); missing ones are reported.

    Raises DataError when none of them is installed.
    """
    files = package_files(packages)
    name = f"documentation of {', '.join(packages)}"
    # One part, since no text comes twice in all files.
    part = Part(name, partial(_pieces, tuple(files)), num_bytes=0)
    return Source(name, digest_files(files), partial(list, [part]))


def _pieces(files: Sequence[Path], trouble: Trouble) -> Iterator[Piece]:
    for document in _read_files(files):
        yield from cut(document)


def read_documentation(packages: Sequence[str]) -> Iterator[str]:
    """Documents of packages in the given order, files sorted; no text comes twice.

    Raises DataError when none of the packages is installed.
    """
    return _read_files(package_files(packages))


def package_files(packages: Sequence[str]) -> list[Path]:
    """The .py files of installed packages, tests left out, in a fixed order."""
    folders = {package: _package_folder(package) for package in packages}
    missing = [package for package, folder in folders.items() if folder is None]
    if missing:
        _LOG.warning("data.packages: not installed and left out: %s", ", ".join(missing))
    files = [file for folder in folders.values() if folder for file in _python_files(folder)]
    if not files:
        raise DataError(f"data.packages={','.join(packages)}: none of these packages is installed")
    return list(dict.fromkeys(files))


def _package_folder(package: str) -> Path | None:
    if package == "stdlib":
        return Path(sysconfig.get_paths()["stdlib"])
    # A dotted name would make find_spec import its parent.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = list(spec.submodule_search_locations or []) if spec else []
    return Path(folders[0]) if folders else None


def _python_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _read_files(files: Sequence[Path]) -> Iterator[str]:
    seen: set[bytes] = set()
    for documents in _parse(files):
        for texts in documents:
            document = "\n".join(text for text in texts if _is_new(text, seen))
            if document:
                yield document


def _is_new(text: str, seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def _parse(files: Sequence[Path]) -> Iterator[list[list[str]]]:
    """The documents of each file in order; worker i mod n parses file i, ahead of its turn."""
    command = [sys.executable, "-I", "-S", "-X", "utf8", docstrings.__file__]
    count = max(1, min(os.cpu_count() or 1, _MAX_WORKERS, len(files)))
    with ExitStack() as stack:
        workers = []
        for first in range(count):
            worker = Popen(command, stdin=PIPE, stdout=PIPE)
            stack.callback(_end, worker)
            names = "\n".join(str(file) for file in files[first::count])
            # A worker reads all names before it writes, so that neither side waits for the other.
            with suppress(BrokenPipeError):  # it has died: the reading below says so
                worker.stdin.write(os.fsencode(names))
                worker.stdin.close()
            workers.append(worker)
        for index, file in enumerate(files):
            line = workers[index % count].stdout.readline()
            if not line:
                raise DataError(f"{file}: the process that parses it has ended, see above for why")
            yield json.loads(line)


def _end(worker: Popen[bytes]) -> None:
    worker.kill()
    worker.stdout.close()
    worker.wait()
