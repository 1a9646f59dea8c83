"""The model of a folder in Hugging Face's format, as the start of a run.

Nothing is fetched, no code of the folder is run, and weights are read from safetensors alone.
"""

import json
import logging
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from trainers.config import ModelConfig
from trainers.errors import ConfigError, DataError
from trainers.folder_shape import DROPOUTS
from trainers.models import CLASSES

logger = logging.getLogger(__name__)

_HEADS = ("cls.", "bert.pooler.", "lm_head.")  # what an objective may have to add to a body


def load_pretrained(config: ModelConfig, seed: int) -> PreTrainedModel:
    """The model of `config.path` in float32, with our dropout; `seed` is for a head that it lacks.

    Raises ConfigError when the folder has no safetensors, DataError when its weights are damaged
    or incomplete.
    """
    path = Path(str(config.path))
    if not any(path.glob("*.safetensors")):
        raise ConfigError(
            f"model.path={path} has no *.safetensors; other formats can run code when they are "
            "read: convert it with save_pretrained first"
        )
    disable_progress_bar()
    torch.manual_seed(seed)
    told = json.loads((path / "config.json").read_text(encoding="utf-8"))
    try:
        model, found = CLASSES[config.family].from_pretrained(
            path,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            **{name: config.dropout for name in DROPOUTS if name in told},
        )
    except Exception as error:  # whatever safetensors and transformers raise for a damaged file
        raise DataError(f"model.path={path} cannot be read: {error}") from error
    missing = sorted(found["missing_keys"])
    gaps = [name for name in missing if not name.startswith(_HEADS)]
    if gaps:
        raise DataError(f"model.path={path} lacks {gaps[0]}, and {len(gaps) - 1} more")
    if missing:
        logger.warning("%s has no %s: they start at random", path, ", ".join(missing))
    return model
