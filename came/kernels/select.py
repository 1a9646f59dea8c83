"""Which kernel runs a step: the only place that chooses."""

import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from came.kernels import eager
from came.kernels.table import DTYPES, Table

NAMES = ("auto", "eager", "cpu", "gpu")


def choose(table: Table, like: Tensor) -> ModuleType:
    """The kernel for a table whose buffers are of the dtype and device of `like`.

    "auto" takes the fused kernel of the device, and plain torch where there is none: with one
    warning, if the kernel should have been there, in silence for tensors that it is not made for.

    Raises:
        RuntimeError: the options insist on a kernel that cannot run here.
    """
    tasks = table.matrices.tasks + table.vectors.tasks
    wanted = {task.options["kernel"] for task in tasks}
    if len(wanted) > 1:
        raise RuntimeError(f"param groups ask for several kernels, {sorted(wanted)}: choose one")
    (name,) = wanted
    if name == "eager":
        return eager
    fused = name if name != "auto" else "cpu" if like.device.type == "cpu" else "gpu"
    kernel, missing = _load(fused)
    if missing is None:
        missing = _foreign(table, like, kernel)
        if missing is None:
            return kernel
    elif name == "auto":
        _warn_once(fused, missing)
    if name != "auto":
        raise RuntimeError(f"kernel is {name!r}, and it cannot run here: {missing}")
    return eager


def _foreign(table: Table, like: Tensor, kernel: ModuleType) -> str | None:
    """Why a kernel that is at hand cannot work on these tensors, or None."""
    if like.device.type not in kernel.devices():
        return f"it works on {' and '.join(kernel.devices())}, and these are on {like.device.type}"
    codes = {DTYPES[dtype] for dtype in kernel.DTYPES}
    found = set()
    for rows in (table.matrices, table.vectors):
        found |= set(rows.box_column("grad_dtype").tolist())
        found |= set(rows.box_column("param_dtype").tolist())
    if like.dtype == torch.float32 and found <= codes:
        return None
    return f"it computes in float32 on {', '.join(map(str, kernel.DTYPES))}"


@cache
def _load(name: str) -> tuple[ModuleType, str | None]:
    """The module, and why it cannot be used, or None."""
    kernel = import_module(f"came.kernels.{name}")
    return kernel, kernel.load()


@cache
def _warn_once(name: str, missing: str) -> None:
    warnings.warn(
        f"CAME runs on plain torch operations, which are slower: the {name} kernel is not at "
        f"hand ({missing})",
        RuntimeWarning,
        stacklevel=2,
    )
