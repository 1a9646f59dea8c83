"""What a run reads and computes from its first step to its last, and how long that takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainers.config import Config, ObjectiveConfig
from trainers.flops import peak_flops, training_flops
from trainers.phases import phase_configs, plan
from trainers.span_lengths import span_lengths

_SPECIAL = 3  # [CLS] and two [SEP], which are not masked


@dataclass(frozen=True)
class Work:
    """Of a whole run, over all ranks.  Sequences are counted full: padding makes it less."""

    steps: int
    samples: int
    tokens: int
    labels: int
    flops: float
    hours: float | None  # None where the peak of the device is not known

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def work(config: Config, vocab_size: int, world_size: int, device: str, mfu: float) -> Work:
    """The work of `config`, at `mfu` of the peak of `world_size` devices named `device`."""
    phases = phase_configs(config)
    samples = tokens = labels = 0
    flops = 0.0
    for stretch in plan(config).stretches:
        inside = phases[stretch.phase]
        read = (stretch.last - stretch.first + 1) * stretch.size
        each, asked = sample_sizes(inside.objective)
        samples, tokens, labels = samples + read, tokens + read * each, labels + read * asked
        flops += training_flops(inside, vocab_size, read * each, {"first": read * asked})
    peak = peak_flops(config, device)
    hours = flops / (peak * world_size * mfu) / 3600 if peak else None
    return Work(config.train.steps, samples, tokens, labels, flops, hours)


def sample_sizes(objective: ObjectiveConfig) -> tuple[int, int]:
    """Tokens that the model reads or writes, and labels, of one full sample."""
    length = objective.sequence_length
    match objective.name:
        case "causal_lm":
            return length, length
        case "masked_lm":
            assert objective.mask_fraction is not None and objective.max_predictions is not None
            masked = round(objective.mask_fraction * (length - _SPECIAL))
            return length, max(1, min(objective.max_predictions, masked))
        case "span_corruption":
            assert objective.noise_fraction is not None and objective.mean_span is not None
            found = span_lengths(length, objective.noise_fraction, objective.mean_span)
            return found.inputs + found.targets, found.targets
