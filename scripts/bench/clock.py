"""Interleaved timing: A B C A B C, so that what slows the machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

WARM_UP = 2  # steps before the clock: state is allocated, kernels are built, pages are touched
AHEAD = 1.5  # how much longer than the last step on the host the device is kept busy

Progress = Callable[[str], None]  # takes a line about what is being done


class Clock(Protocol):
    def seconds(self, step: Callable[[], object]) -> float:
        """How long one call takes the device."""


class HostClock:
    """For work that is done when the call returns."""

    def seconds(self, step: Callable[[], object]) -> float:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin


class CudaClock:
    """Events around the work on the device, which is kept busy until the host has queued it.

    In training the host runs ahead too, as backward fills the queue.  A step of more launches than
    the queue holds (about a thousand) still waits for the host, as it would in training.
    """

    def __init__(self) -> None:
        self.begin, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.host_seconds: dict[Callable[[], object], float] = {}

    def seconds(self, step: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        # The argument is in cycles, of which there are about 2e9 a second.
        torch.cuda._sleep(int(AHEAD * self.host_seconds.get(step, 0.01) * 2e9))
        self.begin.record()
        host_begin = time.perf_counter()
        step()
        self.host_seconds[step] = time.perf_counter() - host_begin
        self.end.record()
        torch.cuda.synchronize()
        return self.begin.elapsed_time(self.end) / 1e3


def clock_for(device: torch.device) -> Clock:
    return CudaClock() if device.type == "cuda" else HostClock()


def interleave(
    steps: Mapping[str, Callable[[], object]],
    num_rounds: int,
    clock: Clock,
    every: Mapping[str, int] | None = None,
    progress: Progress = lambda line: None,
) -> dict[str, list[float | None]]:
    """Seconds of each step in each round; `every[name]` is n for one that takes part in each n-th.

    All have to be warm.  A round without a name holds None there, so that the same place in two
    lists is the same round.
    """
    times: dict[str, list[float | None]] = {name: [] for name in steps}
    for number in range(num_rounds):
        for name, step in steps.items():
            takes_part = number % (every or {}).get(name, 1) == 0
            times[name].append(clock.seconds(step) if takes_part else None)
        progress(f"round {number + 1} of {num_rounds}")
    return times


def spread(values: list[float]) -> dict[str, float]:
    """How many, the smallest, the quartiles and the median."""
    low, median, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"n": len(values), "min": min(values), "q1": low, "median": median, "q3": high}


def paired(
    over: list[float | None], under: list[float | None], factor: float = 1.0
) -> dict[str, float]:
    """The spread of `factor * over / under` in the rounds that both took part in."""
    pairs = zip(over, under, strict=True)
    return spread([factor * a / b for a, b in pairs if a is not None and b is not None])
