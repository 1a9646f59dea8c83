"""Models by configuration, from transformers, with random weights."""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertForPreTraining

from trainers.config import ModelConfig


def build_bert(config: ModelConfig, vocab_size: int, pad_id: int, seed: int) -> BertForPreTraining:
    """BERT with both heads, the output embedding tied to the input.

    The vocabulary is padded to a multiple of `config.vocab_multiple`.  The weights depend on `seed`
    alone: the same on every rank.
    """
    padded = -(-vocab_size // config.vocab_multiple) * config.vocab_multiple
    settings = BertConfig(
        vocab_size=padded,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.max_positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        pad_token_id=pad_id,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    return BertForPreTraining(settings)


@torch.no_grad()
def set_unigram_bias(model: BertForPreTraining, counts: NDArray[np.int64]) -> None:
    """Let the head start with the frequencies of words: its bias is their logarithm.

    `counts` has one number for each entry of the vocabulary; none is taken as one.
    """
    frequencies = torch.from_numpy(np.maximum(counts, 1) / counts.sum())
    model.cls.predictions.bias[: len(counts)] = frequencies.log().float()
    model.cls.predictions.bias[len(counts) :] = frequencies.log().min()  # padding of the vocabulary
