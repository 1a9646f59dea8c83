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
        places = first[:, None] + np.arange(length)
        document = np.searchsorted(self._starts, places, side="right") - 1
        offset = places - self._starts[document]
        # Before a token stand as many eos as documents have begun, its own included.
        tokens = np.take(self._store.tokens, places - document - 1, mode="clip").astype(np.int64)
        tokens[offset == 0] = self._eos
        return tokens, offset
