"""The step over a table in plain torch: the meaning of the fused kernels, and what runs without.

One function for each thing that a step does; `cpu` and `gpu` have the same functions.  Buffers are
indexed by factor space (`came/kernels/table.py`).  A box is worked through in pieces of whole rows
that fit a cache, so that no temporary is as large as a tensor.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from came.kernels import alone
from came.kernels.alone import Alone
from came.kernels.correction import corrections
from came.kernels.rounding import round_stochastically, rounding_key
from came.kernels.table import Part, Table
from came.tasks import Block, Task

TINY = 1e-30  # in place of a mean of nothing but zeros


@dataclass
class _Piece:
    """A block, or some of its rows, with its gradient `(b, n, m)`."""

    block: Block
    grad: Tensor

    def momentum(self, task: Task) -> Tensor:
        scales = None
        if "exp_avg_row" in task.state:
            rows, cols = task.by_matrix("exp_avg_row"), task.by_matrix("exp_avg_col")
            scales = rows[self.block.rows], cols[self.block.cols]
        storage, stored = task.fields["exp_avg"].storage, self.block.stored["exp_avg"]
        return storage.load(stored, task.param, self.block.box, scales)

    def keep(self, task: Task, momentum: Tensor) -> None:
        storage, stored = task.fields["exp_avg"].storage, self.block.stored["exp_avg"]
        storage.store(stored, task.param, self.block.box, momentum)


def batch_numbers(device: torch.device) -> int:
    """Numbers of matrices that are updated together while they are in cache."""
    return 1 << 20


def step_alone(batches: Sequence[Alone], squares: Tensor, residuals: Tensor) -> None:
    """All passes over matrices that are wholly here; their sums go to the buffers."""
    alone.step_alone(sys.modules[__name__], batches, squares, residuals)


def add_squares(part: Part, squares: Tensor) -> None:
    """Pass 1, adds to `squares` the row and column sums of `g^2`."""
    for index, task in _matrices(part):
        sum_rows, sum_cols = part.views(index, squares)
        for piece in _pieces(task, part.table.grads):
            square = piece.grad.to(squares.dtype).square()
            sum_rows[piece.block.rows] += square.sum(dim=2)
            sum_cols[piece.block.cols] += square.sum(dim=1)


def update_squares(part: Part, squares: Tensor, scales: Tensor) -> None:
    """Moves the factors `r, c` on by the means of `g^2 + eps1`, and writes to `scales`, which may
    be `squares`, the two factors of `1 / sqrt(r c / mean(r))`."""
    for index, task in _matrices(part):
        beta2, eps = task.options["betas"][1], task.options["eps"][0]
        _, num_rows, num_cols = task.param.matrices
        sum_rows, sum_cols = part.views(index, squares)
        row, col = task.by_matrix("exp_avg_sq_row"), task.by_matrix("exp_avg_sq_col")
        _average(row, sum_rows / num_cols + eps, beta2)
        _average(col, sum_cols / num_rows + eps, beta2)
        _write_scales(row, col, corrections(task)[0], *part.views(index, scales))


def add_residuals(part: Part, scales: Tensor, residuals: Tensor) -> None:
    """Pass 2, adds to the three rows of `residuals` the row and column sums of `d^2`, `d u` and
    `u^2`, with `u = g / sqrt(v)`, `d = z u - m` and `z` the clip factor of the last step."""
    for index, task in _matrices(part):
        row_scale, col_scale = part.views(index, scales)
        sum_rows, sum_cols = part.views(index, residuals)
        last_clip = task.state["clip_factor"]
        for piece in _pieces(task, part.table.grads):
            update = _scale(piece.grad, row_scale[piece.block.rows], col_scale[piece.block.cols])
            difference = last_clip * update - piece.momentum(task)
            products = (difference.square(), difference * update, update.square())
            for channel, product in enumerate(products):
                sum_rows[channel][piece.block.rows] += product.sum(dim=2)
                sum_cols[channel][piece.block.cols] += product.sum(dim=1)


def update_confidence(part: Part, residuals: Tensor, out: Tensor) -> None:
    """From the sums of pass 2 to the clip factor and the factors `R, C` of the residual.

    Writes to `out[0]` the two factors of `1 / sqrt(R C / mean(R))`, and to `out[1]` the magnitudes
    of the new momentum's rows and columns, for the sign format; `out` may be `residuals[:2]`.
    """
    for index, task in _matrices(part):
        beta1, _, beta3 = task.options["betas"]
        _, num_rows, num_cols = task.param.matrices
        sums = part.views(index, residuals)
        rms = (sums[0][2].sum() / task.param.numel).sqrt()
        part.table.rms[index] = rms
        last_clip = task.state["clip_factor"].clone()
        clip = _clip_factor(rms, task)
        task.state["clip_factor"].copy_(clip)
        means = []
        for kind, channels, length in (("row", sums[0], num_cols), ("col", sums[1], num_rows)):
            dd, du, uu = channels / length
            change = clip - last_clip
            square = dd + 2 * change * du + change.square() * uu
            # Rounding can leave a sum of squares just below zero where the gradient is constant.
            residual = beta1**2 * square.clamp_(min=0) + task.options["eps"][1]
            _average(task.by_matrix(f"exp_avg_res_{kind}"), residual, beta3)
            means.append(_momentum_squares(dd, du, uu, last_clip, clip, beta1))
        _write_scales(
            task.by_matrix("exp_avg_res_row"),
            task.by_matrix("exp_avg_res_col"),
            corrections(task)[1],
            *part.views(index, out[0]),
        )
        if "exp_avg_row" in task.state:
            _write_magnitudes(means[0], means[1], *part.views(index, out[1]))


def apply_update(part: Part, scales: Tensor, out: Tensor) -> None:
    """Pass 3: `m = beta1 m + (1 - beta1) s u`, `p = p - lr wd p - lr m / sqrt(S)`."""
    for index, task in _matrices(part):
        beta1, clip = task.options["betas"][0], task.state["clip_factor"]
        row_scale, col_scale = part.views(index, scales)
        res_row_scale, res_col_scale = part.views(index, out[0])
        for piece in _pieces(task, part.table.grads):
            rows, cols = piece.block.rows, piece.block.cols
            update = _scale(piece.grad, row_scale[rows], col_scale[cols]).mul_(clip)
            momentum = piece.momentum(task).to(update.dtype).mul(beta1)
            momentum.add_(update, alpha=1 - beta1)
            piece.keep(task, momentum)
            step = _scale(momentum, res_row_scale[rows], res_col_scale[cols])
            _descend(piece, step, task)
        if "exp_avg_row" in task.state:  # not before: the old signs needed the old magnitudes
            row, col = part.views(index, out[1])
            task.by_matrix("exp_avg_row").copy_(row)
            task.by_matrix("exp_avg_col").copy_(col)


def add_vector_squares(table: Table, sums: Tensor) -> None:
    """Updates the second moments of this rank's pieces of vectors; adds to `sums` their `u^2`,
    before bias correction."""
    for task, total in zip(table.vectors.tasks, sums, strict=True):
        beta2, eps = task.options["betas"][1], task.options["eps"][0]
        for block in task.blocks:
            second_moment = block.stored["exp_avg_sq"][0]
            grad = block.grad(table.grads).view(-1).to(second_moment.dtype)
            _average(second_moment, grad.square() + eps, beta2)
            total += (grad * second_moment.rsqrt()).square().sum()


def apply_vector_update(table: Table, sums: Tensor) -> None:
    """Changes momentum and parameter of pieces of vectors: CAME without confidence."""
    for index, (task, total) in enumerate(zip(table.vectors.tasks, sums, strict=True)):
        beta1, correction = task.options["betas"][0], corrections(task)[0]
        rms = (total / task.param.numel).sqrt() * correction
        table.rms[len(table.matrices.tasks) + index] = rms
        scale = _clip_factor(rms, task) * correction
        for piece in _pieces(task, table.grads):
            second_moment = piece.block.stored["exp_avg_sq"][0].view(piece.grad.shape)
            update = (piece.grad.to(second_moment.dtype) * second_moment.rsqrt()).mul_(scale)
            momentum = piece.block.stored["exp_avg"][0].view(piece.grad.shape)
            momentum.mul_(beta1).add_(update, alpha=1 - beta1)
            _descend(piece, momentum, task)


def _matrices(part: Part) -> Iterator[tuple[int, Task]]:
    for index in part.matrices:
        yield index, part.table.matrices.tasks[index]


def _pieces(task: Task, grads: list[Tensor]) -> Iterator[_Piece]:
    for block in task.pieces():
        yield _Piece(block, block.grad(grads))


def _clip_factor(rms: Tensor, task: Task) -> Tensor:
    threshold: float = task.options["clip_threshold"]
    return (rms / threshold).clamp(min=1.0).reciprocal()


def _average(average: Tensor, value: Tensor, beta: float) -> None:
    average.mul_(beta).add_(value, alpha=1 - beta)


def _write_scales(
    row: Tensor, col: Tensor, correction: float, row_scale: Tensor, col_scale: Tensor
) -> None:
    """`1 / sqrt(v)` of the matrix `v = row col^T / mean(row)`, bias corrected, is the product of
    these two."""
    # Not of the quotient, which is 0 for a row without gradient among large ones.
    row_scale.copy_(row.mean(dim=1, keepdim=True).sqrt() * correction * row.rsqrt())
    col_scale.copy_(col.rsqrt())


def _momentum_squares(
    dd: Tensor, du: Tensor, uu: Tensor, last_clip: Tensor, clip: Tensor, beta1: float
) -> Tensor:
    """Means of `m'^2` from those of `d^2`, `d u`, `u^2`, with `m = z u - d`."""
    mu = last_clip * uu - du
    mm = dd + last_clip.square() * uu - 2 * last_clip * du
    gain = (1 - beta1) * clip
    return (beta1**2 * mm + 2 * beta1 * gain * mu + gain.square() * uu).clamp_(min=0)


def _write_magnitudes(row: Tensor, col: Tensor, rows: Tensor, cols: Tensor) -> None:
    """Row and column magnitudes whose products have the row and column means of squares given."""
    mean = row.mean(dim=1, keepdim=True)
    rows.copy_((row / mean.clamp(min=TINY)).sqrt())
    cols.copy_(col.sqrt())


def _scale(matrix: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return (matrix * rows.unsqueeze(2)).mul_(cols.unsqueeze(1))


def _descend(piece: _Piece, step: Tensor, task: Task) -> None:
    lr = float(task.options["lr"])
    decay, param = lr * task.options["weight_decay"], piece.block.param
    # `p - lr wd p`, not `(1 - lr wd) p`: in fp32 the factor itself would be off by 3e-8 every step.
    if param.dtype == step.dtype:
        param.add_(param, alpha=-decay).add_(step, alpha=-lr)
        return
    # A half-precision parameter is rounded once, after decay and update together.
    wide = param.to(step.dtype)
    wide.add_(wide, alpha=-decay).add_(step, alpha=-lr)
    key = rounding_key(task)
    if key is not None and param.dtype == torch.bfloat16:
        wide = round_stochastically(wide, key, piece.block.start)
    param.copy_(wide)
