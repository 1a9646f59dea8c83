"""`CAME`, a thin class around its rule."""

from typing import Any, Literal

from came.rules import came as rule
from came.sharded_optimizer import ShardedOptimizer


class CAME(ShardedOptimizer):
    """Confidence-guided Adaptive Memory Efficient optimization (ACL 2023, arXiv 2307.02047).

    Matrices (the last two of two or more dimensions) keep a momentum and four factor vectors;
    vectors keep a momentum and a full second moment, without confidence.  Weight decay is
    decoupled.  Half-precision gradients and parameters are computed in float32, and so are all
    statistics.

    Handed to `deepspeed.initialize` it finds ZeRO's flat slices at the first step, proves by value
    which parameter each number belongs to, and computes what it would compute unsharded.

    Args:
        params: parameters, named parameters or groups, as for any torch optimizer.
        lr: step size.  Steps are about as large as Adam's with the same `lr`, but up to 11 times
            larger at the start, because CAME corrects no bias by itself: warm up.
        betas: decay of the momentum (> 0), the squared gradient and the residual (paper, section
            3).
        eps: added to the squared gradient and to the squared residual.
        clip_threshold: upper bound of the root mean square of an update before the momentum.
        weight_decay: decoupled, times `lr`.
        bias_correction: divide the second moments, which begin at zero, by `1 - beta^t`, as Adam
            does (`came/rules/came.py`).  The paper does not; first steps are then small, not large.
        momentum: how the momentum of matrices is stored (`came/momentum.py`).
        matricize: which matrices more than two dimensions are: "last" as in the paper's package,
            or "first", the first dimension by all others (convolutions, fused weights).
        stochastic_rounding: round bfloat16 parameters up or down by chance, so that small updates
            are not lost where no float32 copy is kept.
        seed: of stochastic rounding.
        kernel: "auto" takes the fastest that is at hand; "eager", "cpu" or "gpu" insist.

    Raises:
        ValueError: a hyperparameter is out of its range.
        RuntimeError: at `step`, where parameters are sharded in a way that cannot be proven.
    """

    rule = rule

    def __init__(
        self,
        params: Any,
        lr: float = 2e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        *,
        bias_correction: bool = False,
        momentum: Literal["float32", "bfloat16", "int8", "sign"] = "float32",
        matricize: Literal["last", "first"] = "last",
        stochastic_rounding: bool = False,
        seed: int = 0,
        kernel: Literal["auto", "eager", "cpu", "gpu"] = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "momentum": momentum,
            "matricize": matricize,
            "stochastic_rounding": stochastic_rounding,
            "seed": seed,
            "kernel": kernel,
        }
        super().__init__(params, defaults)
