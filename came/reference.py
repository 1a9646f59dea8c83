"""CAME as the paper writes it, on one whole tensor: the oracle for everything else.

CAME: Confidence-guided Adaptive Memory Efficient Optimization (Luo et al., ACL 2023, arXiv
2307.02047), Algorithm 2, with the choices of the authors' package `came-pytorch` 0.1.3: decoupled
weight decay, vectors with a full second moment and without confidence, and the last two of more
than two dimensions factored.  It shares no code with the optimizer.
"""

import torch
from torch import Tensor


def reference_state(param: Tensor) -> dict[str, Tensor]:
    """Zero state for a parameter of shape `(..., n, m)` or `(n,)`, in its dtype."""
    state = {"exp_avg": torch.zeros_like(param)}
    if param.dim() < 2:
        return state | {"exp_avg_sq": torch.zeros_like(param)}
    for statistic in ("sq", "res"):
        state[f"exp_avg_{statistic}_row"] = param.new_zeros(param.shape[:-1])
        state[f"exp_avg_{statistic}_col"] = param.new_zeros(param.shape[:-2] + param.shape[-1:])
    return state


def reference_step(
    param: Tensor,
    grad: Tensor,
    state: dict[str, Tensor],
    *,
    lr: float,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    eps: tuple[float, float] = (1e-30, 1e-16),
    clip_threshold: float = 1.0,
    weight_decay: float = 0.0,
    corrected_at: int | None = None,
) -> None:
    """One step of CAME; changes `param` and `state` in place.  All tensors share one dtype.

    `corrected_at`, which the paper does not have: the number of this step, from 1 on, for bias
    correction of the second moments.
    """
    beta1, beta2, beta3 = betas
    # U_t = G_t / sqrt(V_t), V_t from the factors of G_t^2 (eq. 1-3 of the paper)
    update = grad / _second_moment(state, "sq", grad**2 + eps[0], beta2, corrected_at).sqrt()
    # U^_t = U_t / max(1, RMS(U_t) / d)
    rms = update.square().mean().sqrt()
    update = update / (rms / clip_threshold).clamp(min=1.0)
    # m_t = beta1 m_{t-1} + (1 - beta1) U^_t
    momentum = state["exp_avg"]
    momentum.copy_(beta1 * momentum + (1 - beta1) * update)
    step = momentum
    if param.dim() >= 2:
        # S_t from the factors of (U^_t - m_t)^2: the less the update agrees with the momentum, the
        # smaller the step
        residual = (update - momentum) ** 2 + eps[1]
        step = momentum / _second_moment(state, "res", residual, beta3, corrected_at).sqrt()
    param.sub_(lr * weight_decay * param)
    param.sub_(lr * step)


def _second_moment(
    state: dict[str, Tensor], name: str, square: Tensor, beta: float, step: int | None
) -> Tensor:
    """Moving average of `square`, rebuilt from its row and column factors: `r c^T / mean(r)`."""
    weights = 1.0 if step is None else 1 - beta**step  # the sum of those in the average
    if square.dim() < 2:
        average = state[f"exp_avg_{name}"]
        average.copy_(beta * average + (1 - beta) * square)
        return average / weights
    row, col = state[f"exp_avg_{name}_row"], state[f"exp_avg_{name}_col"]
    row.copy_(beta * row + (1 - beta) * square.mean(dim=-1))
    col.copy_(beta * col + (1 - beta) * square.mean(dim=-2))
    row, col = row / weights, col / weights
    scaled_row = row / row.mean(dim=-1, keepdim=True)
    return scaled_row.unsqueeze(-1) * col.unsqueeze(-2)
