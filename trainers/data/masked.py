"""Batches for masked-language training, each a pure function of (seed, positions)."""

import numpy as np
from numpy.typing import NDArray

from trainers.config import ObjectiveConfig
from trainers.data.batches import IGNORED_LABEL, Ints
from trainers.data.epochs import Epochs
from trainers.data.pairs import Spans, pair_spans, single_spans
from trainers.data.random_access import Purpose, below, hash64, uniform
from trainers.data.runs import open_chunks
from trainers.data.store import Store
from trainers.data.tokenizer import SpecialIds
from trainers.errors import DataError

# Of the chosen positions, the shares that become [MASK] and a random token (BERT, section 3.1).
_MASK_SHARE, _RANDOM_SHARE = 0.8, 0.1
_POSITION_BITS = np.uint64(2**20 - 1)


class MaskedLMBatches:
    """Samples of a store by position, which counts on through the epochs.

    Each epoch visits every sample once, in an order of its own, with masks and pairs of its own.
    The same position gives the same sample whatever else is in the batch. Raises DataError when the
    store is too small for the objective.
    """

    def __init__(
        self,
        store: Store,
        special: SpecialIds,
        vocab_size: int,
        objective: ObjectiveConfig,
        seed: int,
    ) -> None:
        self._store, self._special, self._objective, self._seed = store, special, objective, seed
        self._ordinary = np.setdiff1d(np.arange(vocab_size), special.sorted())
        self._limit = objective.sequence_length - (3 if objective.next_sentence else 2)
        if objective.next_sentence and store.meta.num_documents < 2:
            raise DataError(
                "objective.next_sentence=true needs 2 documents or more in each part, "
                f"there is {store.meta.num_documents}"
            )
        self._chunks = open_chunks(store, self._limit, objective.short_fraction)
        self.num_samples = len(self._chunks.start)
        self._epochs = Epochs(self.num_samples, seed)

    def batch(self, positions: Ints) -> dict[str, NDArray[np.int64]]:
        """Samples for `positions` [B], whole numbers from 0 up; `samples` says what they hold."""
        return self.samples(*self._epochs.draw(positions))

    def samples(self, epoch: Ints, sample: Ints) -> dict[str, NDArray[np.int64]]:
        """The samples of these numbers [B], below `num_samples`, as each `epoch` [B] makes them.

        With L = sequence_length and P = max_predictions:
        input_ids, token_type_ids, attention_mask: [B, L]. masked_positions [B, P]: ascending, 0
        where unused. masked_labels [B, P]: the true tokens, -100 where unused. next_sentence_label
        [B], with next_sentence only: 0 the second segment follows the first, 1 it is a random one.
        """
        key, spans = self._spans(epoch, sample)
        input_ids, is_text, is_second = self._assemble(spans)
        masked, labels = self._mask(key, input_ids, is_text, self._num_masked(spans))
        length = self._length(spans)
        batch = {
            "input_ids": input_ids,
            "token_type_ids": is_second.astype(np.int64),
            "attention_mask": _before(length, input_ids.shape[1]).astype(np.int64),
            "masked_positions": masked,
            "masked_labels": labels,
        }
        if self._objective.next_sentence:
            batch["next_sentence_label"] = spans.is_random.astype(np.int64)
        return batch

    def num_labels(self, positions: Ints) -> dict[str, int]:
        """Masked tokens, and one label for each pair, as the objective `MaskedLM` calls them."""
        _, num_masked = self.sizes(*self._epochs.draw(positions))
        found = {"mlm": int(num_masked.sum())}
        return found | ({"nsp": len(positions)} if self._objective.next_sentence else {})

    def num_tokens(self, positions: Ints) -> int:
        """Tokens of text and special tokens."""
        return int(self.sizes(*self._epochs.draw(positions))[0].sum())

    def sizes(self, epoch: Ints, sample: Ints) -> tuple[Ints, Ints]:
        """Tokens, special ones included, and masked tokens of each of `samples(epoch, sample)`."""
        _, spans = self._spans(epoch, sample)
        return self._length(spans), self._num_masked(spans)

    def _spans(self, epoch: Ints, sample: Ints) -> tuple[NDArray[np.uint64], Spans]:
        key = hash64(Purpose.SAMPLE, self._seed, epoch, sample)
        if self._objective.next_sentence:
            return key, pair_spans(self._store, self._chunks, sample, key, self._limit)
        return key, single_spans(self._store, self._chunks, sample)

    def _length(self, spans: Spans) -> Ints:
        """The number of positions in use: [CLS] first [SEP], and second [SEP] in a pair."""
        extra = 3 if self._objective.next_sentence else 2
        return spans.first_size + spans.second_size + extra

    def _num_masked(self, spans: Spans) -> Ints:
        share = self._objective.mask_fraction * (spans.first_size + spans.second_size)
        return np.clip(np.rint(share), 1, self._objective.max_predictions).astype(np.int64)

    def _assemble(self, spans: Spans) -> tuple[Ints, NDArray[np.bool_], NDArray[np.bool_]]:
        """input_ids, which of them are text, and which are the second segment: all [B, L]."""
        column = np.arange(self._objective.sequence_length)
        row = np.arange(len(spans.first))
        separator = spans.first_size + 1
        length = self._length(spans)
        input_ids = self._store.windows(spans.first - 1, len(column)).astype(np.int64)
        if self._objective.next_sentence:
            is_second = (column > separator[:, None]) & (column < length[:, None])
            second = self._store.windows(spans.second - separator - 1, len(column))
            np.copyto(input_ids, second, where=is_second)
        else:
            is_second = np.zeros(input_ids.shape, dtype=bool)
        is_text = _before(length - 1, len(column))
        is_text[:, 0] = False
        is_text[row, separator] = False
        np.copyto(input_ids, self._special.pad, where=~is_text)
        input_ids[:, 0] = self._special.cls
        input_ids[row, separator] = self._special.sep
        input_ids[row, length - 1] = self._special.sep
        return input_ids, is_text, is_second

    def _mask(
        self, key: NDArray[np.uint64], input_ids: Ints, is_text: NDArray[np.bool_], num_masked: Ints
    ) -> tuple[Ints, Ints]:
        """Choose positions and replace tokens in place; returns positions and labels [B, P]."""
        key = key[:, None]
        used = np.arange(self._objective.max_predictions) < num_masked[:, None]
        position = self._choose(key, is_text, used)
        label = np.take_along_axis(input_ids, position, axis=1)

        action = uniform(key, Purpose.ACTION, position)
        token = self._ordinary[below(len(self._ordinary), key, Purpose.TOKEN, position)]
        np.copyto(token, label, where=action >= _MASK_SHARE + _RANDOM_SHARE)
        token[action < _MASK_SHARE] = self._special.mask
        np.copyto(token, self._special.cls, where=~used)  # their position is 0: it stays as it is
        np.put_along_axis(input_ids, position, token, axis=1)
        return position, np.where(used, label, IGNORED_LABEL)

    def _choose(
        self, key: NDArray[np.uint64], is_text: NDArray[np.bool_], used: NDArray[np.bool_]
    ) -> Ints:
        """Positions of the smallest hashes among the text, ascending, 0 where not used: [B, P]."""
        width = is_text.shape[1]
        column = np.arange(width, dtype=np.uint64)
        # The position rides in the low bits, so that sorting hashes sorts positions.
        order = hash64(key, Purpose.MASK, column)
        order &= ~_POSITION_BITS
        order |= column
        np.copyto(order, np.uint64(2**64 - 1), where=~is_text)
        count = min(used.shape[1], width)
        order.sort(axis=1)  # all of them: numpy does that faster than a partition and its sort
        chosen = np.full(used.shape, width, dtype=np.int64)
        chosen[:, :count] = (order[:, :count] & _POSITION_BITS).astype(np.int64)
        chosen = np.sort(np.where(used, chosen, width), axis=1)
        return np.where(used, chosen, 0)


def _before(place: Ints, width: int) -> NDArray[np.bool_]:
    """Which of the columns lie before the `place` [B] of their row: [B, width]."""
    return np.arange(width, dtype=np.int32) < place.astype(np.int32)[:, None]
