"""CAME over any sharding: two sums over the ranks, three passes over the numbers.

The statistics of a matrix are sums over its rows and columns, so every rank adds what its own
boxes contribute to one small buffer, the buffer is summed over the ranks, and every rank updates
its copy of the factors.  The momentum stays where its parameter is.  One matrix, with `g2 = g^2`:

    pass 1   sums of g2 by row and column                                 -> summed over the ranks
             r, c = moving averages of the means of g2 + eps1;   u = g / sqrt(r c / mean(r))
    pass 2   sums of d^2, d u, u^2 by row and column, with d = z u - m    -> summed over the ranks
             s = 1 / max(1, RMS(u) / clip_threshold)
             (s u - m')^2 = beta1^2 (s u - m)^2 = beta1^2 (d^2 + 2 (s-z) d u + (s-z)^2 u^2)
             R, C = moving averages of the means of that + eps2
    pass 3   m' = beta1 m + (1 - beta1) s u;   p = p - lr wd p - lr m' / sqrt(R C / mean(R))

`z` is the clip factor of the step before (0 at the first).  About zero in place of `z` the
expansion would cancel: in fp32 a gradient of 1 + 1e-4 noise then gives negative row sums.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from came.kernels import eager
from came.layout import Fragment, Param, ShardLayout, boxes

FACTORS = ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row", "exp_avg_res_col")


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
    sq_row: Tensor  # (batch, rows)
    sq_col: Tensor  # (batch, cols)
    res_row: Tensor
    res_col: Tensor
    clip: Tensor  # (), the clip factor of the last step
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
    like = {"dtype": compute_dtype(tensor.dtype), "device": tensor.device}
    factored = [param for param in layout.params if param.factored]
    vector_numel = sum(
        piece.numel for piece in layout.fragments if not layout.params[piece.param].factored
    )
    state = {
        "step": torch.zeros((), dtype=torch.float32),
        "exp_avg": torch.zeros(tensor.shape, **like),
    }
    if factored:
        shapes: dict[str, Sequence[int]] = {
            "row": [sum(param.numel // param.shape[-1] for param in factored)],
            "col": [sum(param.numel // param.shape[-2] for param in factored)],
        }
        if layout.whole:
            shape = factored[0].shape
            shapes = {"row": shape[:-1], "col": shape[:-2] + shape[-1:]}
        for key in FACTORS:
            state[key] = torch.zeros(*shapes[key[-3:]], **like)
        state["clip_factor"] = torch.zeros([] if layout.whole else len(factored), **like)
    if vector_numel or not factored:
        shape = tensor.shape if layout.whole else (vector_numel,)
        state["exp_avg_sq"] = torch.zeros(shape, **like)
    return state


@dataclass
class FactorViews:
    """The factors of one parameter inside the state of its tensor."""

    sq_row: Tensor
    sq_col: Tensor
    res_row: Tensor
    res_col: Tensor
    clip: Tensor


def factor_views(layout: ShardLayout, state: dict[str, Tensor]) -> dict[int, FactorViews]:
    """Views of the factors, `(batch, rows)` and `(batch, cols)`, of each factored parameter."""
    views = {}
    row_at = col_at = 0
    for index, param in enumerate(layout.params):
        if not param.factored:
            continue
        batch, rows, cols = param.matrices
        taken = []
        for key in FACTORS:
            at, length = (row_at, rows) if key.endswith("row") else (col_at, cols)
            taken.append(state[key].view(-1)[at : at + batch * length].view(batch, length))
        clip = state["clip_factor"].view(-1)[len(views)]
        views[index] = FactorViews(*taken, clip=clip)
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
        found[index] = MatrixTask(
            layout.params[index],
            options,
            views.sq_row,
            views.sq_col,
            views.res_row,
            views.res_col,
            views.clip,
            [],
        )
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


def _blocks(param: Param, piece: Fragment, *buffers: Tensor) -> Iterator[Block]:
    for box in boxes(param, piece):
        shape = (box.batches, box.rows, box.cols)
        views = [b[box.offset : box.offset + box.numel].view(shape) for b in buffers]
        batch = slice(box.batch, box.batch + box.batches)
        rows = (batch, slice(box.row, box.row + box.rows))
        yield Block(*views, rows=rows, cols=(batch, slice(box.col, box.col + box.cols)))


def step(todo: Sequence[MatrixTask | VectorTask], like: Tensor) -> Iterator[Tensor]:
    """One step of CAME on all tasks, in place.

    Yields each of its two buffers to be summed over the ranks: dtype and device of `like`, and on
    every rank the same length, whatever the rank holds.
    """
    matrices = [task for task in todo if isinstance(task, MatrixTask)]
    vectors = [task for task in todo if isinstance(task, VectorTask)]

    squares = _Sums(matrices, 1, 0, like)
    for task, rows, cols in zip(matrices, squares.rows, squares.cols, strict=True):
        for block in task.blocks:
            eager.add_squares(block.grad, rows[0][block.rows], cols[0][block.cols])
    yield squares.buffer

    scales = []
    for task, rows, cols in zip(matrices, squares.rows, squares.cols, strict=True):
        beta2, eps = task.options["betas"][1], task.options["eps"][0]
        _average(task.sq_row, rows[0] / task.param.shape[-1] + eps, beta2)
        _average(task.sq_col, cols[0] / task.param.shape[-2] + eps, beta2)
        scales.append(_scales(task.sq_row, task.sq_col))
    residuals = _Sums(matrices, 3, len(vectors), like)
    for task, scale, rows, cols in zip(
        matrices, scales, residuals.rows, residuals.cols, strict=True
    ):
        for block in task.blocks:
            at = (slice(None), *block.rows), (slice(None), *block.cols)
            eager.add_residuals(
                block.grad,
                block.exp_avg,
                scale[0][block.rows],
                scale[1][block.cols],
                task.clip,
                rows[at[0]],
                cols[at[1]],
            )
    for vector, total in zip(vectors, residuals.scalars, strict=True):
        beta2, eps = vector.options["betas"][1], vector.options["eps"][0]
        for grad, _, exp_avg_sq, _ in vector.pieces:
            total += eager.add_vector_squares(grad, exp_avg_sq, beta2, eps)
    yield residuals.buffer

    for task, scale, rows, cols in zip(
        matrices, scales, residuals.rows, residuals.cols, strict=True
    ):
        _update_confidence(task, rows, cols)
        res_scale = _scales(task.res_row, task.res_col)
        for block in task.blocks:
            eager.apply_update(
                block.grad,
                block.exp_avg,
                block.param,
                scale[0][block.rows],
                scale[1][block.cols],
                task.clip,
                res_scale[0][block.rows],
                res_scale[1][block.cols],
                **_descent(task.options),
            )
    for vector, total in zip(vectors, residuals.scalars, strict=True):
        clip = _clip_factor(total, vector.param, vector.options)
        for grad, exp_avg, exp_avg_sq, param in vector.pieces:
            eager.apply_vector_update(
                grad, exp_avg, exp_avg_sq, param, clip, **_descent(vector.options)
            )


def _update_confidence(task: MatrixTask, rows: Tensor, cols: Tensor) -> None:
    """From the sums of pass 2 to the clip factor and the factors of the residual."""
    beta1, _, beta3 = task.options["betas"]
    clip = _clip_factor(rows[2].sum(), task.param, task.options)
    change = clip - task.clip
    for factor, sums, length in (
        (task.res_row, rows, task.param.shape[-1]),
        (task.res_col, cols, task.param.shape[-2]),
    ):
        square = sums[0] + 2 * change * sums[1] + change.square() * sums[2]
        # Rounding can leave a sum of squares just below zero where the gradient is constant.
        mean = beta1**2 * square.clamp_(min=0) / length + task.options["eps"][1]
        _average(factor, mean, beta3)
    task.clip.copy_(clip)


def _clip_factor(sum_of_squares: Tensor, param: Param, options: dict[str, Any]) -> Tensor:
    rms = (sum_of_squares / param.numel).sqrt()
    return (rms / options["clip_threshold"]).clamp(min=1.0).reciprocal()


def _average(average: Tensor, value: Tensor, beta: float) -> None:
    average.mul_(beta).add_(value, alpha=1 - beta)


def _scales(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """`1 / sqrt(v)` of the matrix `v = row col^T / mean(row)` is the product of these two."""
    return (row / row.mean(dim=1, keepdim=True)).rsqrt(), col.rsqrt()


def _descent(options: dict[str, Any]) -> dict[str, float]:
    return {
        "lr": float(options["lr"]),
        "beta1": options["betas"][0],
        "weight_decay": options["weight_decay"],
    }


class _Sums:
    """One flat buffer: `channels` sums for each row and column of each matrix, and `scalars`."""

    def __init__(
        self, matrices: Sequence[MatrixTask], channels: int, scalars: int, like: Tensor
    ) -> None:
        size = channels * sum(task.param.num_factors for task in matrices) + scalars
        # Never empty, so that a step is two sums whatever it updates.
        self.buffer = like.new_zeros(max(1, size))
        self.rows: list[Tensor] = []
        self.cols: list[Tensor] = []
        at = 0
        for task in matrices:
            batch, rows, cols = task.param.matrices
            for views, length in ((self.rows, rows), (self.cols, cols)):
                numel = channels * batch * length
                views.append(self.buffer[at : at + numel].view(channels, batch, length))
                at += numel
        self.scalars = self.buffer[at : at + scalars]
