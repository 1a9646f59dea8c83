"""Batches for span corruption, each a pure function of (seed, positions).

A sample is a piece of the stream of all documents, an eos between two of them, without regard to
where they end: nothing is cut off and nothing is padded. T5 joins its documents likewise, without
the eos. No span crosses a border (`respect_borders`); the encoder reads across it, as T5's does.
"""

import numpy as np
from numpy.typing import NDArray

from trainers.config import ObjectiveConfig
from trainers.data.batches import Ints
from trainers.data.epochs import Epochs
from trainers.data.random_access import Purpose, hash64
from trainers.data.spans import corrupt, draw_spans, respect_borders
from trainers.data.store import Store
from trainers.data.stream import DocumentStream
from trainers.data.tokenizer import SpecialIds
from trainers.errors import DataError
from trainers.span_lengths import span_lengths


class SpanCorruptionBatches:
    """Samples of a store by position, which counts on through the epochs.

    Each epoch visits every sample once, in an order and with spans of its own. Raises DataError
    when the store is too small for one, ConfigError when the vocabulary has too few sentinels.
    """

    def __init__(
        self, store: Store, special: SpecialIds, objective: ObjectiveConfig, seed: int
    ) -> None:
        assert special.eos is not None, "checked before the data was prepared"
        assert objective.noise_fraction and objective.mean_span
        length = objective.sequence_length
        self.lengths = span_lengths(length, objective.noise_fraction, objective.mean_span)
        self._stream, self._seed = DocumentStream(store, special.eos), seed
        self._eos, self._sentinels = special.eos, np.array(special.sentinels)
        self.lengths.fit_into(len(special.sentinels))
        self.num_samples = self._stream.num_tokens // self.lengths.text
        if self.num_samples == 0:
            raise DataError(
                f"a part of the data has {store.meta.num_tokens} tokens, and a sample of "
                f"objective.sequence_length={length} is made of {self.lengths.text}: add text, or "
                "set a smaller one"
            )
        self._epochs = Epochs(self.num_samples, seed)

    def batch(self, positions: Ints) -> dict[str, NDArray[np.int64]]:
        """Samples for `positions` [B], whole numbers from 0 up.

        input_ids [B, sequence_length]: the text with a sentinel in the place of each span, and eos.
        labels [B, T]: each sentinel followed by its span, and eos; every one is asked.
        """
        epoch, sample = self._epochs.draw(positions)
        windows = self._stream.windows(sample * self.lengths.text, self.lengths.text)
        text, offset = self._stream.tokens(windows), self._stream.offsets(windows)
        key = hash64(Purpose.SAMPLE, self._seed, epoch, sample)
        start, size = draw_spans(key, self.lengths)
        start = respect_borders(start, size, offset == 0)
        inputs, targets = corrupt(text.astype(np.int64), start, size, self._sentinels, self._eos)
        return {"input_ids": inputs, "labels": targets}

    def num_labels(self, positions: Ints) -> dict[str, int]:
        """Every token of the targets, sentinels and eos included."""
        return {"span": len(positions) * self.lengths.targets}

    def num_tokens(self, positions: Ints) -> int:
        """What the encoder reads and the decoder writes."""
        return len(positions) * (self.lengths.inputs + self.lengths.targets)
