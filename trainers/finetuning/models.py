"""The model of a run or a folder with a new head, and its tokenizer.

A run goes through `trainers.export`: what is fine-tuned here is what anybody else would fine-tune.
Weights are read from safetensors alone, and no code of a folder is run.
"""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from trainers.errors import ConfigError, DataError
from trainers.export import export
from trainers.folder_shape import DROPOUTS

_POOLER = "pooler."  # a model without next sentences may have none


@dataclass(frozen=True)
class Start:
    """A folder in Hugging Face's format, where fine-tuning starts."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    positions: int | None  # tokens of a sample at most; None where positions are relative
    sha256: str  # of its weights; where they are not used, of its config.json

    @classmethod
    def of(cls, source: Path, scratch: Path, untrained: bool = False) -> "Start":
        """What `source` holds; a run is exported into `scratch`.

        Raises ConfigError, DataError, CheckpointError.
        """
        folder = source
        if not (source / "config.json").is_file():
            folder = Path(tempfile.mkdtemp(dir=scratch)) / source.name
            export(source, folder)
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise ConfigError(f"model={source} has no *.safetensors: convert it, save_pretrained")
        digest = hashlib.sha256()
        for file in [folder / "config.json"] if untrained else weights:
            digest.update(file.read_bytes())
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # whatever transformers raises for what it cannot read
            raise DataError(f"model={source}: its tokenizer cannot be read: {error}") from error
        if not tokenizer.is_fast:
            raise ConfigError(f"model={source} has no tokenizer.json, which is needed")
        _require_padding(tokenizer, source)
        return cls(folder, tokenizer, _positions(folder, source, tokenizer), digest.hexdigest())


def _require_padding(tokenizer: PreTrainedTokenizerBase, source: Path) -> None:
    """The end of a text stands for padding where nothing else does, as in pretraining."""
    if tokenizer.pad_token is not None:
        return
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"model={source}: its tokenizer has no token for padding and no end of a text to "
            "stand for it: name one of its tokens as pad_token in tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token


def _positions(folder: Path, source: Path, tokenizer: PreTrainedTokenizerBase) -> int | None:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers raises for what it does not know
        raise DataError(f"model={source}: its config.json cannot be read: {error}") from error
    positions = getattr(config, "max_position_embeddings", None)
    # RoBERTa keeps some for padding: its tokenizer knows.
    return positions and min(positions, tokenizer.model_max_length)


def build(
    start: Start, num_labels: int | None, *, dropout: float, untrained: bool, seed: int
) -> PreTrainedModel:
    """The model in float32 with a head that starts at random.

    Args:
        num_labels: 1 for a score; None for the first and last tokens of an answer.
        untrained: the body starts at random as well.

    Raises:
        DataError: the folder cannot be read, or lacks weights of the body.
        ConfigError: no such head is known for its architecture.
    """
    logging.set_verbosity_error()  # the head is new, as it should be
    logging.disable_progress_bar()
    kind = AutoModelForSequenceClassification if num_labels else AutoModelForQuestionAnswering
    torch.manual_seed(seed)
    try:
        config = AutoConfig.from_pretrained(start.folder, local_files_only=True)
        for name in DROPOUTS:
            if hasattr(config, name):
                setattr(config, name, dropout)
        config.num_labels = num_labels or 2
        config.pad_token_id = start.tokenizer.pad_token_id
        if untrained:
            return kind.from_config(config, dtype=torch.float32)
        model, found = kind.from_pretrained(
            start.folder,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:  # whatever safetensors and transformers raise
        raise DataError(f"{start.folder} cannot be read as {kind.__name__}: {error}") from error
    body = f"{model.base_model_prefix}."
    gaps = [
        name
        for name in sorted(found["missing_keys"])
        if name.startswith(body) and not name.startswith(body + _POOLER)
    ]
    if gaps:
        raise DataError(f"{start.folder} lacks {gaps[0]}, and {len(gaps) - 1} more")
    return model
