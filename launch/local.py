"""Starts the ranks of a run on this machine and waits for them; no torch.

launcher --- rank 0      a rank fails      : the others get GRACE seconds, then SIGKILL
         |-- rank 1      launcher is told  : SIGINT, SIGTERM and SIGUSR1 are passed on, the ranks
         |                                   have `patience` seconds to save and leave
         `-- rank 2      launcher is killed: the kernel kills the ranks (Linux)

Ranks are started deaf to requests: one that comes before a rank is ready for it is kept by the
kernel until the rank says `hear_requests`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launch.devices import num_cores

GRACE = 5.0  # seconds: longer than a rank needs to see that its peer is gone and to say so
PATIENCE = 30.0  # seconds for ranks that were told to stop, and end by themselves before
POLL = 0.05  # seconds
PEER_LOST = 7  # the exit code of a rank that failed only because another one did
# Requests to stop, and what obeys them ends with: 75 is EX_TEMPFAIL, "please requeue"; who presses
# Ctrl-C expects what a shell says.
EXIT_CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
STOPPED = frozenset(EXIT_CODES.values())
ECHO = 1.0  # seconds within which the same request may arrive more than once
LAUNCHER = "CAME_LAUNCHER_PID"  # in the environment of the ranks
PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the code for the shell, and whose fault it was."""

    exit_code: int  # 128 + n for signal n that ended a rank, or was sent to us twice, as in a shell
    rank: int | None = None  # the first cause; None if nobody failed, or we were told to stop
    signum: int | None = None  # what killed that rank, or told us to stop


@dataclass
class Ranks:
    """The processes of a run, and in which order they ended."""

    received: list[int]  # signals that the launcher was sent
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ended: dict[int, int] = field(default_factory=dict)  # rank -> code, in the order of their ends
    told: set[int] = field(default_factory=set)  # ranks that we have ended

    def poll(self) -> bool:
        """Notes who has ended; True while somebody is running."""
        for rank, process in enumerate(self.processes):
            if rank not in self.ended and process.poll() is not None:
                self.ended[rank] = process.returncode
        return len(self.ended) < len(self.processes)

    def cause(self) -> int | None:
        """The rank to blame. "My peer is lost" is a cause only where nobody says more."""
        failed = [r for r, code in self.ended.items() if code != 0 and r not in self.told]
        first = [rank for rank in failed if self.ended[rank] != PEER_LOST]
        return next(iter(first or failed), None)

    def ask(self, signum: int) -> None:
        """Pass a request on to every rank that runs, not to its helpers, which it still needs."""
        for rank, process in enumerate(self.processes):
            if rank not in self.ended:
                process.send_signal(signum)

    def stop(self, grace: float, patience: float) -> None:
        """Ends what is still running; a second request, beyond its echo, ends it at once."""
        cause = self.cause()
        code = None if cause is None else self.ended[cause]
        if code in STOPPED or (code is None and self.received):
            self._wait(patience)
        else:
            # Who says that a peer is lost has waited for it, and so have the others.
            self._wait(grace / 4 if code == PEER_LOST else grace)
        for rank, process in enumerate(self.processes):
            if rank not in self.ended:
                self.told.add(rank)
            _kill_group(process.pid, signal.SIGKILL)  # a rank may have died before its helpers
        self._wait(grace, in_haste=False)

    def _wait(self, seconds: float, *, in_haste: bool = True) -> None:
        limit = time.monotonic() + seconds
        while self.poll() and time.monotonic() < limit:
            if in_haste and len(self.received) > 1:
                return
            time.sleep(POLL)


def run_local(
    command: Sequence[str],
    processes: int,
    threads: int = 0,
    *,
    grace: float = GRACE,
    patience: float = PATIENCE,
) -> Outcome:
    """Runs `command` as `processes` ranks of one world until the last one has ended.

    Args:
        threads: of each rank (OMP_NUM_THREADS); 0 = cores / processes.
        grace: seconds that the others have when a rank has failed.
        patience: seconds that ranks have which were told to stop.
    """
    shared = _environment(processes, threads)
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return _outcome(_run(command, ranks, grace, patience))


def run_alone(command: Sequence[str], *, patience: float) -> Outcome:
    """Runs one process that is no rank, as a launcher is, until it has ended.

    It is told of requests to stop, and has `patience` seconds then. As it may have been done at
    that moment, `signum` of the outcome is what says that there was a request.
    """
    ranks = _run(command, [os.environ | {LAUNCHER: str(os.getpid())}], GRACE, patience)
    if ranks.received and any(ranks.ended.values()):
        # Another program's code, as torchrun's 1, does not say that it was told to stop.
        signum = ranks.received[0]
        return Outcome(EXIT_CODES[signal.Signals(signum)], signum=signum)
    return _outcome(ranks)


def _run(
    command: Sequence[str], environments: list[dict[str, str]], grace: float, patience: float
) -> Ranks:
    with _signals() as received:
        ranks = Ranks(received)
        try:
            for environment in environments:
                ranks.processes.append(_start(command, environment))
            while ranks.poll() and not received and ranks.cause() is None:
                time.sleep(POLL)
            if received:
                ranks.ask(received[0])
        finally:
            ranks.stop(grace, patience)
    return ranks


def _outcome(ranks: Ranks) -> Outcome:
    rank = ranks.cause()
    if ranks.received and (rank is None or -ranks.ended[rank] in EXIT_CODES):
        # Told to stop, and ended without words: by a request, or by us.
        signum = ranks.received[0]
        if not any(ranks.ended.values()):
            return Outcome(0, signum=signum)
        once = len(ranks.received) == 1
        return Outcome(EXIT_CODES[signal.Signals(signum)] if once else 128 + signum, signum=signum)
    if rank is None:
        return Outcome(0)
    code = ranks.ended[rank]
    return Outcome(code, rank) if code > 0 else Outcome(128 - code, rank, -code)


def _environment(processes: int, threads: int) -> dict[str, str]:
    """What torch.distributed's `env://` reads, the same for all ranks."""
    # DeepSpeed compiles with the `ninja` beside this Python, found without activating the venv.
    path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    share = os.environ.get("OMP_NUM_THREADS") or str(max(1, num_cores() // processes))
    return os.environ | {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads) if threads else share,
        "PATH": path,
        LAUNCHER: str(os.getpid()),
    }


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C reaches the launcher alone, which decides who is told and when.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, EXIT_CODES)  # the rank inherits it
    try:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear_requests() -> None:
    """For a rank, once its handlers are there: requests arrive, also those from before."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, EXIT_CODES)


def die_with_launcher() -> None:
    """For a rank, first of all: if its launcher is killed with -9, the kernel kills the rank too.

    Nothing happens in a process that `run_local` did not start, or elsewhere than on Linux.
    """
    launcher = os.environ.get(LAUNCHER)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it was gone before the kernel was asked
        os._exit(128 + signal.SIGKILL)


def _kill_group(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS: a zombie
        os.killpg(pid, signum)


def free_port() -> int:
    """A port of this machine that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Signals, without echoes, are noted instead of ending the launcher before its ranks."""
    received: list[int] = []
    since = 0.0

    def note(signum: int, _: object) -> None:
        nonlocal since
        now = time.monotonic()
        if not received:
            since = now
        elif now - since <= ECHO:
            return
        received.append(signum)

    before = {signum: signal.signal(signum, note) for signum in EXIT_CODES}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
