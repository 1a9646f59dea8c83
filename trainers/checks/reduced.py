"""A run made small: what is done stays, how large it is goes.

Objective, optimizer with all its options, ZeRO stage, offload, dtype, clipping and the shape of the
schedule are the run's own. Sizes are awkward, so that borders of ranks cut matrices within rows.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

from launch.devices import num_gpus
from trainers.config import Config, DataConfig, ModelConfig, ObjectiveConfig, ZeroConfig

RANKS = 2
STEPS = 5
GLOBAL, MICRO = 16, 2  # samples; powers of two, so that no division rounds
TEXT = "text.txt"

_NOUNS = "wind river stone light house bird bell morning letter garden road winter"
_VERBS = "runs falls sings answers turns waits shines returns"
_OTHERS = "the a of in on under over old new grey quick slow never always ten twelve far and"
_WORDS = f"{_NOUNS} {_VERBS} {_OTHERS}".split(" ")


def sharded(config: Config, folder: Path) -> Config:
    """`config` at its smallest on two ranks, reading `folder`/text.txt."""
    runtime, schedule = config.runtime, config.schedule
    warmup = schedule.warmup_fraction
    if schedule.warmup_steps is not None:
        warmup = min(1.0, schedule.warmup_steps / config.train.steps)
    on_gpus = num_gpus() >= RANKS
    return replace(
        config,
        run=replace(config.run, dir=str(folder / "run")),
        model=_model(config.model),
        objective=_objective(config.objective),
        data=_data(config.data, folder),
        schedule=replace(schedule, warmup_steps=None, warmup_fraction=warmup),
        train=replace(config.train, steps=STEPS, log_every=1, phases=()),
        batch=replace(config.batch, global_size=GLOBAL, micro_size=MICRO, ramp_from=0),
        runtime=replace(
            runtime,
            threads=1,  # more would add up in another order from run to run
            kernel=runtime.kernel if on_gpus or runtime.kernel != "gpu" else "auto",
            timeout_seconds=120,
            prefetch=0,
            compile=False,
            micro_batch="given",
            memory_gb=0.0,
        ),
        launch=replace(config.launch, processes=RANKS),
    )


def unsharded(config: Config) -> Config:
    """What `sharded` gave, in one process that shards nothing: the same micro batches."""
    # At stage 0 DeepSpeed would add gradients up in bfloat16; at stage 3 it has a linear layer of
    # its own, which rounds otherwise, and of gradients that are nothing but rounding all is other.
    without = 0 if config.runtime.dtype == "float32" else 1
    stage = 3 if config.zero.stage == 3 else without
    return replace(
        config,
        zero=ZeroConfig(stage=stage, offload_optimizer=False, round_robin_gradients=False),
        launch=replace(config.launch, processes=1),
        deepspeed={},
    )


def told(config: Config) -> str:
    """What stays of the run, in words."""
    zero = config.zero
    parts = [
        f"{config.model.family}, {config.objective.name}, {config.optimizer.name}",
        f"ZeRO {zero.stage}{' with offload' * zero.offload_optimizer}",
        config.runtime.dtype,
    ]
    if config.train.gradient_clipping:
        parts.append(f"clipping at {config.train.gradient_clipping:g}")
    return ", ".join(parts)


def write_text(folder: Path) -> None:
    """Some hundred documents of a few sentences: words at random, the same ones always."""
    draw = Random(0)

    def sentence() -> str:
        return " ".join(draw.choices(_WORDS, k=draw.randint(3, 11))).capitalize() + "."

    documents = ["\n".join(sentence() for _ in range(draw.randint(2, 9))) for _ in range(300)]
    (folder / TEXT).write_text("\n\n".join(documents) + "\n", encoding="utf-8")


def _model(model: ModelConfig) -> ModelConfig:
    return replace(
        model,
        layers=min(model.layers, 2),
        hidden=36,
        heads=2,
        kv_heads=model.kv_heads and 1,
        intermediate=52,
        max_positions=model.max_positions and 64,
        dropout=0.0,  # which numbers are dropped depends on the rank
        unigram_bias=False,
        path=None,
    )


def _objective(objective: ObjectiveConfig) -> ObjectiveConfig:
    return replace(
        objective,
        sequence_length=32,
        max_predictions=objective.max_predictions and min(objective.max_predictions, 8),
    )


def _data(data: DataConfig, folder: Path) -> DataConfig:
    return DataConfig(
        name="text",
        path=str(folder / TEXT),
        vocab_size=400,
        heldout_fraction=0.1,
        cache_dir=str(folder / "cache"),
        on_bad_text="strict",
        workers=1,
        tokenizer_model=data.tokenizer_model,
        lowercase=data.lowercase,
    )
