"""How a module is run, which changes nothing of what it computes beyond rounding."""

from torch import nn
from transformers import PreTrainedModel

from trainers.config import RuntimeConfig


def set_speed(module: nn.Module, runtime: RuntimeConfig) -> None:
    """Turn on, in place, what `runtime` asks for."""
    if runtime.activation_checkpointing:
        checkpoint_activations(module)
    if runtime.compile:
        module.compile()


def checkpoint_activations(module: nn.Module) -> None:
    """Keep of each layer its input alone, and compute the layer again in backward."""
    (model,) = (inner for inner in module.children() if isinstance(inner, PreTrainedModel))
    model.config.use_cache = False
    model.activation_checkpointing_enable()
