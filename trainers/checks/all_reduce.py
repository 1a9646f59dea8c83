"""How fast two processes of this machine add numbers up: the sum that every step of a run makes."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.devices import num_gpus
from launch.local import Outcome, die_with_launcher, hear_requests, run_local
from trainers.config import RuntimeConfig
from trainers.errors import PeerLostError
from trainers.failures import report, report_outcome

RANKS = 2
SMALL, LARGE = 1, 2**22  # float32 numbers: 4 bytes, 17 MB
_ROUNDS = {SMALL: 50, LARGE: 5}
# torch and its process group need seconds; who waits longer has a network that does not work.
_SETTINGS = RuntimeConfig(
    dtype="float32", threads=1, kernel="eager", timeout_seconds=60, grace_seconds=5
)

# What a rank runs: `-m` would look for `trainers` in the folder that the user stands in.
START = f"""\
import sys
sys.path[0] = {str(Path(__file__).resolve().parents[2])!r}
from trainers.checks.all_reduce import main
main()"""


@dataclass(frozen=True)
class Speed:
    """Of an all-reduce between two local ranks; medians."""

    backend: str  # gloo or nccl
    latency_seconds: float  # of 4 bytes
    bytes_per_second: float  # of 17 MB: its bytes over its time


def measure() -> Speed:
    """Start two ranks, on GPUs if there are two, and let them measure.

    Raises PeerLostError if they cannot reach each other, after they have said why themselves.
    """
    with tempfile.TemporaryDirectory(prefix="came-check-") as folder:
        answer = Path(folder) / "speed.json"
        device = "gpu" if num_gpus() >= RANKS else "cpu"
        outcome = run_local([sys.executable, "-c", START, str(answer), device], RANKS, 1)
        if outcome != Outcome(0):
            report_outcome(outcome)
            error = PeerLostError(
                "two processes of this machine cannot add numbers up together, see above; is the "
                "network interface right (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)?"
            )
            error.exit_code = outcome.exit_code
            raise error
        return Speed(**json.loads(answer.read_text()))


def main() -> None:
    """A rank: FILE for the answer of rank 0, and on which kind of device."""
    die_with_launcher()
    hear_requests()
    answer, device = sys.argv[1:]
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # one GPU is not enough for two ranks
    rank, code = int(os.environ["RANK"]), 0
    try:
        found = _measured()
        if rank == 0:
            Path(answer).write_text(json.dumps(asdict(found)))
    except (Exception, KeyboardInterrupt) as error:
        code = report(error, rank, verbose=os.environ.get("CAME_TRACEBACK") == "1")
    os._exit(code)


def _measured() -> Speed:
    import torch
    import torch.distributed as dist

    from trainers.run.distributed import join, leave

    world = join(_SETTINGS)
    medians = {}
    for numbers, rounds in _ROUNDS.items():
        values = torch.ones(numbers, device=world.device)
        seconds = []
        for _ in range(rounds + 1):
            values.fill_(1.0)
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(values)
            total = float(values[-1])  # waits for the device
            seconds.append(time.perf_counter() - start)
            assert total == RANKS, total
        medians[numbers] = sorted(seconds[1:])[rounds // 2]  # the first one makes connections
    backend = dist.get_backend()
    leave()
    return Speed(backend, medians[SMALL], 4 * LARGE / medians[LARGE])
