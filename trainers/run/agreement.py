"""What one rank learns, all learn: actions that may fail on one rank, and values from each."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError

from trainers.errors import RunError


def together(action: Callable[[], Any], failure: type[RunError]) -> list[Any]:
    """Run `action` on this rank; returns the JSON values that it returned on all ranks, by rank.

    If it failed on any, raises `failure` on all: no rank goes on to a collective that others will
    not join.
    """
    cause: Exception | None = None
    outcome: dict[str, Any] = {}
    try:
        outcome["value"] = action()
    except (OSError, SafetensorError, RunError) as error:
        cause = error
        outcome["error"] = str(error) or type(error).__name__
    outcomes = _exchange(outcome)
    errors = [f"rank {rank}: {o['error']}" for rank, o in enumerate(outcomes) if "error" in o]
    if not errors:
        return [o["value"] for o in outcomes]
    messages = {o["error"] for o in outcomes if "error" in o}
    try:
        text = messages.pop() if len(messages) == 1 else "; ".join(errors)
        raise _of_all(failure(text)) from cause
    finally:
        # This frame and the traceback of `cause` would keep each other alive, and with them the
        # gathered tensors and the process group.
        del cause


def _of_all(error: RunError) -> RunError:
    error.everywhere = True  # one rank tells it for all
    return error


def _exchange(value: Any) -> list[Any]:
    """The JSON values of all ranks, by rank.  JSON, because torch's object collectives unpickle."""
    if not is_distributed():
        return [value]
    device = torch.device("cuda" if "nccl" in dist.get_backend() else "cpu")
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    size = torch.tensor([text.numel()], dtype=torch.int64, device=device)
    sizes = [torch.zeros_like(size) for _ in range(world_size())]
    dist.all_gather(sizes, size)
    longest = max(int(other) for other in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: text.numel()] = text
    texts = [torch.zeros_like(padded) for _ in range(world_size())]
    dist.all_gather(texts, padded)
    return [
        json.loads(other[: int(length)].cpu().numpy().tobytes())
        for other, length in zip(texts, sizes, strict=True)
    ]


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def own_rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1
