"""Whether a run fits into the memory that is here, by the planner's numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from launch.start import QUEUED
from trainers.checks.machine import Machine
from trainers.checks.page import Check, bullets, size
from trainers.config import Config
from trainers.errors import MemoryLimitError
from trainers.planner.memory import Memory
from trainers.planner.plan import RunPlan

TITLE = "Memory plan"


@dataclass(frozen=True)
class Need:
    """What is needed in one kind of memory, and what there is; bytes."""

    where: str
    needed: int
    there: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.there


def check_memory(config: Config, plan: RunPlan, machine: Machine) -> Check:
    """Red if the plan needs more than this machine has, where it is the one that will be used."""
    memory = plan.rows[config.optimizer.name].memory
    found = needs(config, memory, machine)
    details: dict[str, Any] = {
        "memory": memory.as_dict(),
        "needs": [asdict(need) | {"fits": need.fits} for need in found],
    }
    lines = [
        f"{size(_most(memory))} for each of {plan.world_size} processes, "
        f"{size(memory.kept)} of it all the time"
        + (" (the micro batch is found at the start)" * (memory.total is None))
        + (f", and {size(memory.host)} on the host" if memory.host else "")
    ]
    if not found:
        lines.append("the machines of this run are others: whether it fits there is not known here")
    for need in found:
        lines.append(f"{need.where}: {size(need.needed)} of {size(need.there)}")
    wrong = [need for need in found if not need.fits]
    if wrong:
        lines.append(
            "it cannot fit: more processes or zero.stage=2 or 3 share what is there all the time; "
            "a smaller batch.micro_size or runtime.activation_checkpointing=true makes the rest "
            "smaller, zero.offload_optimizer=true moves state to the host; came-plan has the parts"
        )
    return Check(TITLE, not wrong, bullets(lines), details, MemoryLimitError.exit_code)


def needs(config: Config, memory: Memory, machine: Machine) -> list[Need]:
    """What is needed of each memory here; nothing where other machines will run it."""
    launch, most = config.launch, _most(memory)
    if launch.name in QUEUED or (launch.nodes > 1 and not machine.gpus):
        return []
    processes = launch.processes // launch.nodes
    if machine.gpus:
        smallest = min(machine.gpus, key=lambda gpu: gpu.total)
        host = [Need("host", processes * memory.host, machine.memory)] if memory.host else []
        return [Need(f"each {smallest.name}", most, smallest.total), *host]
    everything = processes * (most + memory.host)
    return [Need("this machine's memory, all processes", everything, machine.memory)]


def _most(memory: Memory) -> int:
    """The most at a time, or what is there in any case."""
    return memory.kept if memory.total is None else memory.total
