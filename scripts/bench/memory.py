"""The memory that `step()` needs beyond what existed before it.

On CUDA the caching allocator counts it.  On the CPU the kernel of the system does: the high-water
mark of resident memory, `VmHWM` of /proc/self/status, is set back to the present (`5` written to
/proc/self/clear_refs) just before a step, and read after it.  That sees every allocation, also
those of C++ that torch knows nothing of, and it sees them exactly if

* freed memory goes back to the system: `mallopt` makes every block of 64 KiB or more a mapping of
  its own, so that no step lives on what an earlier one left behind;
* pages are small (`PR_SET_THP_DISABLE`), so that touching a byte costs 4 KiB and not 2 MiB;
* nothing happens for the first time: two steps are taken before.

This changes the process for good and slows its allocations, so it is a process of its own, in
which nothing is timed.  How exact it is on this machine is measured beside it, on a buffer of known
size (the counters of Linux are exact to some pages for each core).
"""

import ctypes
import multiprocessing
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.bench.clock import WARM_UP, Progress
from scripts.bench.contestants import Contestant, make_params
from scripts.bench.shapes import Shapes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, PR_SET_THP_DISABLE = -1, -3, 41
KNOWN_BYTES = 1 << 26  # of the buffer that the measurement is tested with

# Bytes that a call needs for a while.
Peak = Callable[[Callable[[], object]], int]


def peak_bytes(
    contestants: list[Contestant],
    shapes: Shapes,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
) -> dict[str, int | str]:
    """Peak extra bytes of a step of each contestant, or in words why there is no number.

    The entry "error" is by how many bytes the measurement of a known buffer was wrong.
    """
    if device.type == "cuda":
        return _all_peaks(contestants, shapes, dtype, device, progress, _cuda_peak)
    if sys.platform != "linux":
        return {each.name: "needs Linux" for each in contestants}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        arguments = (contestants, shapes, dtype, device, progress)
        return pool.submit(_in_own_process, torch.get_num_threads(), *arguments).result()


def _in_own_process(num_threads: int, *arguments: Any) -> dict[str, int | str]:
    torch.set_num_threads(num_threads)
    prepare_process()
    try:
        return _all_peaks(*arguments, host_peak)
    except OSError as error:  # /proc is not there, or not ours to write
        return {each.name: str(error) for each in arguments[0]}


def prepare_process() -> None:
    """Make resident memory follow what is allocated, from here to the end of this process."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 16)
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    libc.prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)


def _all_peaks(
    contestants: list[Contestant],
    shapes: Shapes,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    peak: Peak,
) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    found["error"] = _error(dtype, device, peak)
    params = make_params(shapes, dtype, device)
    for contestant in contestants:
        progress(f"memory of {contestant.name}")
        try:
            found[contestant.name] = _peak_of(contestant, params, peak)
        except (ImportError, RuntimeError) as error:
            found[contestant.name] = str(error)
    return found


def _error(dtype: torch.dtype, device: torch.device, peak: Peak) -> int:
    """By how many bytes the measurement of a known buffer is wrong."""

    def known() -> None:
        torch.ones(KNOWN_BYTES // dtype.itemsize, dtype=dtype, device=device)

    known()
    return abs(peak(known) - KNOWN_BYTES)


def _peak_of(contestant: Contestant, params: list[Tensor], peak: Peak) -> int:
    optimizer = contestant.build(params)
    for _ in range(WARM_UP):
        optimizer.step()
    return peak(optimizer.step)


def host_peak(step: Callable[[], object]) -> int:
    """Bytes by which resident memory rises during a call, in a process that was prepared."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"Linux has {key}"
    return int(found[1]) << 10


def _cuda_peak(step: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
