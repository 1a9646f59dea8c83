"""The lowest and the highest value of each number in a configuration."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter

# key: (lowest, highest, the ends themselves are allowed)
INF = float("inf")
Limit = tuple[float, float, bool]
LIMITS: dict[str, Limit] = {
    "run.seed": (0, 2**63 - 1, True),
    "model.layers": (1, INF, True),
    "model.hidden": (1, INF, True),
    "model.heads": (1, INF, True),
    "model.intermediate": (1, INF, True),
    "model.kv_heads": (1, INF, True),
    "model.rope_theta": (1, INF, False),
    "model.max_positions": (1, INF, True),
    "model.vocab_multiple": (1, INF, True),
    "objective.sequence_length": (8, INF, True),
    "objective.mask_fraction": (0, 1, False),
    "objective.max_predictions": (1, INF, True),
    "objective.noise_fraction": (0, 1, False),
    "objective.mean_span": (1, INF, True),
    "objective.short_fraction": (0, 1, True),
    "data.vocab_size": (
        300,
        2**31 - 1,
        True,
    ),  # below, not even the letters have pieces of their own
    "data.heldout_fraction": (0, 0.5, False),
    "data.workers": (0, 1024, True),
    "optimizer.lr": (0, INF, False),
    "optimizer.clip_threshold": (0, INF, False),
    "optimizer.weight_decay": (0, INF, True),
    "schedule.warmup_fraction": (0, 1, True),
    "schedule.warmup_steps": (0, INF, True),
    "schedule.final_ratio": (0, 1, True),
    "schedule.power": (0, INF, True),
    "schedule.decay_fraction": (0, 1, True),
    "train.steps": (1, INF, True),
    "train.log_every": (1, INF, True),
    "train.max_skipped_steps": (0, INF, True),
    "train.gradient_clipping": (0, INF, True),
    "eval.every": (0, INF, True),
    "eval.samples": (1, INF, True),
    "batch.global_size": (1, INF, True),
    "batch.micro_size": (0, INF, True),
    "batch.ramp_from": (0, INF, True),
    "batch.ramp_fraction": (0, 1, True),
    "runtime.threads": (0, 4096, True),
    "runtime.prefetch": (0, 1024, True),
    "runtime.memory_gb": (0, INF, True),
    "runtime.peak_tflops": (0, INF, True),
    "runtime.timeout_seconds": (1, 7 * 24 * 3600, True),
    "runtime.grace_seconds": (1, 24 * 3600, True),
    "checkpoint.every": (0, INF, True),
    "checkpoint.every_minutes": (0, INF, True),
    "checkpoint.max_failed_saves": (1, INF, True),
    "checkpoint.keep": (2, INF, True),  # one may turn out to be damaged
    "launch.processes": (0, INF, True),
    "launch.nodes": (1, INF, True),
    "launch.gpus_per_node": (0, INF, True),
    "launch.max_restarts": (0, INF, True),
    "launch.torchrun.min_nodes": (0, INF, True),
    "launch.slurm.cpus_per_node": (0, INF, True),
    "launch.slurm.warn_seconds": (1, 65535, True),  # as sbatch has it
    "launch.kubernetes.cpus": (0, INF, True),
}


def out_of_limits(config: object, limits: Mapping[str, Limit]) -> Iterator[str]:
    """What is wrong with the dotted keys of `limits` in `config`, in words."""
    for key, (low, high, closed) in limits.items():
        value = attrgetter(key)(config)
        if value is None:  # a key of something that was not chosen
            continue
        inside = low <= value <= high if closed else low < value < high
        if not inside:
            yield f"{key} must be {in_words(low, high, closed)}, not {value}"


def in_words(low: float, high: float, closed: bool) -> str:
    """A limit as words that follow \"must be\"."""
    if high == INF:
        return f"{low} or more" if closed else f"above {low}"
    return f"from {low} to {high}" if closed else f"between {low} and {high}"
