"""The learning rate as a pure function of the step."""

from trainers.config import ScheduleConfig


def learning_rate(config: ScheduleConfig, step: int, steps: int, peak: float) -> float:
    """The rate of step `step` (1 is the first) of `steps`: a straight warm-up to `peak`, then
    constant, or linear to 0 at the last step."""
    warmup = max(1, round(config.warmup_fraction * steps))
    if step <= warmup:
        return peak * step / warmup
    if config.name == "constant":
        return peak
    # The step after the last would have rate 0, so that the last one still learns.
    return peak * (steps + 1 - step) / (steps + 1 - warmup)
