"""How fast a run is: seconds per step, tokens, samples, share of the peak, waiting, and memory."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainers.run.feed import Counts, Feed


class Meter:
    """Means since the last look, without the time that it was paused."""

    def __init__(self, feed: Feed, peak: float | None) -> None:
        """`peak` is the FLOP/s that all devices together can do; None if nobody knows."""
        self._feed, self._peak = feed, peak
        self._before, self._since = feed.counts, time.perf_counter()

    def look(self) -> dict[str, float]:
        """Metrics by name, of the whole run; the next look begins here."""
        now = time.perf_counter()
        seconds, found = now - self._since, self._feed.counts - self._before
        self._before, self._since = self._feed.counts, now
        return {**metrics(found, seconds, self._peak), "train/peak_memory": peak_memory()}

    @contextmanager
    def paused(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._since += time.perf_counter() - begin


def peak_memory() -> int:
    """Bytes that this process has needed at most: of GPU tensors, or on a CPU of everything."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def metrics(found: Counts, seconds: float, peak: float | None) -> dict[str, float]:
    """What `found` in so many seconds means; MFU is the share of `peak` that was of use."""
    values = {
        "train/seconds": seconds / found.steps,
        "train/tokens_per_second": found.tokens / seconds,
        "train/samples_per_second": found.samples / seconds,
        "train/data_wait": min(1.0, found.waited / seconds),
    }
    if peak:
        values["train/mfu"] = found.flops / seconds / peak
    return values
