"""Work shared out over processes, its results in the order of the work."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

from trainers.errors import DataInterruptedError

Result = TypeVar("Result")

LITTLE = 2**24  # bytes of text that are dealt with before other processes have started
_PR_SET_PDEATHSIG = 1


def run_all(
    work: Sequence[Callable[[], Result]], num_workers: int, num_bytes: int
) -> Iterator[tuple[int, Result]]:
    """Call everything, at most `num_workers` (0: one per core) at a time; (index, result) in order.

    What is little in `num_bytes` is done in this process. Raises the first error in the order of
    the work, and DataInterruptedError when a process has been killed.
    """
    num_workers = min(num_workers or os.cpu_count() or 1, len(work))
    if num_workers <= 1 or num_bytes < LITTLE:
        yield from ((index, call()) for index, call in enumerate(work))
        return
    # Spawned, not forked: a fork would share the locks of the threads that torch has running.
    pool = ProcessPoolExecutor(
        num_workers, get_context("spawn"), partial(_begin, os.getpid(), num_workers)
    )
    try:
        yield from enumerate(pool.map(_call, work))
    except BrokenProcessPool as error:
        raise DataInterruptedError(
            "a process that prepares the data was killed, as a machine does that runs out of "
            "memory; set a smaller data.workers and start again: what is finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _call(work: Callable[[], Result]) -> Result:
    return work()


def _begin(parent: int, num_workers: int) -> None:
    """One thread for each worker where they fill the machine; and no worker outlives its parent."""
    if num_workers * 2 > (os.cpu_count() or 1):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os._exit(1)
