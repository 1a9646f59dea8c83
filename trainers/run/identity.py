"""Which settings a run must share with the checkpoint it goes on from, and which may change."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from trainers.config import Config
from trainers.redact import redact

# What is learned: a change makes it another run, which needs another folder.
_SAME = (
    *("model", "objective", "optimizer", "run.seed", "batch.global_size"),
    "train.gradient_clipping",
)
# How fast, and for how long: a change is told and accepted.
_FREE = (
    *("schedule", "train.steps"),
    *("batch.micro_size", "zero", "runtime.dtype", "deepspeed"),
)
# Keys that older versions did not have, and what they did.
_IMPLIED = {"optimizer.bias_correction": False}


def identity(config: Config, *, data: str, tokenizer: str) -> dict[str, Any]:
    """Dotted keys whose values must be equal; `data` and `tokenizer` are fingerprints."""
    return {
        **_chosen(config, _SAME),
        **_changing_batches(config),
        "data (fingerprint)": data,
        "tokenizer (fingerprint)": tokenizer,
    }


def setting(config: Config, *, world_size: int) -> dict[str, Any]:
    """Dotted keys whose values may differ from the checkpoint's."""
    return {**_chosen(config, _FREE), "world_size": world_size}


def _changing_batches(config: Config) -> dict[str, Any]:
    """What says which samples a step reads, where steps differ: then their number does too."""
    batch, phases = config.batch, config.train.phases
    if not phases and not batch.ramp_from:
        return {}
    return {
        "train.phases": [asdict(replace(phase, micro_size=None)) for phase in phases],
        "batch.ramp_from": batch.ramp_from,
        "batch.ramp_fraction": batch.ramp_fraction,
        "train.steps": config.train.steps,
    }


def _chosen(config: Config, prefixes: tuple[str, ...]) -> dict[str, Any]:
    flat = dict(_flatten(redact(asdict(config))))
    return {
        key: value
        for key, value in flat.items()
        # What is not given is as absent as a key that the saving version did not have.
        if value is not None
        and not (key in _IMPLIED and value == _IMPLIED[key])
        and any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
