"""Bias correction of the second moments: one number a parameter for each of its two.

A moving average that began at zero is too small after `t` steps by `1 - beta^t`.  Both factors of a
matrix are, and its mean is, so the second moment that they stand for is, once:

    (r / k) (c / k) / mean(r / k) = (r c / mean(r)) / k,    k = 1 - beta^t

So what is kept stays as it is, and the scales that factors are turned into, `1 / sqrt(v)`, take the
root of `k`; without correction that is 1, which no product can be told from.
"""

from came.tasks import Task

UNCORRECTED = (1.0, 1.0)


def corrections(task: Task) -> tuple[float, float]:
    """`sqrt(1 - beta2^t)` of the squared gradient and `sqrt(1 - beta3^t)` of the residual in step
    `t` of a parameter; both 1 without bias correction."""
    if not task.options.get("bias_correction"):
        return UNCORRECTED
    _, beta2, beta3 = task.options["betas"]
    step = float(task.step)
    return (1 - beta2**step) ** 0.5, (1 - beta3**step) ** 0.5
