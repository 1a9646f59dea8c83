"""Rows of several masked samples each: nothing is padded, and no sample sees another.

    row      [CLS] a a a [SEP] [CLS] b b [SEP] [CLS] c [SEP] [PAD]
    starts   0                 5               9             12

A sample in a row is bit for bit the sample that `MaskedLMBatches` makes alone, masks included.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.config import ObjectiveConfig
from trainers.data.batches import IGNORED_LABEL, Ints
from trainers.data.epochs import Epochs
from trainers.data.files import digest_files
from trainers.data.masked import MaskedLMBatches
from trainers.data.packing import Rows, pack
from trainers.data.publish import build_once
from trainers.errors import DataError


class PackedMLMBatches:
    """Rows of `single`'s samples by position, which counts on through the epochs.

    The rows are the same in each epoch, their order and their masks are not. The plan of the rows
    is made once and lies in `folder`, beside the store.
    """

    def __init__(
        self,
        single: MaskedLMBatches,
        pad: int,
        objective: ObjectiveConfig,
        seed: int,
        folder: Path,
    ) -> None:
        plan = open_plan(single, objective, folder)
        self._single, self._rows, self._pad = single, plan.rows, pad
        self._length = objective.sequence_length
        self._num_labels, self._num_starts = plan.max_labels, plan.max_samples + 1
        self.num_samples = plan.rows.num_rows
        self._epochs = Epochs(self.num_samples, seed)

    def batch(self, positions: Ints) -> dict[str, NDArray[np.int64]]:
        """Rows for `positions` [B], whole numbers from 0 up.

        With L = sequence_length, and P and S the most labels and samples of a row, plus one:
        input_ids [B, L]. sample_starts [B, S]: where each sample of a row starts, and the padding
        behind the last; L where unused. masked_positions and masked_labels [B, P]: places in the
        row and true tokens, 0 and -100 where unused.
        """
        row, epoch, sample = self._drawn(positions)
        single = self._single.samples(epoch, sample)
        length, num_masked = self._single.sizes(epoch, sample)
        offset = _running(row, length)
        num_rows, columns = len(positions), np.arange(self._length)

        is_used = columns < length[:, None]
        place = (row * self._length + offset)[:, None] + columns
        input_ids = np.full((num_rows, self._length), self._pad)
        input_ids.ravel()[place[is_used]] = single["input_ids"][is_used]

        starts = np.full((num_rows, self._num_starts), self._length)
        number = _running(row, np.ones_like(row))
        starts[row, number] = offset
        starts[row, number + 1] = offset + length  # the next sample writes the same

        is_label = single["masked_labels"] != IGNORED_LABEL
        slot = _running(row, num_masked)[:, None] + np.arange(is_label.shape[1])
        at = np.broadcast_to(row[:, None], slot.shape)[is_label], slot[is_label]
        masked = np.zeros((num_rows, self._num_labels), dtype=np.int64)
        labels = np.full_like(masked, IGNORED_LABEL)
        masked[at] = (single["masked_positions"] + offset[:, None])[is_label]
        labels[at] = single["masked_labels"][is_label]
        return {
            "input_ids": input_ids,
            "sample_starts": starts,
            "masked_positions": masked,
            "masked_labels": labels,
        }

    def num_labels(self, positions: Ints) -> dict[str, int]:
        """Masked tokens, as the objective `MaskedLM` calls them."""
        _, epoch, sample = self._drawn(positions)
        return {"mlm": int(self._single.sizes(epoch, sample)[1].sum())}

    def num_tokens(self, positions: Ints) -> int:
        """Tokens of text and special tokens."""
        _, epoch, sample = self._drawn(positions)
        return int(self._single.sizes(epoch, sample)[0].sum())

    def _drawn(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """For each sample of these rows: its row among them, its epoch, its number."""
        epoch, drawn = self._epochs.draw(positions)
        first = self._rows.starts[drawn]
        count = self._rows.starts[drawn + 1] - first
        row = np.repeat(np.arange(len(drawn)), count)
        index = np.repeat(first, count) + _running(row, np.ones_like(row))
        return row, epoch[row], self._rows.samples[index]


def _running(row: Ints, values: Ints) -> Ints:
    """The sum of the `values` before each, in its own row; `row` ascends."""
    before = np.cumsum(values) - values
    return before - before[np.searchsorted(row, row)]


@dataclass(frozen=True)
class Plan:
    """The rows of a store, and the most labels and samples that one of them has."""

    rows: Rows
    max_labels: int
    max_samples: int


def open_plan(single: MaskedLMBatches, objective: ObjectiveConfig, folder: Path) -> Plan:
    """The plan of the rows from a place in `folder`, where it is made first if need be.

    It is found again by all that it depends on; the seed is not among that. Raises DataError when
    it is damaged, StorageError when it cannot be written.
    """
    here = Path(__file__)
    inputs = {
        "code": digest_files(
            here.with_name(f"{name}.py")
            for name in ("masked", "packed", "packing", "pairs", "random_access")
        ),
        "objective": asdict(objective),
    }
    key = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]
    place = folder / f"rows-{key}"
    make = partial(_make_plan, single, objective.sequence_length)
    build_once(place, make, lambda path: _read_plan(path) is not None, timeout_seconds=3600.0)
    plan = _read_plan(place)
    if plan is None:
        raise DataError(f"{place}: the plan of packed rows is damaged; remove it and start again")
    return plan


def _make_plan(single: MaskedLMBatches, capacity: int, place: Path) -> None:
    sample = np.arange(single.num_samples)
    lengths, num_masked = single.sizes(np.zeros_like(sample), sample)
    rows = pack(lengths, capacity)
    np.save(place / "starts.npy", rows.starts)
    np.save(place / "samples.npy", rows.samples)
    labels = np.add.reduceat(num_masked[rows.samples], rows.starts[:-1])
    most = {"max_labels": int(labels.max()), "max_samples": int(np.diff(rows.starts).max())}
    (place / "meta.json").write_text(json.dumps(most) + "\n")


def _read_plan(place: Path) -> Plan | None:
    try:
        most = json.loads((place / "meta.json").read_text())
        starts, samples = (
            np.asarray(np.load(place / f"{name}.npy", mmap_mode="r"))
            for name in ("starts", "samples")
        )
        return Plan(Rows(starts, samples), **most) if starts[-1] == len(samples) else None
    except (OSError, EOFError, ValueError, TypeError):
        return None
