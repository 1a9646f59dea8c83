"""What a checkpoint says about itself, and whether its folder keeps that word.

A tensor lies in pieces, in the files of the ranks that held them; each piece is called by its range
of the flattened tensor, and a piece in a storage format of its own has a tensor for each part:

    param/emb[0:40]      exp_avg/emb[0:40]_int8      exp_avg/emb[0:40]_int8_scale

The manifest lists whole tensors.  Schema 1 had no pieces: a file held a tensor as it is, under its
name, and momentum in int8 or signs as the numbers that it stands for.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from came.pieces import PLAIN
from trainers.errors import CheckpointError
from trainers.regular import read_regular
from trainers.run.step_folders import MANIFEST_FILE as FILE_NAME
from trainers.run.step_folders import step_of

SCHEMA = 2
READABLE = (1, 2)
FORMATS = (PLAIN, "int8", "sign")
BUFFER = "buffer/"  # tensors called so may hold -inf by design (attention masks do)
_LARGEST = 256 << 20  # bytes of a manifest that are read: a hundred times that of a large model
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")


class RefusedError(CheckpointError):
    """A checkpoint folder that must not be loaded; the message is the reason."""


@dataclass(frozen=True)
class FileRecord:
    """Size and content of one file in the step folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class TensorRecord:
    """What a tensor is: `dtype` as torch spells it, without "torch."; `format` of its pieces."""

    shape: tuple[int, ...]
    dtype: str
    format: str = PLAIN


@dataclass(frozen=True)
class Manifest:
    """The committed description of one checkpoint.

    `identity` must be equal for a run to go on, a difference in `setting` is only told, and
    `extra` is the caller's own.
    """

    step: int
    files: dict[str, FileRecord]
    tensors: dict[str, TensorRecord]
    identity: dict[str, Any]
    setting: dict[str, Any]
    versions: dict[str, str]
    extra: dict[str, Any]

    def to_json(self) -> str:
        """Text with a schema number and a digest over all the rest."""
        body = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        return json.dumps({**body, "digest": _digest(body)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """The inverse of `to_json`.  Raises RefusedError for what `to_json` did not write."""
        try:
            body = json.loads(text)
            schema, digest = body.pop("schema"), body.pop("digest")
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise RefusedError(f"{FILE_NAME} is not a manifest") from error
        if schema not in READABLE:
            raise RefusedError(
                f"{FILE_NAME} has schema {schema!r}, and this version reads "
                f"{' and '.join(map(str, READABLE))}: it was saved by came-pretraining "
                f"{_version(body)}"
            )
        if digest != _digest({"schema": schema, **body}):
            raise RefusedError(f"{FILE_NAME} was altered: its digest does not match")
        try:
            files = {name: FileRecord(**record) for name, record in body.pop("files").items()}
            tensors = {
                name: TensorRecord(
                    tuple(record["shape"]), record["dtype"], record.get("format", PLAIN)
                )
                for name, record in body.pop("tensors").items()
            }
            manifest = cls(files=files, tensors=tensors, **body)
        except (TypeError, KeyError, AttributeError) as error:
            raise RefusedError(f"{FILE_NAME} lacks a field or has one too many: {error}") from error
        manifest._check_types()
        return manifest

    def _check_types(self) -> None:
        """Raise RefusedError for a field of another type than `to_json` writes."""
        if type(self.step) is not int:
            raise RefusedError(f"step in {FILE_NAME} is not a whole number")
        for name in ("identity", "setting", "versions", "extra"):
            if not isinstance(getattr(self, name), dict):
                raise RefusedError(f"{name} in {FILE_NAME} is not a table")
        for name, record in self.tensors.items():
            sizes = all(type(size) is int and size >= 0 for size in record.shape)
            if not sizes or record.format not in FORMATS or not isinstance(record.dtype, str):
                raise RefusedError(f"{name} in {FILE_NAME} is no tensor: {record}")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each key whose value differs: "model.hidden: 128 when saved, 256 now"."""
    now = json.loads(json.dumps(dict(now)))  # tuples become lists, as they did in the saved one
    keys = [*saved, *(key for key in now if key not in saved)]
    absent = "absent"
    return [
        f"{key}: {saved.get(key, absent)} when saved, {now.get(key, absent)} now"
        for key in keys
        if saved.get(key, absent) != now.get(key, absent)
    ]


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _version(body: Any) -> str:
    try:
        return str(body["versions"]["came-pretraining"])
    except (KeyError, TypeError):
        return "of a version that it does not name"


def read(folder: Path) -> Manifest:
    """The manifest of a step folder.  Raises RefusedError with the reason if there is no good one;
    the files that it lists are not looked at."""
    if folder.is_symlink():
        raise RefusedError("the folder is a symbolic link")
    try:
        file = plain_file(folder, FILE_NAME)
        if (size := file.stat().st_size) > _LARGEST:
            raise RefusedError(f"{FILE_NAME} has {size} bytes, more than {_LARGEST}")
        manifest = Manifest.from_json(read_regular(file))
    except UnicodeDecodeError as error:
        raise RefusedError(f"{FILE_NAME} is not text") from error
    except OSError as error:
        raise RefusedError(str(error)) from error
    if manifest.step != step_of(folder):
        raise RefusedError(f"{FILE_NAME} is of step {manifest.step}")
    return manifest


def plain_file(folder: Path, name: str) -> Path:
    """The path of a file inside the folder; nothing in a manifest may lead out of it."""
    if not _PLAIN_NAME.fullmatch(name):
        raise RefusedError(f"{name!r} is not a plain file name")
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError as error:
        raise RefusedError(f"{name} is missing") from error
    if not stat.S_ISREG(mode):
        raise RefusedError(f"{name} is not a regular file")
    return path


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise RefusedError unless every listed file is as it was saved.

    Sizes before hashes: a cut file is refused without reading gigabytes.
    """
    paths = {name: plain_file(folder, name) for name in manifest.files}
    for name, path in paths.items():
        size, expected = path.stat().st_size, manifest.files[name].bytes
        if size != expected:
            raise RefusedError(f"{name} has {size} bytes instead of {expected}")
    for name, path in paths.items():
        if sha256_of(path) != manifest.files[name].sha256:
            raise RefusedError(f"{name} has other content than was saved: its sha256 differs")
