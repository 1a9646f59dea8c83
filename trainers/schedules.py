"""The learning rate as a pure function of the step."""

from math import cos, pi, sqrt

from trainers.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, step: int, steps: int, peak: float) -> float:
    """The rate of step `step` (1 is the first) of `steps`.

    A straight warm-up to `peak`, then the shape of `config.name` down to `final_ratio` of it, for
    those that have one. The step after the last would have that rate, so that with a ratio of 0
    the last one still learns.
    """
    warmup = warmup_steps(config, steps)
    if step <= warmup:
        return peak * step / warmup
    final = config.final_ratio or 0.0
    return peak * (final + (1 - final) * _shape(config, step, steps, warmup))


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """Steps of the warm-up, the one that first has the peak included: 1 is none at all."""
    given = config.warmup_steps
    return max(1, round(config.warmup_fraction * steps) if given is None else given)


def _shape(config: ScheduleConfig, step: int, steps: int, warmup: int) -> float:
    """What is left of the way from the peak to the final rate: 1 at first, 0 after the end."""
    left = (steps + 1 - step) / (steps + 1 - warmup)
    match config.name:
        case "constant":
            return 1.0
        case "inverse_sqrt":
            return sqrt(warmup / step)
        case "linear":
            return left
        case "poly":
            return left ** (config.power or 1.0)
        case "cosine":
            return (1 + cos(pi * (1 - left))) / 2
        case "wsd":
            decay = round((config.decay_fraction or 0.0) * steps)
            return min(1.0, (steps + 1 - step) / (decay + 1))
