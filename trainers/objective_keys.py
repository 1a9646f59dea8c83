"""Which keys each objective reads, and which models can be asked it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from trainers.config import Config, ObjectiveConfig
from trainers.errors import ConfigError
from trainers.limits import LIMITS, out_of_limits
from trainers.span_lengths import NUM_SENTINELS, span_lengths

_OF_ALL = {"name", "sequence_length"}
KEYS = {
    "masked_lm": {
        *("mask_fraction", "max_predictions", "next_sentence", "short_fraction", "packing"),
    },
    "causal_lm": {"document_mask"},
    "span_corruption": {"noise_fraction", "mean_span"},
}
_OF_SPANS = ("sequence_length", "noise_fraction", "mean_span")
FAMILIES = {"masked_lm": ("bert",), "causal_lm": ("gpt2", "llama"), "span_corruption": ("t5",)}


def problems_of_objective(config: Config) -> Iterator[str]:
    """Keys of another objective, keys that are missing, and a model that cannot be asked it."""
    objective, family = config.objective, config.model.family
    wanted = KEYS[objective.name]
    for key, value in asdict(objective).items():
        if key in wanted and value is None:
            yield f"objective.{key} is null: {objective.name} needs a value"
        if key not in wanted | _OF_ALL and value is not None:
            owners = " and ".join(name for name, keys in KEYS.items() if key in keys)
            yield f"objective.{key}={value}: {objective.name} does not read it, it is {owners}'s"
    if family not in FAMILIES[objective.name]:
        yield (
            f"objective={objective.name} asks a model of family "
            f"{' or '.join(FAMILIES[objective.name])}, and model={config.model.name} is {family}"
        )
    if objective.packing and objective.next_sentence:
        yield (
            "objective.packing=true needs objective.next_sentence=false: the second text of a pair "
            "is drawn anew in each epoch, and rows are planned for lengths that stay"
        )
    yield from _wrong_predictions(config)
    if objective.name == "span_corruption":
        yield from _wrong_spans(config)


def _wrong_predictions(config: Config) -> Iterator[str]:
    """A limit of masked tokens above the length, or below what the fraction asks."""
    objective = config.objective
    predictions, length = objective.max_predictions, objective.sequence_length
    # Lengths and fractions that are wrong are told elsewhere, once.
    is_sound = length <= (config.model.max_positions or length)
    is_sound &= 0 < (objective.mask_fraction or 0) <= 1
    if predictions is not None and predictions > length:
        yield (
            f"objective.max_predictions={predictions} is more than the "
            f"objective.sequence_length={length} tokens of a sequence"
        )
    elif is_sound and predictions is not None and predictions < (asked := _asked(objective)):
        yield (
            f"objective.max_predictions={predictions} is fewer than the {asked} that "
            f"objective.mask_fraction={objective.mask_fraction} asks of "
            f"objective.sequence_length={length} tokens, and would mask less than that fraction: "
            f"max_predictions={asked} or more"
        )


def _asked(objective: ObjectiveConfig) -> int:
    """Masked tokens of a full sequence: [CLS] and one or two [SEP] are never masked."""
    special = 3 if objective.next_sentence else 2
    return round((objective.mask_fraction or 0) * (objective.sequence_length - special))


def _wrong_spans(config: Config) -> Iterator[str]:
    """Spans that have no room, or are more than the sentinels of a vocabulary trained here."""
    objective = config.objective
    limits = {f"objective.{key}": LIMITS[f"objective.{key}"] for key in _OF_SPANS}
    noise, mean = objective.noise_fraction, objective.mean_span
    if noise is None or mean is None or any(out_of_limits(config, limits)):
        return  # which is told already
    try:
        lengths = span_lengths(objective.sequence_length, noise, mean)
        if not config.data.tokenizer:
            lengths.fit_into(NUM_SENTINELS)
    except ConfigError as error:
        yield str(error)
