"""The plan of a run: one composed configuration -> every number, for every optimizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainers.build import as_objective
from trainers.config import Config, DataConfig
from trainers.data.tokenizer import SpecialIds, load_tokenizer
from trainers.models import build_model
from trainers.phases import finds_micro_batches, phase_configs
from trainers.planner.activations import activation_bytes
from trainers.planner.communication import Communication, communication
from trainers.planner.memory import Memory, memory
from trainers.planner.optimizers import compared, kept
from trainers.planner.sharding import state_bytes
from trainers.planner.work import Work, work
from trainers.run.engine import deepspeed_config


@dataclass(frozen=True)
class Row:
    """One optimizer; `state_bytes` is one copy of its whole state, without step counters."""

    state_bytes: int
    memory: Memory
    communication: Communication  # of the last step

    def as_dict(self) -> dict[str, Any]:
        return {
            "state_bytes": self.state_bytes,
            "bytes_per_gpu": self.memory.total,
            "host_bytes_per_gpu": self.memory.host,
            "memory": self.memory.as_dict(),
            "communication_bytes_per_step": self.communication.as_dict(),
        }


@dataclass(frozen=True)
class RunPlan:
    """Everything that is known of a run before it; `rows` by the names of `compared`."""

    config: Config
    world_size: int
    num_params: int
    vocab_size: int
    device: str
    mfu: float
    work: Work
    rows: dict[str, Row]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON: bytes, FLOPs, hours; None for what is found at the start."""
        config, found = self.config, finds_micro_batches(self.config)
        return {
            "experiment": config.experiment,
            "model": config.model.name,
            "num_params": self.num_params,
            "vocab_size": self.vocab_size,
            "nodes": config.launch.nodes,
            "world_size": self.world_size,
            "zero": asdict(config.zero),
            "dtype": config.runtime.dtype,
            "batch": asdict(config.batch) | ({"micro_size": None} if found else {}),
            "device": self.device,
            "mfu": self.mfu,
            "work": self.work.as_dict(),
            "chosen": config.optimizer.name,
            "optimizers": {name: row.as_dict() for name, row in self.rows.items()},
        }


def plan_run(config: Config, device: str, mfu: float) -> RunPlan:
    """The plan of `config`, which says the number of ranks, on devices of this name.

    Memory is that of the phase that needs most, communication that of the last phase.
    """
    world_size = config.launch.processes
    vocab_size = vocabulary(config.data)
    module = meta_module(config, vocab_size)
    phases = phase_configs(config)
    zero = deepspeed_config(phases[0], world_size)["zero_optimization"]
    found_later = finds_micro_batches(config)
    activations = (
        None if found_later else max(activation_bytes(inside, vocab_size) for inside in phases)
    )
    rows = {}
    for name, optimizer in compared(config).items():
        keeps = kept(optimizer, config.runtime, module)
        rows[name] = Row(
            state_bytes(keeps),
            memory(config, world_size, zero, keeps, activations),
            communication(phases[-1], world_size, keeps),
        )
    num_params = sum(param.numel() for param in module.parameters())
    found = work(config, vocab_size, world_size, device, mfu)
    return RunPlan(config, world_size, num_params, vocab_size, device, mfu, found, rows)


def vocabulary(data: DataConfig) -> int:
    """Entries of the vocabulary: those of a tokenizer that is there, or what is to be trained."""
    if data.tokenizer and Path(data.tokenizer).exists():
        return load_tokenizer(data.tokenizer, data.lowercase).get_vocab_size()
    return data.vocab_size


def meta_module(config: Config, vocab_size: int) -> nn.Module:
    """The model inside its objective, without any memory."""
    with torch.device("meta"):
        model = build_model(config.model, vocab_size, SpecialIds(pad=0, eos=1), config.run.seed)
        return as_objective(config.objective.name, model)
