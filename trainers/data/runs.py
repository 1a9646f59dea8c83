"""The runs of sentences of a large store, cut once and mapped into memory from then on.

Where runs begin and end depends on no seed, so that a run that resumes at sample 10^8 need not cut
10^8 runs again.
"""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np

from trainers.data.files import digest_files
from trainers.data.pairs import Chunks, build_chunks
from trainers.data.publish import build_once
from trainers.data.store import Store
from trainers.errors import DataError

MANY_SENTENCES = 2**21  # fewer are cut in about a second

_FIELDS = ("start", "end", "document")


def open_chunks(store: Store, limit: int, short_fraction: float) -> Chunks:
    """`build_chunks`, kept beside a store that has many sentences.

    Raises as `build_chunks` does; DataError when what is kept is damaged, StorageError when it
    cannot be written.
    """
    if store.meta.num_sentences < MANY_SENTENCES:
        return build_chunks(store, limit, short_fraction)
    here = Path(__file__)
    code = digest_files(here.with_name(f"{name}.py") for name in ("pairs", "random_access"))
    inputs = json.dumps([code, store.meta.sha256, limit, short_fraction])
    place = store.folder / f"runs-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    make = partial(_make, store, limit, short_fraction)
    build_once(place, make, lambda path: _read(path) is not None, timeout_seconds=3600.0)
    chunks = _read(place)
    if chunks is None:
        raise DataError(f"{place}: the runs of sentences are damaged; remove it and start again")
    return chunks


def _make(store: Store, limit: int, short_fraction: float, place: Path) -> None:
    chunks = build_chunks(store, limit, short_fraction)
    for name in _FIELDS:
        np.save(place / f"{name}.npy", getattr(chunks, name))


def _read(place: Path) -> Chunks | None:
    try:
        arrays = [np.asarray(np.load(place / f"{name}.npy", mmap_mode="r")) for name in _FIELDS]
    except (OSError, EOFError, ValueError):
        return None
    return Chunks(*arrays) if len({len(array) for array in arrays}) == 1 else None
