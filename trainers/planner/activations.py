"""What a forward pass keeps for its backward, estimated: layer by layer, from its equations.

With b x s tokens of hidden size h and intermediate size f, w bytes a number, a layer keeps

    BERT     (8 h + 2 f) w    x, q, k, v, attention, and input and output of two norms; the two
                              sides of the activation
    GPT-2    (8 h + 5 f) w    its GELU is written out: four more steps
    LLaMA    (8 h + 4 f) w + 8 h    norms in float32; gate, up, their activation and product
    T5       (12 h + f) w     an encoder layer and the keys and values that the decoder makes of it
             (15 h + f) w     a decoder layer, for the tokens that it writes

for each token, and a byte for each number that dropout may drop. Attention keeps no scores (flash),
but T5's, whose bias no flash kernel takes: 4 bytes a pair of tokens and head. The vocabulary head
runs where there is a label, a piece of 2,048 at a time, and keeps its gradient instead of logits
(`objectives/cross_entropy.py`). With activation checkpointing a layer keeps its input alone, and
one at a time is there in full. torch.compile keeps less, by how much is not known before.
"""

from __future__ import annotations

from dataclasses import dataclass

from trainers.config import Config
from trainers.objectives.cross_entropy import PIECES
from trainers.planner.work import sample_sizes

_FLOAT32 = 4
_ENDS = 3  # numbers of size h a token: embeddings before and after their norm, the last norm
_NORM = 7  # bytes a number of size h, which T5's norms keep beside it in bfloat16 (measured)


@dataclass(frozen=True)
class Layer:
    """What one layer keeps for a token: numbers of size h and f in the run's dtype, bytes of size h
    beside them, and bytes of size h and f that dropout keeps."""

    hidden: int
    intermediate: int
    extra: int = 0
    dropped_hidden: int = 2
    dropped_intermediate: int = 0

    def bytes(self, config: Config, tokens: int) -> int:
        model, width = config.model, _width(config)
        hidden = self.hidden * width + self.extra
        intermediate = self.intermediate * width
        if model.dropout:
            hidden += self.dropped_hidden
            # Of a dropout within the activation the result is kept beside the mask.
            intermediate += self.dropped_intermediate * (1 + width)
        return tokens * (hidden * model.hidden + intermediate * model.intermediate)


_LAYERS = {
    "bert": Layer(8, 2),
    "gpt2": Layer(8, 5),
    "llama": Layer(8, 4, extra=8, dropped_hidden=0),
}
_READS = Layer(12, 1, dropped_intermediate=1)
_WRITES = Layer(15, 1, dropped_hidden=3, dropped_intermediate=1)


def activation_bytes(config: Config, vocab_size: int) -> int:
    """Bytes of one micro batch of `config`, which is that of one phase."""
    model, size = config.model, config.batch.micro_size
    tokens, labels = (size * each for each in sample_sizes(config.objective))
    layer = _layer(config, tokens, labels)
    kept = model.layers * layer
    if config.runtime.activation_checkpointing:
        kept = model.layers * tokens * model.hidden * _width(config) + layer
    ends = _ENDS * tokens * model.hidden * _width(config)
    return kept + ends + _head(config, labels, vocab_size)


def _layer(config: Config, tokens: int, labels: int) -> int:
    """Bytes of one layer; of T5 one of the encoder and one of the decoder."""
    model, size = config.model, config.batch.micro_size
    if model.family != "t5":
        return _LAYERS[model.family].bytes(config, tokens)
    read, written = tokens - labels, labels  # the encoder reads what the decoder does not write
    pairs = (read**2 + written**2) // size
    half = config.runtime.dtype == "bfloat16"
    norms = _NORM * (2 * read + 3 * written) * model.hidden if half else 0
    scores = _FLOAT32 * model.heads * pairs
    return _READS.bytes(config, read) + _WRITES.bytes(config, written) + norms + scores


def _head(config: Config, labels: int, vocab_size: int) -> int:
    """Gradients of the head's weight and of its input, and a piece of logits, twice in float32."""
    hidden, width = config.model.hidden, _width(config)
    piece = min(labels, PIECES["cuda"])
    gradients = _FLOAT32 * vocab_size * hidden + width * labels * hidden
    return gradients + piece * vocab_size * (2 * _FLOAT32 + width)


def _width(config: Config) -> int:
    return 2 if config.runtime.dtype == "bfloat16" else _FLOAT32
