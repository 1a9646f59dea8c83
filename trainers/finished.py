"""A run opened again for reading: its settings, its vocabulary, its trained model.

<run.dir>                    its newest good checkpoint
<run.dir>/checkpoints/step-  that one
what came-export wrote       a folder in Hugging Face's format, with the run's settings beside it
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer
from torch import nn
from transformers import GenerationConfig

from trainers.build import as_objective
from trainers.compose import reread
from trainers.config import Config
from trainers.errors import DataError
from trainers.models import CLASSES
from trainers.pretrained import load_pretrained
from trainers.run.folder import GENERATION_FILE, MODEL_FILE, SETTINGS_FILE, TOKENIZER_FILE
from trainers.run.step_folders import step_of
from trainers.run.weights import load_weights, newest

EXPORTED_SETTINGS = "pretraining.yaml"  # the run's config.yaml in an exported folder


@dataclass(frozen=True)
class Place:
    """Where the parts of a finished run lie; `commit` is None in an exported folder."""

    folder: Path
    settings: Path
    commit: Path | None

    @classmethod
    def of(cls, path: Path) -> "Place":
        """The parts of the run at `path`. Raises CheckpointError, DataError."""
        if (path / EXPORTED_SETTINGS).is_file():
            return cls(path, path / EXPORTED_SETTINGS, None)
        is_commit = step_of(path) is not None
        run = path.parent.parent if is_commit else path
        for name in (SETTINGS_FILE, TOKENIZER_FILE, MODEL_FILE):
            if not (run / name).is_file():
                raise DataError(
                    f"{path} is no run folder, no checkpoint of one and no exported model: "
                    f"there is no {run / name}"
                )
        commit = path if is_commit else newest(run / "checkpoints")
        return cls(run, run / SETTINGS_FILE, commit)


def read_settings(place: Place, changes: Mapping[str, Any], overrides: Sequence[str]) -> Config:
    """The settings of the run as it ended, on one process, with dotted `changes`, and the words of
    `overrides`, on top."""
    saved = read_saved(place)
    ended = {
        **{"train.phases": [], "batch.ramp_from": 0, "batch.ramp_fraction": 0.0},
        **{"runtime.micro_batch": "given", "runtime.memory_gb": 0.0},
        "logging.name": "none",
        # Where the model started may be gone: what it became is here.
        "model.path": None,
    }
    for phase in _phases(saved)[-1:]:
        parts = {"objective": ("sequence_length", "max_predictions"), "batch": ("micro_size",)}
        ended |= {
            f"{section}.{key}": phase[key]
            for section, keys in parts.items()
            for key in keys
            if phase.get(key) is not None
        }
    return reread(saved, {**ended, **changes}, overrides)


def read_shortest(place: Place) -> int | None:
    """Tokens of the run's shortest sequences, to which its sentences were cut."""
    saved = read_saved(place)
    base = saved["objective"]["sequence_length"]
    return min((phase.get("sequence_length") or base for phase in _phases(saved)), default=None)


def read_phases(place: Place) -> list[dict[str, Any]]:
    """All phases of the run, as its settings spell them; `read_settings` has those of the last."""
    return _phases(read_saved(place))


def read_global_size(place: Place) -> int:
    """Sequences of a step of the run; `read_settings` has those of one process."""
    return int(read_saved(place)["batch"]["global_size"])


def read_saved(place: Place) -> dict[str, Any]:
    """The settings as they were written, unchecked.  Raises DataError."""
    try:
        saved = yaml.safe_load(place.settings.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{place.settings} cannot be read: {error}") from error
    if not isinstance(saved, dict):
        raise DataError(f"{place.settings} holds no settings")
    return saved


def _phases(saved: Mapping[str, Any]) -> list[dict[str, Any]]:
    train = saved.get("train")
    return list(train.get("phases") or ()) if isinstance(train, dict) else []


def read_tokenizer(place: Place) -> Tokenizer:
    """The vocabulary of the run."""
    path = place.folder / TOKENIZER_FILE
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise DataError(f"{path} cannot be read: {error}") from error


def read_module(place: Place, config: Config) -> nn.Module:
    """The trained model inside its objective, on the CPU in float32."""
    if place.commit is None:
        folder = replace(config.model, path=str(place.folder))
        return as_objective(config.objective.name, load_pretrained(folder, config.run.seed))
    kind = CLASSES[config.model.family]
    try:
        told = json.loads((place.folder / MODEL_FILE).read_text(encoding="utf-8"))
        model = kind(kind.config_class.from_dict(told))
        if (generation := place.folder / GENERATION_FILE).is_file():
            settings = json.loads(generation.read_text(encoding="utf-8"))
            model.generation_config = GenerationConfig.from_dict(settings)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{place.folder / MODEL_FILE} cannot be read: {error}") from error
    module = as_objective(config.objective.name, model)
    load_weights(module, place.commit)
    return module
