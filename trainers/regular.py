"""Reading what lies in a folder that anybody may have put something into: regular files alone."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """The bytes of a file.

    Raises OSError, for what is no regular file too: a FIFO would be waited for, and a device may
    have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return open(descriptor, "rb")


def read_regular(path: Path, errors: str = "strict") -> str:
    """The UTF-8 text of a file.  Raises OSError as `open_regular`, and UnicodeDecodeError."""
    with open_regular(path) as file:
        return file.read().decode("utf-8", errors)
