"""How much arithmetic a model needs for what it learns from, and what devices can do.

Training costs 6 floating-point operations for each token and weight of a matrix that it meets (2
forward, 4 backward), and attention 12 x layers x hidden x length for each token. Counted is what
the model needs, not what a program does: no padding, no recomputation, and of the vocabulary head
the places with a label alone. Embeddings are looked up, not multiplied. Attention is counted over
the whole length, also where a token sees only its own sample of a packed row or its own document:
there the utilisation that is told is too high, in a BERT-Large at length 512 by 8 % at most.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from trainers.config import Config, ModelConfig

# TFLOP/s of dense bfloat16 matrices, from the makers' data sheets; the first name that is in the
# device's own counts.
_PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
    "A10": 125.0,
    "L4": 121.0,
    "4090": 165.0,
    "3090": 71.0,
}


def peak_flops(config: Config, device_name: str) -> float | None:
    """FLOP/s of one device at its best; None where it is not known, as for CPUs and in float32."""
    if config.runtime.peak_tflops:
        return config.runtime.peak_tflops * 1e12
    if config.runtime.dtype != "bfloat16":
        return None
    # Whole words: an L40 is no L4.
    found = (p for name, p in _PEAK_TFLOPS.items() if re.search(rf"\b{name}\b", device_name))
    return next(found, 0.0) * 1e12 or None


def training_flops(
    config: Config, vocab_size: int, num_tokens: int, num_labels: Mapping[str, int]
) -> float:
    """FLOPs of learning from `num_tokens` tokens that have these labels, by task.

    `config` is that of one phase.  The first task's labels are tokens of the vocabulary.
    """
    model, length = config.model, config.objective.sequence_length
    labels = next(iter(num_labels.values()))
    head = vocab_size * model.hidden
    if model.family == "t5":
        return _t5_flops(model, length, num_tokens - labels, labels) + 6.0 * labels * head
    if model.family == "bert":
        head += model.hidden**2  # the layer before the vocabulary
    body = num_tokens * _token_flops(model, layer_weights(model), length)
    return body + 6.0 * labels * head


def layer_weights(model: ModelConfig) -> int:
    """Weights of all layers' matrices: queries, keys, values, output, and what comes after."""
    shared = (model.kv_heads or model.heads) / model.heads  # of keys and values
    attention = round((2 + 2 * shared) * model.hidden**2)
    gated = model.family == "llama"
    feedforward = (3 if gated else 2) * model.hidden * model.intermediate
    return model.layers * (attention + feedforward)


def _token_flops(model: ModelConfig, weights: int, length: int) -> float:
    return 6.0 * weights + 12.0 * model.layers * model.hidden * length


def _t5_flops(model: ModelConfig, length: int, read: int, written: int) -> float:
    """Of encoders that read `length` tokens each, `read` in all, and decoders that write the rest.

    A decoder has a second attention, whose keys and values are made of the encoder's tokens.
    """
    own, square = layer_weights(model), model.layers * model.hidden**2
    weights = (read + written) * (own + 2 * square)
    pairs = read * length + written * (length * written / read + length)  # in tokens x tokens
    return 6.0 * weights + 12.0 * model.layers * model.hidden * pairs
