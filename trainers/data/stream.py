"""All documents of a store as one stream, an eos before each document and after the last.

eos a b c d e eos f g eos h i j k eos ...
"""

import numpy as np

from trainers.data.batches import Ints
from trainers.data.store import Store


class DocumentStream:
    """Reads the stream at any place. `num_tokens` counts its eos, the last one left out."""

    def __init__(self, store: Store, eos: int) -> None:
        self._store, self._eos = store, eos
        # Where each document begins: with the eos before it, one for each document so far.
        tokens = store.sentence_starts[store.document_starts]
        self._starts = tokens + np.arange(len(tokens))
        self.num_tokens = int(self._starts[-1])

    def read(self, first: Ints, length: int) -> tuple[Ints, Ints]:
        """The `length` tokens from each place of `first` [B], and how far each is into its document
        (0: the eos before it), both [B, length]."""
        # A search for each block, not for each token: few documents begin in a block.
        document = np.searchsorted(self._starts, first, side="right") - 1
        count = np.searchsorted(self._starts, first + length - 1, side="right") - 1 - document
        row = np.repeat(np.arange(len(first)), count)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        begun = document[row] + 1 + nth
        column = self._starts[begun] - first[row]

        # Before a token stand as many eos as documents have begun, its own included.
        jumps = np.zeros((len(first), length), dtype=np.int64)
        jumps[row, column] = 1
        source = np.arange(length) - np.cumsum(jumps, axis=1)
        source += (first - document - 1)[:, None]
        jumps[row, column] = self._starts[begun] - self._starts[begun - 1]
        offset = np.arange(length) - np.cumsum(jumps, axis=1, out=jumps)
        offset += (first - self._starts[document])[:, None]
        tokens = np.take(self._store.tokens, source, mode="clip").astype(np.int64)
        tokens[row, column] = self._eos
        tokens[offset[:, 0] == 0, 0] = self._eos
        return tokens, offset
