"""The sizes of a model in a folder of Hugging Face's format, as keys of our `model` section."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainers.errors import ConfigError

_BERT = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "max_positions": "max_position_embeddings",
}
# family = model_type: our key -> theirs
_NAMES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "gpt2": {
        "layers": "n_layer",
        "hidden": "n_embd",
        "heads": "n_head",
        "intermediate": "n_inner",
        "max_positions": "n_positions",
    },
    "llama": _BERT | {"kv_heads": "num_key_value_heads", "rope_theta": "rope_theta"},
    "t5": {
        "layers": "num_layers",
        "hidden": "d_model",
        "heads": "num_heads",
        "intermediate": "d_ff",
    },
}
# How the families call dropout, and what transformers takes where config.json does not say it.
DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout_rate"),
)
_UNSAID_DROPOUT = {"bert": 0.1, "gpt2": 0.1, "llama": 0.0, "t5": 0.1}


def shape_of(folder: Path) -> dict[str, Any]:
    """Keys of the `model` section by what config.json says. Raises ConfigError."""
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        family = told["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"model.path={folder} must be a local folder with a config.json, as save_pretrained "
            f"and came-export write it: {error!r}"
        ) from error
    if family not in _NAMES:
        raise ConfigError(
            f"model.path={folder} holds a model of type {family!r}: it must be one of "
            f"{', '.join(_NAMES)}"
        )
    told = told | (told.get("rope_parameters") or {})
    shape = {key: told.get(name) for key, name in _NAMES[family].items()}
    if family == "gpt2" and shape["intermediate"] is None:
        shape["intermediate"] = 4 * shape["hidden"]
    missing = [_NAMES[family][key] for key, value in shape.items() if value is None]
    if missing:
        raise ConfigError(f"model.path={folder}: its config.json does not say {', '.join(missing)}")
    return {"family": family, **shape}


def dropout_of(folder: Path) -> float:
    """The dropout by what config.json says, after `shape_of`. Raises ConfigError if it says two."""
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = {name: told[name] for name in DROPOUTS if told.get(name) is not None}
    values = set(found.values()) or {_UNSAID_DROPOUT[told["model_type"]]}
    if len(values) > 1:
        raise ConfigError(f"model.path={folder} has {found}: give one with model.dropout=...")
    return float(values.pop())
