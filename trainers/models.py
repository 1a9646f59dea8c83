"""Models by configuration, from transformers, with random weights."""

import torch
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
