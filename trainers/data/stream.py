"""All documents of a store as one stream, an eos before each document and after the last.

eos a b c d e eos f g eos h i j k eos ...
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

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

    def windows(self, first: Ints, length: int) -> "Windows":
        """Of `length` tokens from each place of `first` [B]."""
        # A search for each window, not for each token: few documents begin in one.
        document = np.searchsorted(self._starts, first, side="right") - 1
        count = np.searchsorted(self._starts, first + length - 1, side="right") - 1 - document
        row = np.repeat(np.arange(len(first)), count)
        nth = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        begun = document[row] + 1 + nth
        return Windows(first, length, document, begun, row, self._starts[begun] - first[row])

    def tokens(self, windows: "Windows") -> NDArray[np.unsignedinteger]:
        """What stands there: [B, length]."""
        first, document = windows.first, windows.document
        # Before a token stand as many eos as documents have begun, its own included.
        tokens = self._store.windows(first - document - 1, windows.length)
        rows, nth = windows.rows_with_borders()
        if len(rows):  # each document that begins moves the rest of its window on by one
            moved = np.zeros((len(rows), windows.length), dtype=np.int64)
            moved[nth, windows.column] = 1
            source = np.arange(windows.length) - np.cumsum(moved, axis=1, out=moved)
            tokens[rows] = np.take_along_axis(tokens[rows], source, axis=1)
        tokens[windows.row, windows.column] = self._eos
        tokens[first == self._starts[document], 0] = self._eos
        return tokens

    def offsets(self, windows: "Windows") -> Ints:
        """How far each of the tokens is into its document (0: the eos before it): [B, length]."""
        first, begun = windows.first, windows.begun
        jumps = np.zeros((len(first), windows.length), dtype=np.int64)
        jumps[windows.row, windows.column] = self._starts[begun] - self._starts[begun - 1]
        offset = np.arange(windows.length) - np.cumsum(jumps, axis=1, out=jumps)
        offset += (first - self._starts[windows.document])[:, None]
        return offset


class Windows(NamedTuple):
    """Pieces of the stream, and the documents that begin in them after their first token.

    Most windows lie in one document: what borders change is made for those that have some.
    """

    first: Ints  # [B]
    length: int
    document: Ints  # [B]: of the first token
    begun: Ints  # documents [N], in row and column of the windows
    row: Ints
    column: Ints

    def rows_with_borders(self) -> tuple[Ints, Ints]:
        """Rows [R] in which documents begin, and for each of `begun` which of these is its own."""
        count = np.bincount(self.row, minlength=len(self.first))
        rows = np.flatnonzero(count)
        return rows, np.repeat(np.arange(len(rows)), count[rows])

    def positions(self) -> Ints:
        """How far each token is into its document, or into the window if that is less: [B, L]."""
        place = np.arange(self.length)
        positions = np.tile(place, (len(self.first), 1))
        rows, nth = self.rows_with_borders()
        border = np.zeros((len(rows), self.length), dtype=np.int64)
        border[nth, self.column] = self.column
        positions[rows] = place - np.maximum.accumulate(border, axis=1, out=border)
        return positions
