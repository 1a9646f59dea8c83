"""The GPU kernels where there is no GPU: interpreted, and compiled for one.

Whether Triton interprets is decided when it is imported, so the interpreted tests run apart.
"""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from came import CAME
from came.kernels import gpu, select

pytest.importorskip("triton", reason="Triton is not installed, the kernels cannot be tested")
HERE = Path(__file__).parent


@pytest.mark.timeout(1500)  # a hundred times slower than a GPU, and a machine may be busy
def test_interpreted() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, str(HERE / "interpreted_gpu.py")],
        env=environment,
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert ran.returncode == 0 and " passed" in ran.stdout, ran.stdout[-6000:] + ran.stderr[-2000:]


def compiled(name: str, tmp_path: Path, **constants: Any) -> str:
    """A kernel for an H100, compiled to the end without one; returns its PTX."""
    triton = import_module("triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    compiler = import_module("triton.compiler")
    target = import_module("triton.backends.compiler").GPUTarget("cuda", 90, 32)
    os.environ["TRITON_CACHE_DIR"] = str(tmp_path)
    module, kernel = name.split(".")
    function = getattr(import_module(f"came.kernels.triton_{module}"), kernel)
    signature = {p.name: "constexpr" if p.is_constexpr else "i64" for p in function.params}
    found = triton.compile(
        compiler.ASTSource(function, signature, constants),
        target=target,
        options={"num_warps": 4, "enable_fp_fusion": False},
    )
    assert found.asm["cubin"], "the assembler has refused it"
    ptx: str = found.asm["ptx"]
    assert not re.search(r"(ld|st)\.local", ptx), "an array lies in memory instead of registers"
    return ptx


def wide(ptx: str, kind: str) -> int:
    """How many instructions read or write 16 bytes of a thread at once."""
    return len(re.findall(rf"{kind}\.global\S*\.v4\.[bu]32", ptx))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))  # put back as it was
    return tmp_path


ROWS = {"BLOCK_ROWS": 1, "MATRICES": 1, "ROWS": 16, "COLS": 128}
SMALL = {"BLOCK_ROWS": 64, "MATRICES": 128, "ROWS": 4, "COLS": 4, "ALIGNED": False}


@pytest.mark.parametrize(("second", "format"), [(False, 0), (True, 0), (True, 1), (True, 3)])
def test_sums_compile(second: bool, format: int, cache: Path) -> None:
    for grad in (0, 1):
        ptx = compiled(
            "passes.add_sums",
            cache,
            SECOND=second,
            GRAD=grad,
            FORMAT=format,
            ALIGNED=True,
            **ROWS,
        )
        # 16 numbers of a thread: 4 reads of float32, 2 of bfloat16, of gradient and momentum
        reads = (4 if grad == 0 else 2) + second * {0: 4, 1: 2, 3: 0}[format]
        assert wide(ptx, "ld") >= reads
        assert len(re.findall(r"atom\S*acq_rel\S*add", ptx)) == 2  # who is the last?


def test_sums_of_small_matrices_compile(cache: Path) -> None:
    compiled("passes.add_sums", cache, SECOND=True, GRAD=0, FORMAT=2, **SMALL)


@pytest.mark.parametrize(
    ("grad", "param", "format", "many", "block_rows", "rows", "cols"),
    [
        (0, 0, 0, False, 1, 8, 256),
        (1, 1, 1, False, 1, 8, 256),
        (0, 0, 2, False, 1, 8, 256),
        (2, 2, 2, True, 64, 512, 4),
        (0, 0, 3, False, 1, 8, 256),
        (0, 1, 3, True, 1, 2048, 1),
    ],
)
def test_updates_compile(
    grad: int,
    param: int,
    format: int,
    many: bool,
    block_rows: int,
    rows: int,
    cols: int,
    cache: Path,
) -> None:
    ptx = compiled(
        "update.update",
        cache,
        GRAD=grad,
        PARAM=param,
        FORMAT=format,
        ALIGNED=cols == 256,
        ROUNDS=param == 1,
        MANY=many,
        BLOCK_ROWS=block_rows,
        ROWS=rows,
        COLS=cols,
    )
    if cols == 256:
        size = {0: 4, 1: 2}[param]  # instructions for 16 numbers
        assert wide(ptx, "st") >= size and wide(ptx, "ld") >= 2 * size


@pytest.mark.parametrize(("whole", "entries", "length"), [(True, 1, 1024), (False, 256, 4)])
def test_small_steps_compile(whole: bool, entries: int, length: int, cache: Path) -> None:
    size = {"ENTRIES": entries, "LENGTH": length}
    compiled("factors.update_squares", cache, **size)
    for signs in (False, True):
        compiled("factors.update_confidence", cache, WHOLE=whole, SIGN=signs, **size)
    compiled("factors.keep_magnitudes", cache, **size)
    compiled("factors.clip_batches", cache, LENGTH=4096)


def test_vectors_compile(cache: Path) -> None:
    compiled("vectors.add_vector_squares", cache, GRAD=1, LENGTH=4096)
    for rounds in (False, True):
        compiled("vectors.apply_vector_update", cache, GRAD=1, PARAM=1, ROUNDS=rounds, LENGTH=4096)


def test_what_is_missing_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert gpu.load() == "there is no GPU"

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(gpu, "import_module", missing)
    assert gpu.load() == "Triton is not installed (No module named 'triton')"
    monkeypatch.setattr(gpu, "import_module", lambda name: SimpleNamespace(__version__="3.5.1"))
    assert gpu.load() == "Triton 3.5.1 is older than 3.6"


def stepped(kernel: str) -> nn.Parameter:
    param = nn.Parameter(torch.ones(4, 3))
    param.grad = torch.ones(4, 3)
    CAME([param], kernel=kernel).step()
    return param


def test_the_cpu_never_takes_it_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where Triton would interpret it."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    select._load.cache_clear()
    monkeypatch.setattr(gpu, "add_squares", None)
    assert stepped("auto").isfinite().all()


def test_who_insists_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    select._load.cache_clear()
    with pytest.raises(RuntimeError, match="kernel is 'gpu', and it cannot run here"):
        stepped("gpu")
    monkeypatch.setattr(gpu, "load", lambda: None)  # there is one, and the parameters are not on it
    select._load.cache_clear()
    with pytest.raises(RuntimeError, match="it works on cuda, and these are on cpu"):
        stepped("gpu")
    select._load.cache_clear()
