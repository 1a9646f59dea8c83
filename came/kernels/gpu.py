"""The step over a table in Triton: the functions of `came.kernels.eager` in a few launches each.

The tables lie on the device; a step sends up what has changed of them, from pinned memory, and
waits for nothing.  What a launch needs is prepared once for each part, because a step of many
parts takes no longer than Python takes to launch it.
"""

import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from came.kernels import alone
from came.kernels.alone import Alone
from came.kernels.launches import PartLaunches, Tables
from came.kernels.table import Part, Table

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of gradients and parameters
OLDEST = (3, 6)  # Triton that knows what the kernels say
BYTES = 8  # a number's gradient and momentum

_tables: WeakKeyDictionary[Table, Tables] = WeakKeyDictionary()


def load() -> str | None:
    """Why the kernels cannot be used, in words, or None.

    Without a GPU they run in Triton's interpreter, for tests, where TRITON_INTERPRET says so.
    """
    try:
        triton = import_module("triton")
    except ImportError as error:
        return f"Triton is not installed ({error})"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"
    interpreted = triton.knobs.runtime.interpret
    if not (interpreted or torch.cuda.is_available()):
        return "there is no GPU"
    return None


def devices() -> tuple[str, ...]:
    """The kinds of devices whose tensors the kernels work on: interpreted, that of the CPU."""
    return ("cpu",) if import_module("triton").knobs.runtime.interpret else ("cuda",)


@cache
def batch_numbers(device: torch.device) -> int:
    """Numbers of matrices that are updated together: `g` and `m` fill half of the L2 cache."""
    if device.type == "cpu":
        return 1 << 16
    size: int = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1 << 20, size // 2 // BYTES)


def step_alone(batches: Sequence[Alone], squares: Tensor, residuals: Tensor) -> None:
    """All passes over matrices that are wholly here; their sums go to the buffers."""
    alone.step_alone(sys.modules[__name__], batches, squares, residuals)


def add_squares(part: Part, squares: Tensor) -> None:
    """Pass 1, adds to `squares` the row and column sums of `g^2`."""
    tables, launches = _of(part)
    at, parts = _at(part, squares), tables.scratch.data_ptr()
    with tables.guard:
        for launch in launches.squares:
            launch(at, at, 0, parts)


def update_squares(part: Part, squares: Tensor, scales: Tensor) -> None:
    """Moves the factors `r, c` on, and writes to `scales` the factors of `1 / sqrt(v)`."""
    tables, launches = _of(part)
    with tables.guard:
        for launch in launches.update_squares:
            launch(_at(part, squares), _at(part, scales))


def add_residuals(part: Part, scales: Tensor, residuals: Tensor) -> None:
    """Pass 2, adds to the three rows of `residuals` the sums of `d^2`, `d u` and `u^2`."""
    tables, launches = _of(part)
    at, stride, parts = _at(part, residuals), residuals.stride(0), tables.scratch.data_ptr()
    with tables.guard:
        for launch in launches.residuals:
            launch(_at(part, scales), at, stride, parts)


def update_confidence(part: Part, residuals: Tensor, out: Tensor) -> None:
    """From the sums of pass 2 to the clip factor and `R, C`, and the scales in `out`."""
    tables, launches = _of(part)
    at, stride = _at(part, residuals), residuals.stride(0)
    with tables.guard:
        for launch in launches.clip_batches:
            launch(at, stride)
        for launch in launches.update_confidence:
            launch(at, stride, _at(part, out), out.stride(0))


def apply_update(part: Part, scales: Tensor, out: Tensor) -> None:
    """Pass 3: momentum and parameters."""
    tables, launches = _of(part)
    with tables.guard:
        for launch in launches.update:
            launch(_at(part, scales), _at(part, out))
        for launch in launches.keep_magnitudes:
            launch(_at(part, out), out.stride(0))


def add_vector_squares(table: Table, sums: Tensor) -> None:
    """Updates the second moments of this rank's pieces of vectors; adds to `sums` their `u^2`."""
    tables = _current(table)
    launches = tables.vectors.squares
    with tables.guard:
        for launch in launches:
            launch(sums.data_ptr(), tables.scratch.data_ptr())


def apply_vector_update(table: Table, sums: Tensor) -> None:
    """Changes momentum and parameter of pieces of vectors: CAME without confidence."""
    tables = _current(table)
    with tables.guard:
        for launch in tables.vectors.update:
            launch(sums.data_ptr())


def _current(table: Table) -> Tables:
    """The tables on the device, as of this step."""
    found = _tables.get(table)
    if found is None:
        found = _tables[table] = Tables(table)
    found.refresh(table)
    return found


def _of(part: Part) -> tuple[Tables, PartLaunches]:
    tables = _current(part.table)
    return tables, tables.part(part)


def _at(part: Part, buffer: Tensor) -> int:
    """The address of number 0 of factor space, were it in the buffer."""
    return buffer.data_ptr() - 4 * part.at
