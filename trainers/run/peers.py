"""Who is there: ranks that do not come to the meeting, and ranks that are lost on the way."""

import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from trainers.errors import PeerLostError
from trainers.failures import explain

ANSWER = 1.0  # seconds for the others to find out that somebody is lost, and to say so


def meet(timeout_seconds: int) -> tuple[dist.Store, int, int]:
    """The store that all ranks share, this rank and the number of ranks, once all are there.

    Raises PeerLostError if they are not within the timeout, with those that are missing.
    """
    timeout = timedelta(seconds=timeout_seconds)
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        store.set(f"joined/{rank}", "1")
        missing = _absent(store, "joined", world_size, timeout_seconds)
    except dist.DistError as error:
        raise PeerLostError(_no_meeting(str(error), timeout_seconds)) from error
    if missing:
        raise PeerLostError(
            f"{world_size - len(missing)} of {world_size} ranks joined within "
            f"runtime.timeout_seconds={timeout_seconds}; missing: {_ranks(missing)}"
        )
    return store, rank, world_size


def _no_meeting(text: str, seconds: int) -> str:
    joined = re.search(r"(\d+)/(\d+) clients joined", text)
    if joined:
        return (
            f"{joined[1]} of {joined[2]} ranks joined within runtime.timeout_seconds={seconds}: "
            "were all of them started, with one MASTER_ADDR and MASTER_PORT?"
        )
    if "EADDRINUSE" in text:
        return "MASTER_PORT is in use by another program on this machine: set another one"
    return (
        f"rank 0 was not found within runtime.timeout_seconds={seconds} where MASTER_ADDR and "
        f"MASTER_PORT point: {text.strip().splitlines()[0]}"
    )


@contextmanager
def lost_peers_named(store: dist.Store | None, rank: int, world_size: int) -> Iterator[None]:
    """A loss of other ranks inside is raised as PeerLostError with their names."""
    try:
        yield
    except Exception as error:
        known = explain(error)
        if store is None or not isinstance(known, PeerLostError):
            raise
        names = lost(store, rank, world_size)
        who = f"{_ranks(names)} did not answer" if names else "the ranks do not do the same"
        found = PeerLostError(f"{who}: rank {rank} waited in {_place(error)} ({_reason(known)})")
        found.step = getattr(error, "step", None)
        raise found from error


def lost(store: dist.Store, rank: int, world_size: int) -> list[int]:
    """The ranks that do not say within a second that they have lost somebody, too."""
    names = [0] if rank else []  # who keeps the store

    def ask() -> None:
        nonlocal names
        store.set(f"lost/{rank}", "1")
        names = _absent(store, "lost", world_size, ANSWER)

    thread = threading.Thread(target=lambda: _quietly(ask), daemon=True)
    thread.start()
    thread.join(2 * ANSWER)
    return names


def _quietly(action: Callable[[], None]) -> None:
    try:
        action()
    except RuntimeError:  # the store is gone, and rank 0 with it
        return


def _absent(store: dist.Store, key: str, world_size: int, seconds: float) -> list[int]:
    """The ranks that have not set `key` after so many seconds."""
    limit = time.monotonic() + seconds
    keys = [f"{key}/{rank}" for rank in range(world_size)]
    while not store.check(keys):  # one question for all of them
        if time.monotonic() > limit:
            return [rank for rank, name in enumerate(keys) if not store.check([name])]
        time.sleep(0.05)
    return []


def _place(error: BaseException) -> str:
    """The last of torch's collectives that `error` came through."""
    frames = [
        frame.name
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).name == "distributed_c10d.py" and frame.name != "wrapper"
    ]
    return frames[-1] if frames else "a collective"


def _reason(known: PeerLostError) -> str:
    return str(known).partition("(")[2].rstrip(")") or str(known)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
