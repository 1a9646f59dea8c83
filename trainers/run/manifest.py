"""What a checkpoint says about itself, and whether its folder keeps that word."""

import hashlib
import json
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

SCHEMA = 1
FILE_NAME = "manifest.json"
_STEP_FOLDER = re.compile(r"step-([0-9]{8,})")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]*")


class RefusedError(Exception):
    """A checkpoint folder that must not be loaded; the message is the reason."""


@dataclass(frozen=True)
class FileRecord:
    """Size and content of one file in the step folder."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class TensorRecord:
    """Where a tensor lies and what it is: `dtype` as torch spells it, without "torch."."""

    file: str
    shape: tuple[int, ...]
    dtype: str


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
        if schema != SCHEMA:
            raise RefusedError(f"{FILE_NAME} has schema {schema!r}, this version reads {SCHEMA}")
        if digest != _digest({"schema": schema, **body}):
            raise RefusedError(f"{FILE_NAME} was altered: its digest does not match")
        try:
            files = {name: FileRecord(**record) for name, record in body.pop("files").items()}
            tensors = {
                name: TensorRecord(record["file"], tuple(record["shape"]), record["dtype"])
                for name, record in body.pop("tensors").items()
            }
            manifest = cls(files=files, tensors=tensors, **body)
        except (TypeError, KeyError, AttributeError) as error:
            raise RefusedError(f"{FILE_NAME} lacks a field or has one too many: {error}") from error
        for name in ("identity", "setting", "versions", "extra"):
            if not isinstance(getattr(manifest, name), dict):
                raise RefusedError(f"{name} in {FILE_NAME} is not a table")
        return manifest


def folder_name(step: int) -> str:
    """`step-00000100`: of eight digits, so that a listing is in order up to 10^8 steps."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step of a committed folder; None for anything else, such as a partial one."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    if not match or folder.name != folder_name(int(match[1])):
        return None
    return int(match[1])


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


def verify(folder: Path) -> tuple[Manifest, list[str]]:
    """Read every byte of a step folder against its manifest.

    Returns the manifest, and the names of files that it does not list.  Raises RefusedError with
    the reason: a link, a missing or altered file, other tensors, a value that is not finite.
    """
    if folder.is_symlink():
        raise RefusedError("the folder is a symbolic link")
    try:
        manifest = Manifest.from_json(_plain_file(folder, FILE_NAME).read_text(encoding="utf-8"))
        if manifest.step != step_of(folder):
            raise RefusedError(f"{FILE_NAME} is of step {manifest.step}")
        _check_files(folder, manifest)
        _check_tensors(folder, manifest)
        unlisted = {path.name for path in folder.iterdir()} - {FILE_NAME, *manifest.files}
    except UnicodeDecodeError as error:
        raise RefusedError(f"{FILE_NAME} is not text") from error
    except (OSError, SafetensorError) as error:
        raise RefusedError(str(error)) from error
    return manifest, sorted(unlisted)


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _plain_file(folder: Path, name: str) -> Path:
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


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Sizes before hashes: a cut file is refused without reading gigabytes."""
    paths = {name: _plain_file(folder, name) for name in manifest.files}
    for name, path in paths.items():
        size, expected = path.stat().st_size, manifest.files[name].bytes
        if size != expected:
            raise RefusedError(f"{name} has {size} bytes instead of {expected}")
    for name, path in paths.items():
        if sha256_of(path) != manifest.files[name].sha256:
            raise RefusedError(f"{name} has other content than was saved: its sha256 differs")


def _check_tensors(folder: Path, manifest: Manifest) -> None:
    found = set()
    for file_name in manifest.files:
        with safe_open(_plain_file(folder, file_name), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  safe_open is no mapping
                tensor = file.get_tensor(name)
                if manifest.tensors.get(name) != record_of(file_name, tensor):
                    raise RefusedError(f"{name} in {file_name} is not what {FILE_NAME} lists")
                # A buffer may hold -inf by design (attention masks do).
                if not name.startswith("buffer/") and not torch.isfinite(tensor).all():
                    raise RefusedError(f"{name} has values that are not finite")
                found.add(name)
    missing = sorted(set(manifest.tensors) - found)
    if missing:
        raise RefusedError(f"{missing[0]} is in no file")


def record_of(file_name: str, tensor: torch.Tensor) -> TensorRecord:
    """The record of a tensor that is kept in `file_name`."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorRecord(file_name, tuple(tensor.shape), dtype)
