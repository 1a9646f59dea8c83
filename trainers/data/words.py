"""How many words the tokens of a batch spell, so that perplexities compare between vocabularies."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from trainers.data.batches import Ints


def num_words(tokenizer: Tokenizer, eos: int, batch: Mapping[str, NDArray[np.int64]]) -> int:
    """How many words begin among the labels of a batch of `CausalBatches`.

    A word is what stands between white space. A word that began before the first label counts as
    the sample's before, and an end of a text is none.
    """
    total = 0
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        first, *documents = _split([ids[0], *labels], eos)
        texts = tokenizer.decode_batch([first[:1], first, *documents])
        begun, *counts = (len(text.split()) for text in texts)
        total += sum(counts) - begun
    return total


def _split(ids: list[np.int64] | Ints, eos: int) -> list[list[int]]:
    """The runs of tokens between the ends of texts."""
    runs: list[list[int]] = [[]]
    for token in map(int, ids):
        if token == eos:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs
