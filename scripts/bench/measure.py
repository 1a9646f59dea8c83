"""The measurements themselves: dictionaries ready for JSON, with every single time."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scripts.bench.clock import WARM_UP, Progress, clock_for, interleave
from scripts.bench.contestants import Contestant, state_bytes
from scripts.bench.ranks import SPLITS, STREAMED, LoneRank, layouts
from scripts.bench.shapes import Shapes


def warm_up(
    contestants: list[Contestant], params: list[Tensor]
) -> tuple[dict[str, torch.optim.Optimizer], dict[str, str]]:
    """The optimizers that can run here, some steps old; and why the others cannot."""
    ready: dict[str, torch.optim.Optimizer] = {}
    missing: dict[str, str] = {}
    for contestant in contestants:
        try:
            optimizer = contestant.build(params)
            for _ in range(WARM_UP):
                optimizer.step()
            ready[contestant.name] = optimizer
        except (ImportError, RuntimeError) as error:
            missing[contestant.name] = str(error).partition("\n")[0]
    return ready, missing


def measure_steps(
    contestants: list[Contestant],
    params: list[Tensor],
    num_rounds: int,
    slow_every: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Times and state of whole optimizers on unsharded parameters."""
    progress("warming up")
    ready, missing = warm_up(contestants, params)
    every = {each.name: slow_every for each in contestants if each.slow}
    steps = {name: optimizer.step for name, optimizer in ready.items()}
    times = interleave(steps, num_rounds, clock_for(params[0].device), every, progress)
    _require_finite(params)
    return [
        {
            "name": each.name,
            "missing": missing.get(each.name),
            "seconds": times.get(each.name, []),
            "state_bytes": state_bytes(ready[each.name]) if each.name in ready else None,
        }
        for each in contestants
    ]


def measure_worlds(
    contestant: Contestant,
    shapes: Shapes,
    params: list[Tensor],
    world_sizes: list[int],
    num_rounds: int,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Times of every simulated rank's own step, interleaved with the unsharded step."""
    ready, missing = warm_up([contestant], params)
    if missing:
        return []
    (whole,) = ready.values()
    found = []
    worlds = [(split, world_size) for split in SPLITS for world_size in world_sizes]
    for split, world_size in [*worlds, (STREAMED, 1)]:
        progress(f"{split}, {world_size} ranks")
        ranks = [
            LoneRank(
                layout,
                whole.defaults,
                params[0].dtype,
                params[0].device,
                in_step=split == STREAMED,
            )
            for layout in layouts(shapes, split, world_size)
        ]
        times = _measure_world(whole, ranks, num_rounds, progress)
        found.append({"split": split, "world_size": world_size, **times})
        del ranks  # before the next are allocated
        gc.collect()
    return found


def _measure_world(
    whole: torch.optim.Optimizer, ranks: list[LoneRank], num_rounds: int, progress: Progress
) -> dict[str, Any]:
    for rank in ranks:
        for _ in range(WARM_UP):
            buffers = rank.step()
    steps: dict[str, Callable[[], object]] = {"unsharded": whole.step}
    steps |= {str(number): rank.step for number, rank in enumerate(ranks)}
    clock = clock_for(buffers[0].device)
    times = interleave(steps, num_rounds, clock, progress=progress)
    _require_finite([rank.flat for rank in ranks])
    return {
        "unsharded": times.pop("unsharded"),
        "ranks": list(times.values()),
        "num_collectives": len(buffers),
        "collective_bytes": sum(buffer.numel() * buffer.itemsize for buffer in buffers),
    }


def _require_finite(tensors: list[Tensor]) -> None:
    """NaN would be timed too, and it is another computation where numbers are denormal or huge."""
    for tensor in tensors:
        if not tensor.isfinite().all():
            raise RuntimeError(f"a tensor of {tensor.numel()} parameters is no longer finite")
