"""The state of factored optimizers and what a step has to do with it, over any layout.

Statistics of matrices are replicated: each rank holds all factors.  Momentum, and the second
moments of vectors, are sharded as the parameters are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from came.layout import Fragment, Param, ShardLayout, boxes

FACTORS = ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row", "exp_avg_res_col")


@dataclass
class FactorViews:
    """The factors of one parameter inside the state of its tensor."""

    sq_row: Tensor  # (batch, rows)
    sq_col: Tensor  # (batch, cols)
    res_row: Tensor
    res_col: Tensor
    clip: Tensor  # (), the clip factor of the last step


@dataclass
class Block:
    """One box of a matrix: three views of shape `(b, n, m)` and where it lies in the factors."""

    grad: Tensor
    exp_avg: Tensor
    param: Tensor
    rows: tuple[slice, slice]
    cols: tuple[slice, slice]


@dataclass
class MatrixTask:
    """One factored parameter in one step: its factors and the blocks of it on this rank."""

    param: Param
    options: dict[str, Any]
    factors: FactorViews
    blocks: list[Block]


@dataclass
class VectorTask:
    """One unfactored parameter in one step: `(grad, exp_avg, exp_avg_sq, param)` of each piece."""

    param: Param
    options: dict[str, Any]
    pieces: list[tuple[Tensor, Tensor, Tensor, Tensor]]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed, and its statistics kept, in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def allocate(tensor: Tensor, layout: ShardLayout) -> dict[str, Tensor]:
    """Zero state for one tensor of the optimizer.

    A whole parameter has the keys and shapes of `came-pytorch`.  A flat slice has `exp_avg` of its
    own shape, `exp_avg_sq` for the pieces of vectors in it, and the factors of all matrices of the
    buffer, one behind the other; `clip_factor` has one number for each matrix.
    """
    dtype = compute_dtype(tensor.dtype)
    factored = [param for param in layout.params if param.factored]
    vector_numel = sum(
        piece.numel for piece in layout.fragments if not layout.params[piece.param].factored
    )
    state = {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": tensor.new_zeros(tensor.shape, dtype=dtype),
    }
    if factored:
        shapes: dict[str, tuple[int, ...]] = {
            "row": (sum(param.numel // param.shape[-1] for param in factored),),
            "col": (sum(param.numel // param.shape[-2] for param in factored),),
        }
        if layout.whole:
            shapes = factor_shapes(factored[0].shape)
        for key in FACTORS:
            state[key] = tensor.new_zeros(shapes[key[-3:]], dtype=dtype)
        clip_shape = () if layout.whole else (len(factored),)
        state["clip_factor"] = tensor.new_zeros(clip_shape, dtype=dtype)
    if vector_numel or not factored:
        vector_shape = tensor.shape if layout.whole else (vector_numel,)
        state["exp_avg_sq"] = tensor.new_zeros(vector_shape, dtype=dtype)
    return state


def factor_shapes(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of the "row" and "col" factors of a parameter of `shape`."""
    return {"row": shape[:-1], "col": shape[:-2] + shape[-1:]}


def factor_views(layout: ShardLayout, state: dict[str, Tensor]) -> dict[int, FactorViews]:
    """Views of the factors, `(batch, rows)` and `(batch, cols)`, of each factored parameter."""
    views: dict[int, FactorViews] = {}
    row_at = col_at = 0
    for index, param in enumerate(layout.params):
        if not param.factored:
            continue
        batch, rows, cols = param.matrices
        taken = []
        for key in FACTORS:
            at, length = (row_at, rows) if key.endswith("row") else (col_at, cols)
            taken.append(state[key].view(-1)[at : at + batch * length].view(batch, length))
        taken.append(state["clip_factor"].view(-1)[len(views)])
        views[index] = FactorViews(*taken)
        row_at, col_at = row_at + batch * rows, col_at + batch * cols
    return views


def vector_views(layout: ShardLayout, state: dict[str, Tensor]) -> list[tuple[Fragment, Tensor]]:
    """This rank's pieces of vectors with their second moments."""
    views, at = [], 0
    for piece in layout.fragments:
        if not layout.params[piece.param].factored:
            views.append((piece, state["exp_avg_sq"].view(-1)[at : at + piece.numel]))
            at += piece.numel
    return views


def tasks(
    layout: ShardLayout,
    tensor: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    options: dict[str, Any],
) -> list[MatrixTask | VectorTask]:
    """What a step has to do for one contiguous tensor of the optimizer."""
    flat, flat_grad, exp_avg = tensor.view(-1), grad.view(-1), state["exp_avg"].view(-1)
    found: dict[int, MatrixTask | VectorTask] = {}
    for index, views in factor_views(layout, state).items():
        found[index] = MatrixTask(layout.params[index], options, views, [])
    for piece in layout.fragments:
        task = found.get(piece.param)
        if isinstance(task, MatrixTask):
            task.blocks.extend(_blocks(task.param, piece, flat_grad, exp_avg, flat))
    for index, param in enumerate(layout.params):
        if not param.factored:
            found[index] = VectorTask(param, options, [])
    for piece, second_moment in vector_views(layout, state):
        task = found[piece.param]
        assert isinstance(task, VectorTask)
        span = slice(piece.offset, piece.offset + piece.numel)
        task.pieces.append((flat_grad[span], exp_avg[span], second_moment, flat[span]))
    return [found[index] for index in sorted(found)]


def _blocks(
    param: Param, piece: Fragment, grad: Tensor, exp_avg: Tensor, flat: Tensor
) -> Iterator[Block]:
    for box in boxes(param, piece):
        shape = (box.batches, box.rows, box.cols)
        span = slice(box.offset, box.offset + box.numel)
        batch = slice(box.batch, box.batch + box.batches)
        yield Block(
            rows=(batch, slice(box.row, box.row + box.rows)),
            cols=(batch, slice(box.col, box.col + box.cols)),
            grad=grad[span].view(shape),
            exp_avg=exp_avg[span].view(shape),
            param=flat[span].view(shape),
        )
