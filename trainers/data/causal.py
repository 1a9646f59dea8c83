"""Batches for causal language models: blocks of one stream of all documents, nothing padded.

    eos a b c d e eos f g eos h i j k eos ...    the stream: an eos before each document and after
    |- block 0 -|- block 1 -|- block 2 -|        inputs; the labels are the tokens one further on

So the label at the last token of a document is eos, and its first token is asked after an eos.
Every token is a label once in each epoch, save those of a last, incomplete block.
"""

import numpy as np
from numpy.typing import NDArray

from trainers.config import ObjectiveConfig
from trainers.data.batches import Ints
from trainers.data.epochs import Epochs
from trainers.data.store import Store
from trainers.data.stream import DocumentStream
from trainers.errors import DataError


class CausalBatches:
    """Blocks by position, in another order in each epoch.

    Raises DataError when the store has less than one block.
    """

    def __init__(self, store: Store, eos: int, objective: ObjectiveConfig, seed: int) -> None:
        self.eos = eos
        self._stream = DocumentStream(store, eos)
        self._length, self._is_masked = objective.sequence_length, bool(objective.document_mask)
        self.num_samples = self._stream.num_tokens // self._length
        if self.num_samples == 0:
            raise DataError(
                f"a part of the data has {store.meta.num_tokens} tokens, less than one block of "
                f"objective.sequence_length={self._length}: add text, or set a smaller one"
            )
        self._epochs = Epochs(self.num_samples, seed)

    def batch(self, positions: Ints) -> dict[str, NDArray[np.int64]]:
        """Blocks for `positions` [B], whole numbers from 0 up.

        input_ids, labels: [B, L]. With document_mask also position_ids [B, L], which start again
        from 0 at each eos: a token sees its own document, back to the eos before it or to the start
        of the block.
        """
        _, block = self._epochs.draw(positions)
        windows = self._stream.windows(block * self._length, self._length + 1)
        stream = self._stream.tokens(windows)
        batch = {"input_ids": stream[:, :-1], "labels": stream[:, 1:]}
        if self._is_masked:
            batch["position_ids"] = windows.positions()[:, :-1]
        return {name: array.astype(np.int64) for name, array in batch.items()}

    def num_labels(self, positions: Ints) -> dict[str, int]:
        """Every token is asked."""
        return {"lm": len(positions) * self._length}

    def num_tokens(self, positions: Ints) -> int:
        """Every place is a token."""
        return len(positions) * self._length
