"""The ranks agree on the step after which they stop."""

import signal
from datetime import timedelta

import torch
import torch.distributed as dist

from launch.local import EXIT_CODES
from trainers.errors import StoppedError
from trainers.run.distributed import World
from trainers.signals import Listener


class Stopping:
    """Asks all ranks during each step whether one was told to stop.

    The question is one number in a group of its own, on CPUs: it is on its way while the optimizer
    works, and a GPU does not wait for it.
    """

    def __init__(self, listener: Listener, world: World, timeout_seconds: int) -> None:
        """Every rank must call it."""
        self._listener = listener
        timeout = timedelta(seconds=timeout_seconds)
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world.store else None
        self._answer = torch.zeros(1, dtype=torch.int64)
        self._work: dist.Work | None = None

    def ask(self) -> None:
        """Send the question on its way."""
        self._answer.fill_(self._listener.signum)
        if self._group is not None:
            self._work = dist.all_reduce(
                self._answer, dist.ReduceOp.MAX, group=self._group, async_op=True
            )

    def told(self) -> int:
        """The signal that any rank had when it asked, the same on all; 0 if there was none."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return int(self._answer)

    def leave(self, signum: int, step: int, saved: bool) -> None:
        """End the run on all ranks together; what was to be saved is.  Raises StoppedError."""
        self.ask()  # a rank that ends earlier would make launchers end the others
        self.told()
        self._listener.leaving()
        name = signal.Signals(signum).name
        there = f"from step {step}" if saved else "from the last checkpoint"
        raise StoppedError(
            f"stopped by {name} after step {step}; the same command goes on {there}",
            EXIT_CODES[signal.Signals(signum)],
        )
