"""What the words of a command amount to: sizes, steps, tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainers.checks.page import Check, bullets
from trainers.config import Config
from trainers.phases import finds_micro_batches, phase_configs
from trainers.planner.plan import RunPlan
from trainers.run.commits import committed
from trainers.run.manifest import step_of

TITLE = "Configuration"


def check_configuration(config: Config, plan: RunPlan) -> Check:
    """Always green: what cannot be run has been refused before."""
    optimizer, schedule, work = config.optimizer, config.schedule, plan.work
    offload = ", optimizer offloaded" * config.zero.offload_optimizer
    lines = [
        f"{config.model.name}: {plan.num_params / 1e6:,.1f} M parameters, "
        f"{plan.vocab_size:,} entries of vocabulary",
        *_batches(config),
        f"{work.steps:,} steps, {work.samples:,} sequences, {work.tokens:,} tokens (padding "
        f"included), {work.flops:.1e} FLOPs",
        f"{optimizer.name}, lr {optimizer.lr:g}, {schedule.name}; ZeRO {config.zero.stage}"
        f"{offload}, {config.runtime.dtype}",
        _folder(config),
    ]
    return Check(TITLE, True, bullets(lines), _details(config, plan))


def _batches(config: Config) -> list[str]:
    ranks = config.launch.processes
    lines = []
    for number, inside in enumerate(phase_configs(config)):
        micro = inside.batch.micro_size
        rounds = inside.batch.global_size // (micro * ranks)
        phase = f"phase {number}: " if config.train.phases else ""
        turns = f"x {micro} x {rounds} micro batches"
        if finds_micro_batches(config):
            turns = "x micro batches as large as fit, found at the start"
        lines.append(
            f"{phase}{config.objective.name} on {inside.objective.sequence_length} tokens; "
            f"{inside.batch.global_size:,} sequences a step = {ranks} processes {turns}"
        )
    return lines


def _folder(config: Config) -> str:
    folder = Path(config.run.dir)
    found = committed(folder / "checkpoints")
    step = step_of(found[0]) if found else None
    if step is None:
        return f"run.dir {folder}: a new run"
    done = step >= config.train.steps
    words = "is complete, there is nothing to do" if done else f"resumes from step {step}"
    return f"run.dir {folder}: {words}"


def _details(config: Config, plan: RunPlan) -> dict[str, Any]:
    names = ("experiment", "num_params", "vocab_size", "world_size")
    names += ("zero", "dtype", "batch", "work")
    found = plan.as_dict()
    return {name: found[name] for name in names} | {"run.dir": config.run.dir}
