"""The step over a table in C++, compiled at first use: the functions of `came.kernels.eager`.

Each is one call into `cpu.cpp`, which reads the table's integers and addresses and no tensor.
"""

from collections.abc import Iterator, Sequence
from ctypes import Structure, addressof, c_int64, c_void_p
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from came.kernels import table
from came.kernels.alone import Alone
from came.kernels.compile import library
from came.kernels.table import ADDRESS, BOX, MATRIX, OPTION, STATISTIC, Part, Rows, Table

DTYPES = (torch.float32, torch.bfloat16)  # of gradients and parameters
SOURCES = ("cpu.cpp", "boxes.h", "factors.h", "lanes.h", "momentum.h", "sums.h")
BATCH = 1 << 20

_functions: Any = None  # the library, when it is loaded


def load() -> str | None:
    """Compile the library or find it compiled; returns why there is none, in words, or None."""
    global _functions
    if _functions is None:
        folder = Path(__file__).parent
        try:
            found = library("came_cpu", [folder / name for name in SOURCES], list(_defines()))
        except RuntimeError as error:
            return str(error)
        for name, arguments in _ARGUMENTS.items():
            function = getattr(found, name)
            function.argtypes, function.restype = arguments, None
        _functions = found
    return None


def _defines() -> Iterator[str]:
    """The columns and codes of the tables, so that they are written down once."""
    columns = {"BOX": BOX, "ADDRESS": ADDRESS, "MATRIX": MATRIX, "STATISTIC": STATISTIC}
    for name, words in {**columns, "OPTION": OPTION}.items():
        yield f"{name}_COLUMNS={','.join(words)}"
    dtypes = {str(dtype).removeprefix("torch."): code for dtype, code in table.DTYPES.items()}
    for name, codes in (("FORMAT", table.FORMATS), ("DTYPE", dtypes)):
        yield f"{name}_CODES={','.join(f'{word}={code}' for word, code in codes.items())}"


def devices() -> tuple[str, ...]:
    """The kinds of devices whose tensors it works on."""
    return ("cpu",)


def batch_numbers(device: torch.device) -> int:
    """Numbers of matrices that are updated together while they are in cache."""
    return BATCH


class _Addresses(Structure):
    """`Table` of boxes.h: where the numbers of one kind of parameters lie."""

    _fields_ = [
        (name, c_void_p)
        for name in (
            *("box", "address", "box_at", "numel", "key", "option"),
            *("matrix", "statistic", "rms"),
        )
    ]


class _Tables:
    """The addresses of a table's matrices and vectors, which stay as long as it lives."""

    def __init__(self, table: Table) -> None:
        self._kept: list[object] = []
        self.alone: Tensor | None = None  # the parts of `step_alone`
        num_matrices = len(table.matrices.tasks)
        self.matrices = self._addresses(
            table.matrices, table.matrix, table.statistic, table.rms[:num_matrices]
        )
        empty = table.matrix[:0]
        self.vectors = self._addresses(table.vectors, empty, empty, table.rms[num_matrices:])

    def _addresses(self, rows: Rows, *own: Tensor) -> int:
        numels = [task.param.numel for task in rows.tasks]
        box_at, numel = (torch.tensor(each, device="cpu") for each in (rows.box_at, numels))
        tensors = (rows.box, rows.address, box_at, numel.long(), rows.key, rows.option)
        found = _Addresses(*(tensor.data_ptr() for tensor in (*tensors, *own)))
        self._kept += [found, tensors]
        return addressof(found)


_tables: WeakKeyDictionary[Table, _Tables] = WeakKeyDictionary()


def _of(table: Table) -> _Tables:
    found = _tables.get(table)
    if found is None:
        found = _tables[table] = _Tables(table)
    return found


def _part(part: Part) -> tuple[int, int, int, int, int]:
    matrices = part.matrices
    return _of(part.table).matrices, matrices.start, matrices.stop, part.at, torch.get_num_threads()


_PART = [c_void_p, c_int64, c_int64, c_int64, c_int64]
_VECTORS = [c_void_p, c_int64, c_int64, c_void_p]
_ARGUMENTS: dict[str, list[Any]] = {
    "add_squares": [*_PART, c_void_p],
    "update_squares": [*_PART, c_void_p, c_void_p],
    "add_residuals": [*_PART, c_void_p, c_void_p, c_int64],
    "update_confidence": [*_PART, c_void_p, c_int64, c_void_p, c_int64],
    "apply_update": [*_PART, c_void_p, c_void_p, c_int64],
    "step_alone": [
        c_void_p,
        c_void_p,
        *[c_int64] * 2,
        c_void_p,
        c_int64,
        c_void_p,
        c_void_p,
        c_int64,
    ],
    "add_vector_squares": _VECTORS,
    "apply_vector_update": _VECTORS,
}


def step_alone(batches: Sequence[Alone], squares: Tensor, residuals: Tensor) -> None:
    """All passes over matrices that are wholly here; their sums go to the buffers."""
    if not batches:
        return
    found = _of(batches[0].part.table)
    if found.alone is None:
        spans = [
            (b.part.matrices.start, b.part.matrices.stop, b.part.at, b.part.size) for b in batches
        ]
        found.alone = torch.tensor(spans, dtype=torch.int64, device="cpu")
    scratch = batches[0].sums
    _functions.step_alone(
        found.matrices,
        found.alone.data_ptr(),
        len(batches),
        torch.get_num_threads(),
        scratch.data_ptr(),
        scratch.stride(0),
        squares.data_ptr(),
        residuals.data_ptr(),
        squares.numel(),
    )


def add_squares(part: Part, squares: Tensor) -> None:
    """Pass 1, adds to `squares` the row and column sums of `g^2`."""
    _functions.add_squares(*_part(part), squares.data_ptr())


def update_squares(part: Part, squares: Tensor, scales: Tensor) -> None:
    """Moves the factors `r, c` on, and writes to `scales` the factors of `1 / sqrt(v)`."""
    _functions.update_squares(*_part(part), squares.data_ptr(), scales.data_ptr())


def add_residuals(part: Part, scales: Tensor, residuals: Tensor) -> None:
    """Pass 2, adds to the three rows of `residuals` the sums of `d^2`, `d u` and `u^2`."""
    stride = residuals.stride(0)
    _functions.add_residuals(*_part(part), scales.data_ptr(), residuals.data_ptr(), stride)


def update_confidence(part: Part, residuals: Tensor, out: Tensor) -> None:
    """From the sums of pass 2 to the clip factor and `R, C`, and the scales in `out`."""
    _functions.update_confidence(
        *_part(part), residuals.data_ptr(), residuals.stride(0), out.data_ptr(), out.stride(0)
    )


def apply_update(part: Part, scales: Tensor, out: Tensor) -> None:
    """Pass 3: momentum and parameters."""
    _functions.apply_update(*_part(part), scales.data_ptr(), out.data_ptr(), out.stride(0))


def add_vector_squares(table: Table, sums: Tensor) -> None:
    """Updates the second moments of this rank's pieces of vectors; adds to `sums` their `u^2`."""
    _functions.add_vector_squares(*_vectors(table), sums.data_ptr())


def apply_vector_update(table: Table, sums: Tensor) -> None:
    """Changes momentum and parameter of pieces of vectors: CAME without confidence."""
    _functions.apply_vector_update(*_vectors(table), sums.data_ptr())


def _vectors(table: Table) -> tuple[int, int, int]:
    return _of(table).vectors, len(table.vectors.tasks), torch.get_num_threads()
