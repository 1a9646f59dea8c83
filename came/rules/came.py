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
from typing import Any

from torch import Tensor

from came.kernels import eager
from came.layout import Param
from came.rules.factored import MatrixTask, VectorTask


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
        _average(task.factors.sq_row, rows[0] / task.param.shape[-1] + eps, beta2)
        _average(task.factors.sq_col, cols[0] / task.param.shape[-2] + eps, beta2)
        scales.append(_scales(task.factors.sq_row, task.factors.sq_col))
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
                task.factors.clip,
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
        res_scale = _scales(task.factors.res_row, task.factors.res_col)
        for block in task.blocks:
            eager.apply_update(
                block.grad,
                block.exp_avg,
                block.param,
                scale[0][block.rows],
                scale[1][block.cols],
                task.factors.clip,
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
    factors = task.factors
    clip = _clip_factor(rows[2].sum(), task.param, task.options)
    change = clip - factors.clip
    for factor, sums, length in (
        (factors.res_row, rows, task.param.shape[-1]),
        (factors.res_col, cols, task.param.shape[-2]),
    ):
        square = sums[0] + 2 * change * sums[1] + change.square() * sums[2]
        # Rounding can leave a sum of squares just below zero where the gradient is constant.
        mean = beta1**2 * square.clamp_(min=0) / length + task.options["eps"][1]
        _average(factor, mean, beta3)
    factors.clip.copy_(clip)


def _clip_factor(sum_of_squares: Tensor, param: Param, options: dict[str, Any]) -> Tensor:
    rms = (sum_of_squares / param.numel).sqrt()
    threshold: float = options["clip_threshold"]
    return (rms / threshold).clamp(min=1.0).reciprocal()


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
