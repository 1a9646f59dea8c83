"""The three passes over one block of a matrix, in plain torch: the meaning of a step.

A block is a box of a parameter: `grad`, `exp_avg` and `param` have shape `(b, n, m)`, what belongs
to its rows `(b, n)` and to its columns `(b, m)`.  Everything is computed in the dtype of the sums.
"""

from torch import Tensor


def add_squares(grad: Tensor, rows: Tensor, cols: Tensor) -> None:
    """Pass 1, adds to `rows` and `cols` the sums of `g^2`."""
    square = grad.to(rows.dtype).square()
    rows += square.sum(dim=2)
    cols += square.sum(dim=1)


def add_residuals(
    grad: Tensor,
    exp_avg: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    last_clip: Tensor,
    rows: Tensor,
    cols: Tensor,
) -> None:
    """Pass 2, adds the sums of `d^2`, `d u` and `u^2` with `u = g / sqrt(v)`, `d = z u - m`.

    `rows` is `(3, b, n)`, `cols` `(3, b, m)`; `last_clip` is `z`, the last step's clip factor.
    """
    update = _scale(grad, row_scale, col_scale)
    difference = last_clip * update - exp_avg
    for i, product in enumerate((difference.square(), difference * update, update.square())):
        rows[i] += product.sum(dim=2)
        cols[i] += product.sum(dim=1)


def apply_update(
    grad: Tensor,
    exp_avg: Tensor,
    param: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    clip: Tensor,
    res_row_scale: Tensor,
    res_col_scale: Tensor,
    *,
    lr: float,
    beta1: float,
    weight_decay: float,
) -> None:
    """Pass 3, changes `exp_avg` and `param`: `m = beta1 m + (1 - beta1) s u`,
    `p = p - lr wd p - lr m / sqrt(S)`."""
    update = _scale(grad, row_scale, col_scale).mul_(clip)
    exp_avg.mul_(beta1).add_(update, alpha=1 - beta1)
    step = _scale(exp_avg, res_row_scale, res_col_scale)
    _descend(param, step, lr=lr, weight_decay=weight_decay)


def add_vector_squares(grad: Tensor, exp_avg_sq: Tensor, beta2: float, eps: float) -> Tensor:
    """Updates the full second moment of a piece of a vector; returns the sum of its `u^2`."""
    grad = grad.to(exp_avg_sq.dtype)
    exp_avg_sq.mul_(beta2).add_(grad.square() + eps, alpha=1 - beta2)
    return (grad * exp_avg_sq.rsqrt()).square().sum()


def apply_vector_update(
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    param: Tensor,
    clip: Tensor,
    *,
    lr: float,
    beta1: float,
    weight_decay: float,
) -> None:
    """Changes `exp_avg` and `param` of a piece of a vector: CAME without confidence."""
    update = (grad.to(exp_avg_sq.dtype) * exp_avg_sq.rsqrt()).mul_(clip)
    exp_avg.mul_(beta1).add_(update, alpha=1 - beta1)
    _descend(param, exp_avg, lr=lr, weight_decay=weight_decay)


def _scale(matrix: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    return (matrix * rows.unsqueeze(2)).mul_(cols.unsqueeze(1))


def _descend(param: Tensor, step: Tensor, *, lr: float, weight_decay: float) -> None:
    # `p - lr wd p`, not `(1 - lr wd) p`: in fp32 the factor itself would be off by 3e-8 every step.
    if param.dtype == step.dtype:
        param.add_(param, alpha=-lr * weight_decay).add_(step, alpha=-lr)
        return
    # A half-precision parameter is rounded once, after decay and update together.
    wide = param.to(step.dtype)
    wide.add_(wide, alpha=-lr * weight_decay).add_(step, alpha=-lr)
    param.copy_(wide)
