"""A small BERT and a small GPT-2 that learn from the same tokens."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from trainers.config import Config
from trainers.data.masked import MaskedLMBatches
from trainers.data.prepare import Prepared
from trainers.data.random_access import Purpose, permute
from trainers.data.store import Store
from trainers.models import build_model, set_unigram_bias
from trainers.objectives.masked_lm import MaskedLM

HELDOUT_SEED = 0  # the same held-out sequences and masks in every run

Ints = NDArray[np.int64]
Batches = Callable[[Ints], dict[str, Tensor]]  # by position, which counts on through the epochs


@dataclass
class Learner:
    """A model, its batches, and its loss: a sum in nats, and over how many tokens."""

    module: nn.Module
    train: Batches
    heldout: Batches
    loss: Callable[[dict[str, Tensor]], tuple[Tensor, int]]


def bert(config: Config, data: Prepared) -> Learner:
    """BERT with masked words alone, its head starting at the frequencies of words."""
    seed, vocab_size = config.run.seed, data.tokenizer.get_vocab_size()
    network = build_model(config.model, vocab_size, data.special, seed)
    set_unigram_bias(network, np.bincount(data.train.tokens, minlength=vocab_size))
    module = MaskedLM(network)

    def batches(store: Store, seed: int) -> Batches:
        source = MaskedLMBatches(store, data.special, vocab_size, config.objective, seed)
        return lambda positions: {
            name: torch.from_numpy(array) for name, array in source.batch(positions).items()
        }

    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        return module(batch).loss["mlm"], int((batch["masked_labels"] >= 0).sum())

    return Learner(module, batches(data.train, seed), batches(data.heldout, HELDOUT_SEED), loss)


def gpt2(config: Config, data: Prepared) -> Learner:
    """GPT-2 of the same size, on the tokens cut into blocks, without borders between documents."""
    length, seed, sizes = config.objective.sequence_length, config.run.seed, config.model
    shape = GPT2Config(
        vocab_size=-(-data.tokenizer.get_vocab_size() // sizes.vocab_multiple)
        * sizes.vocab_multiple,
        n_positions=length,
        n_embd=sizes.hidden,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        n_inner=sizes.intermediate,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), sizes.dropout),
        **dict.fromkeys(("bos_token_id", "eos_token_id"), None),
    )
    torch.manual_seed(seed)
    module = GPT2LMHeadModel(shape)

    def batches(store: Store, seed: int) -> Batches:
        count = len(store.tokens) // length
        blocks = store.tokens[: count * length].reshape(count, length)

        def batch(positions: Ints) -> dict[str, Tensor]:
            epoch, place = np.divmod(positions, count)
            chosen = blocks[permute(place, count, Purpose.ORDER, seed, epoch)]
            return {"input_ids": torch.from_numpy(chosen.astype(np.int64))}

        return batch

    def loss(batch: dict[str, Tensor]) -> tuple[Tensor, int]:
        tokens = batch["input_ids"]
        logits = module(input_ids=tokens, use_cache=False).logits[:, :-1]
        total = cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
        return total, tokens[:, 1:].numel()

    return Learner(module, batches(data.train, seed), batches(data.heldout, HELDOUT_SEED), loss)


MODELS = {"bert": bert, "gpt2": gpt2}
