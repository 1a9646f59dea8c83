"""Models by configuration, from transformers, with random weights."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from trainers.config import ModelConfig
from trainers.data.tokenizer import SpecialIds

CLASSES: dict[str, type[PreTrainedModel]] = {
    "bert": BertForPreTraining,
    "gpt2": GPT2LMHeadModel,
    "llama": LlamaForCausalLM,
    "t5": T5ForConditionalGeneration,
}


def build_model(
    config: ModelConfig, vocab_size: int, special: SpecialIds, seed: int
) -> PreTrainedModel:
    """A model with its head, whose weight is that of the input embedding.

    The vocabulary is padded to a multiple of `config.vocab_multiple`. The weights depend on `seed`
    alone: the same on every rank.
    """
    is_end = special.pad == special.eos and config.family != "t5"  # whose decoder begins with it
    common = {
        "vocab_size": -(-vocab_size // config.vocab_multiple) * config.vocab_multiple,
        # Padding that is the end of a text as well would be an embedding that never learns.
        "pad_token_id": None if is_end else special.pad,
        "bos_token_id": special.eos,
        "eos_token_id": special.eos,
        "tie_word_embeddings": True,
        "attn_implementation": "sdpa",
    }
    make = {"bert": _bert, "gpt2": _gpt2, "llama": _llama, "t5": _t5}[config.family]
    settings = make(config, common)
    torch.manual_seed(seed)
    return CLASSES[config.family](settings)


def _bert(config: ModelConfig, common: dict[str, Any]) -> PreTrainedConfig:
    return BertConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.max_positions,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        **common,
    )


def _gpt2(config: ModelConfig, common: dict[str, Any]) -> PreTrainedConfig:
    return GPT2Config(
        n_embd=config.hidden,
        n_layer=config.layers,
        n_head=config.heads,
        n_inner=config.intermediate,
        n_positions=config.max_positions,
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        **common,
    )


def _llama(config: ModelConfig, common: dict[str, Any]) -> PreTrainedConfig:
    return LlamaConfig(
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        rms_norm_eps=1e-5,
        attention_dropout=config.dropout,
        **common,
    )


def _t5(config: ModelConfig, common: dict[str, Any]) -> PreTrainedConfig:
    return T5Config(
        d_model=config.hidden,
        d_kv=config.hidden // config.heads,
        d_ff=config.intermediate,
        num_layers=config.layers,
        num_heads=config.heads,
        dropout_rate=config.dropout,
        decoder_start_token_id=common["pad_token_id"],  # the decoder's first input, as published
        **common,
    )


@torch.no_grad()
def set_unigram_bias(model: BertForPreTraining, counts: NDArray[np.int64]) -> None:
    """Let the head start with the frequencies of words: its bias is their logarithm.

    `counts` has one number for each entry of the vocabulary; none is taken as one.
    """
    frequencies = torch.from_numpy(np.maximum(counts, 1) / counts.sum())
    model.cls.predictions.bias[: len(counts)] = frequencies.log().float()
    model.cls.predictions.bias[len(counts) :] = frequencies.log().min()  # padding of the vocabulary
