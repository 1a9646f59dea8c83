"""What CAME is compared with: three known optimizers, exact under every sharding like CAME itself.

The frame, the layouts and the promises are those of `came.optimizer.CAME`; only the rule differs.
None of them clips the global norm of the gradient: under ZeRO an optimizer never sees all of it.
Let DeepSpeed do that (`gradient_clipping`), or torch (`clip_grad_norm_`).
"""

from typing import Any

from came.rules import adafactor, lamb, sm3
from came.sharded_optimizer import ShardedOptimizer


class Adafactor(ShardedOptimizer):
    """Adafactor as in `transformers.optimization` (Shazeer and Stern, 2018, arXiv 1804.04235).

    Args:
        params: parameters, named parameters or groups, as for any torch optimizer.
        lr: step size; None with `relative_step`.
        eps: added to the squared gradient; lower bound of the RMS that `scale_parameter` reads.
        clip_threshold: upper bound of the root mean square of an update.
        decay_rate: the second moment of step `t` decays with `1 - t^decay_rate`.
        beta1: decay of the momentum; None keeps none.
        weight_decay: decoupled, times the step size.
        scale_parameter: multiply the step size by the RMS of the parameter.
        relative_step: the step size is `min(1e-2, 1 / sqrt(t))`.
        warmup_init: with `relative_step`, at most `1e-6 t`.

    Raises:
        ValueError: a hyperparameter is out of its range, or two do not fit each other.
        RuntimeError: at `step`, where parameters are sharded in a way that cannot be proven.
    """

    rule = adafactor

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        *,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "decay_rate": decay_rate,
            "beta1": beta1,
            "weight_decay": weight_decay,
            "scale_parameter": scale_parameter,
            "relative_step": relative_step,
            "warmup_init": warmup_init,
        }
        super().__init__(params, defaults)


class LAMB(ShardedOptimizer):
    """Layer-wise adaptive moments for large batches (You et al., 2020, arXiv 1904.00962).

    NVIDIA's recipe for BERT, the usual baseline at batches of 32k, is this with a global gradient
    norm of at most 1 (see above) and without a bound of the trust ratio.

    Args:
        params: parameters, named parameters or groups, as for any torch optimizer.
        lr: step size: the length of a step as a share of the parameter's.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: added to Adam's update, times the parameter, before the trust ratio.
        bias_correction: divide the moments by `1 - beta^t`, as in Adam.
        always_adapt: the trust ratio also for parameters without weight decay.
        max_trust_ratio: its upper bound.  Without one, a matrix without gradient (its update is
            `weight_decay` times itself) would shrink by `lr` of itself at every step.

    Raises:
        ValueError: a hyperparameter is out of its range.
        RuntimeError: at `step`, where parameters are sharded in a way that cannot be proven.
    """

    rule = lamb

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        always_adapt: bool = False,
        max_trust_ratio: float = 10.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "always_adapt": always_adapt,
            "max_trust_ratio": max_trust_ratio,
        }
        super().__init__(params, defaults)


class SM3(ShardedOptimizer):
    """SM3-II with momentum (Anil et al., 2019, arXiv 1901.11150).

    Its accumulators only grow, so that a learning rate that stays constant after a warm-up already
    means smaller and smaller steps.

    Args:
        params: parameters, named parameters or groups, as for any torch optimizer.
        lr: step size.
        beta1: decay of the momentum; 0 keeps none.
        eps: added to the accumulated squares.
        weight_decay: decoupled, times `lr`.

    Raises:
        ValueError: a hyperparameter is out of its range.
        RuntimeError: at `step`, where parameters are sharded in a way that cannot be proven.
    """

    rule = sm3

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        beta1: float = 0.9,
        eps: float = 1e-30,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
