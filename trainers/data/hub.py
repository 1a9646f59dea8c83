"""Datasets of the Hugging Face hub, read as a stream with the `datasets` library.

Nothing of a dataset is run: `datasets` reads parquet, JSON, CSV and text files, and no scripts.
"""

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from trainers.data.documents import (
    Part,
    Piece,
    Read,
    Source,
    Trouble,
    check_text,
    cut,
    joined,
    no_column,
)
from trainers.data.files import digest_files
from trainers.errors import DataError, DataInterruptedError

_FILE_BYTES = 2**28  # what a file of a dataset usually has
_SECONDS = 8.0  # for the hub to answer at all
_LOCAL_WAY = (
    "without the hub, put the text into a folder (.txt, .jsonl, .parquet) and set data=text "
    "data.path=FOLDER"
)


@dataclass(frozen=True)
class HubDataset:
    """A dataset by its name, or a local folder of files that `datasets` knows, and what of it."""

    name: str
    config: str | None
    split: str
    revision: str | None
    column: str

    def open(self) -> Any:
        """The rows as a stream. Raises DataError in words."""
        import datasets  # imports for seconds

        try:
            return datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
        except Exception as error:  # of many kinds, and their words say which
            raise DataError(
                f"data.hub={self.name}: cannot be opened: {in_words(error)}; {_LOCAL_WAY}"
            ) from error


def hub_source(dataset: HubDataset, join_records: int = 1) -> Source:
    """The texts of a dataset, so many records of a file in each document.

    The digest of one of the hub is of its name alone: what was prepared once is used again without
    asking. That of a local folder is of its files. Raises DataError for one that cannot be read.
    """
    return Source(
        name=f"{dataset.name}{f' ({dataset.config})' if dataset.config else ''}",
        digest=f"hub {_content(dataset)} {join_records}",
        parts=partial(_parts, dataset, join_records),
    )


def _content(dataset: HubDataset) -> str:
    root = Path(dataset.name)
    if not root.is_dir():
        return str(dataset)
    files = sorted(file for file in root.rglob("*") if file.is_file() and _is_seen(file, root))
    # Their names say to `datasets` what they are, which split, and in which order.
    names = [str(file.relative_to(root)) for file in files]
    return f"{replace(dataset, name='')} {json.dumps(names)} {digest_files(files)}"


def _is_seen(file: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in file.relative_to(root).parts)


def _parts(dataset: HubDataset, join_records: int) -> list[Part]:
    """One for each file of the dataset."""
    reach(dataset.name, f"data.hub={dataset.name}", _LOCAL_WAY)
    opened = dataset.open()
    names = opened.column_names
    if names is not None and dataset.column not in names:
        raise DataError(f"data.hub={dataset.name}: {no_column(dataset.column, names)}")
    count = opened.num_shards
    name = f"{dataset.name}, file {{}} of {count}"
    reads: list[Read] = [partial(_read, dataset, n, count) for n in range(count)]
    if join_records > 1:
        reads = [partial(joined, read, join_records) for read in reads]
    return [Part(name.format(n), read, _FILE_BYTES) for n, read in enumerate(reads, start=1)]


def _read(dataset: HubDataset, index: int, count: int, trouble: Trouble) -> Iterator[Piece]:
    where, number = f"{dataset.name}, file {index + 1} of {count}", 0
    rows = iter(dataset.open().shard(count, index))
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # whatever the library, the network and the format raise
            raise DataInterruptedError(
                f"{where}: record {number + 1}: cannot be read: {in_words(error)}; start again, "
                "what was read before is kept"
            ) from error
        if row is None:
            return
        number += 1
        if dataset.column not in row:
            trouble.add(where, f"record {number}", no_column(dataset.column, row))
        elif text := check_text(row[dataset.column], where, f"record {number}", trouble):
            yield from cut(text)


def in_words(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def reach(name: str, setting: str, local_way: str) -> None:
    """Raise DataError when the hub does not answer soon: its library would try for minutes.

    Args:
        name: of a dataset, or a local folder, for which nobody is asked.
        setting: what asked for it, as it was typed.
        local_way: what to do without the hub.
    """
    if Path(name).is_dir():
        return
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise DataError(f"{setting}: HF_HUB_OFFLINE forbids to ask the hub; {local_way}")
    answer: list[str] = []
    # A thread, since neither the look-up of a name nor all phases of a connection end in time.
    asking = threading.Thread(target=lambda: answer.append(_ask(endpoint)), daemon=True)
    asking.start()
    asking.join(_SECONDS)
    why = answer[0] if answer else f"no answer in {_SECONDS:.0f} s"
    if why:
        raise DataError(f"{setting}: the hub ({endpoint}) cannot be reached: {why}; {local_way}")


def _ask(endpoint: str) -> str:
    """Why there is no answer; "" when there is one, of any kind."""
    try:
        urllib.request.urlopen(endpoint, timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        return ""
    except Exception as error:
        return in_words(error)
    return ""
