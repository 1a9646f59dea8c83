"""What a user may not do, also in tests that root runs: root may read and write everything."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def as_a_user() -> Iterator[Path]:
    """Inside, this process has the rights of a user; gives a folder that is that user's.

    Where a user runs the tests, nothing changes.
    """
    folder = Path(tempfile.mkdtemp())  # those of pytest can be entered by their owner alone
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.chown(folder, NOBODY, -1)
            os.seteuid(NOBODY)
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)
