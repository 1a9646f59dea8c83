"""Compiles the C++ kernel at first use, and finds it compiled ever after.

The library lies in a folder named by the hash of all that it depends on: sources, flags, versions
of torch and of the compiler, and the processor, for which it is made (`-march=native`).  It is
built aside and renamed into place, so that what is found is whole.  Who builds holds a lock that
dies with the process: a build that is killed leaves nothing that others would wait for.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

FLAGS = ("-O3", "-march=native", "-std=c++20", "-fopenmp", "-fno-math-errno")


def library(name: str, sources: Sequence[Path], defines: Sequence[str]) -> ctypes.CDLL:
    """The shared library made of the first of `sources`, which includes the others.

    `defines` are definitions of the preprocessor, `NAME=VALUE`.

    Raises:
        RuntimeError: it cannot be built, with the reason.
    """
    compiler = os.environ.get("CXX", "c++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"there is no C++ compiler {compiler!r}: install one, or name it in CXX")
    flags = (*FLAGS, *(f"-D{define}" for define in defines))
    key = _key(compiler, sources, flags)
    for folder in _folders():
        with contextlib.suppress(OSError):
            if _is_ours(folder):
                return _find_or_build(folder / key, name, sources[0], flags)
    raise RuntimeError(
        "no folder for the compiled kernel can be written, or others may write there too: set "
        "CAME_CACHE_DIR to one that is yours alone"
    )


def _find_or_build(folder: Path, name: str, source: Path, flags: Sequence[str]) -> ctypes.CDLL:
    finished = folder / f"{name}.so"
    found = _opened(finished)
    if found is None:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "building"):
            found = _opened(finished)  # somebody else may have built it meanwhile
            if found is None:
                _build(source, flags, finished)
                found = _opened(finished)
    if found is None:
        raise RuntimeError(f"the compiled kernel {finished} cannot be loaded")
    return found


def _opened(path: Path) -> ctypes.CDLL | None:
    """The library, or None if there is none that is whole."""
    if not path.exists():
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # damaged: it is built again
        return None


def _build(source: Path, flags: Sequence[str], finished: Path) -> None:
    """Compile with torch's extension loader, beside the place where it is looked for."""
    from torch.utils import cpp_extension  # slow to import, and rarely needed

    with tempfile.TemporaryDirectory(dir=finished.parent) as aside:
        try:
            # Not linked with OpenMP: torch has loaded one already, and its threads are shared.
            cpp_extension.load(
                finished.stem,
                [str(source)],
                extra_cflags=list(flags),
                build_directory=aside,
                is_python_module=False,
            )
        except (RuntimeError, subprocess.CalledProcessError) as error:
            raise RuntimeError(f"the C++ kernel does not compile: {error}") from error
        # The loader numbers what it builds twice in one process.
        (built,) = Path(aside).glob("*.so")
        os.rename(built, finished)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _folders() -> Iterator[Path]:
    """Where compiled kernels may lie, best first."""
    chosen = os.environ.get("CAME_CACHE_DIR")
    if chosen:
        yield Path(chosen).expanduser() / "came-kernels"
        return
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    yield Path(cache) / "came-kernels"
    yield Path(tempfile.gettempdir()) / f"came-kernels-{os.getuid()}"


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put a library there, which would run as ours."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    return found.st_uid in (os.getuid(), 0) and not found.st_mode & stat.S_IWOTH


def _key(compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = [path.read_bytes() for path in sources]
    words = (*flags, torch.__version__, compiler, version, platform.machine(), _processor())
    return hashlib.sha256(b"\0".join([*parts, *(word.encode() for word in words)])).hexdigest()[:24]


def _processor() -> str:
    """The processor and what it can do."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor()
    kept = ("model name", "flags", "Features", "CPU part")
    return "\n".join(line for line in lines if line.startswith(kept))
