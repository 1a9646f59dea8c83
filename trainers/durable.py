"""Files that survive a power cut: written beside their place, fsynced, renamed into it."""

import os
from pathlib import Path

from trainers.faults import fault


def sync(path: Path) -> None:
    """Force a file's bytes, or a folder's list of names, to the disk."""
    fault(f"sync {path.parent.name}/{path.name}")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, content: bytes) -> None:
    """Put `content` at `path`: whoever reads it finds the old content or the new, never a part.

    Raises OSError, and then leaves the old file as it was.  That the folder has the file is not
    forced to the disk.
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        fault(f"write {path.parent.name}/{path.name}")
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """`replace`, and force the folder's list of names to the disk.  Raises OSError."""
    replace(path, content)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode())
