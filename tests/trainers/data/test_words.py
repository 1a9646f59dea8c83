"""Words are counted once each, wherever blocks and documents cut the text."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainers.data.words import num_words

DOCUMENTS = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "how vexingly quick daft zebras jump",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Pieces much shorter than words, with the blank before a word in its first one."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(DOCUMENTS, trainer)
    return made


@pytest.mark.parametrize("length", [2, 3, 7, 20, 1000])
def test_every_word_counts_once(tokenizer: Tokenizer, length: int) -> None:
    stream = [0]
    for document in DOCUMENTS:
        stream += [*tokenizer.encode(document).ids, 0]
    assert len(stream) > 2 * sum(len(document.split()) for document in DOCUMENTS)
    total = 0
    for start in range(0, len(stream) - 1, length):
        block = np.array([stream[start : start + length + 1]])
        total += num_words(tokenizer, 0, {"input_ids": block[:, :-1], "labels": block[:, 1:]})
    assert total == sum(len(document.split()) for document in DOCUMENTS)
