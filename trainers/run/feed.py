"""The micro batches of one rank, on its device, in the order of the steps."""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.config import Config
from trainers.data.batches import IGNORED_LABEL
from trainers.data.splits import Splits
from trainers.faults import fault
from trainers.flops import training_flops
from trainers.phases import phase_configs, plan
from trainers.run.distributed import World
from trainers.run.evaluate import to_device
from trainers.run.prefetch import Prefetch

_MULTIPLE = 32  # slots of the vocabulary head


@dataclass(frozen=True)
class Micro:
    """One micro batch, and the step it belongs to."""

    step: int
    batch: dict[str, Tensor]
    num_labels: dict[str, int]  # of each task in the whole global batch
    num_tokens: int  # of the whole global batch
    num_micro: int  # micro batches of this rank in this step
    copied: torch.cuda.Event | None


@dataclass(frozen=True)
class Counts:
    """Sums over the steps that were asked for, those of all ranks."""

    steps: int = 0
    samples: int = 0
    tokens: int = 0  # that the model reads, padding left out
    flops: float = 0.0
    waited: float = 0.0  # seconds this rank has waited for a batch

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: "Counts") -> "Counts":
        return Counts(*map(operator.sub, astuple(self), astuple(other)))


class Feed:
    """What this rank reads in the steps after `start`, made ahead in a thread."""

    def __init__(self, config: Config, data: Sequence[Splits], world: World, start: int) -> None:
        """`data` are the splits of each phase."""
        self._config, self._data, self._world = config, data, world
        self._plan, self._phases = plan(config), phase_configs(config)
        self._device = world.device
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        limit = config.runtime.timeout_seconds
        self._ahead = Prefetch(self._all(start), config.runtime.prefetch, limit)
        self._counts = Counts()

    @property
    def counts(self) -> Counts:
        """Of the steps so far."""
        return replace(self._counts, waited=self._ahead.waited)

    def step(self, step: int) -> Iterator[Micro]:
        """The micro batches of `step`; steps are asked for one after the other."""
        done, number = 0, 1
        while done < number:
            micro = next(self._ahead)
            assert micro.step == step, f"step {micro.step} is next, not {step}"
            self._arrived(micro)
            if done == 0:
                number = micro.num_micro
                self._count(micro)
            done += 1
            yield micro

    def _arrived(self, micro: Micro) -> None:
        """Let the device, not the host, wait for the copy."""
        if micro.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(micro.copied)
            for tensor in micro.batch.values():
                tensor.record_stream(stream)

    def _count(self, micro: Micro) -> None:
        stretch = self._plan.at(micro.step)
        inside, vocab_size = self._phases[stretch.phase], self._data[stretch.phase].vocab_size
        flops = training_flops(inside, vocab_size, micro.num_tokens, micro.num_labels)
        self._counts += Counts(1, stretch.size, micro.num_tokens, flops)

    def _all(self, start: int) -> Iterator[Micro]:
        if self._device.type == "cuda":  # each thread has a current device of its own
            torch.cuda.set_device(self._device)
        for step in range(start + 1, self._config.train.steps + 1):
            stretch = self._plan.at(step)
            batches, inside = self._data[stretch.phase].train, self._phases[stretch.phase]
            positions = np.asarray(stretch.positions(step))
            labels, tokens = batches.num_labels(positions), batches.num_tokens(positions)
            turns = micro_batches(positions, inside.batch.micro_size, self._world)
            for rows in turns:
                fault("data", step)
                batch, copied = self._copied(without_waste(batches.batch(rows)))
                yield Micro(step, batch, labels, tokens, len(turns), copied)

    def _copied(
        self, batch: dict[str, NDArray[np.int64]]
    ) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
        if self._copies is None:
            return to_device(batch, self._world), None
        with torch.cuda.stream(self._copies):  # behind what the device computes meanwhile
            tensors = to_device(batch, self._world)
            return tensors, self._copies.record_event()

    def close(self) -> None:
        """End the thread."""
        self._ahead.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def without_waste(batch: dict[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
    """`batch` without a mask that masks nothing, and with the slots alone that ask for a word.

    Both are known here, without asking the device.  Flash attention takes no mask.  The vocabulary
    head is a third of a small model's time, and a third of its slots are empty in short samples:
    masked_positions [B, P] become masked_places [N] among the B x L tokens, masked_labels [N]; N is
    rounded up to a multiple, so that shapes are few.
    """
    found = dict(batch)
    if "attention_mask" in found and found["attention_mask"].all():
        del found["attention_mask"]
    if "masked_positions" in found:
        length, positions = found["input_ids"].shape[1], found.pop("masked_positions")
        row, slot = np.nonzero(found["masked_labels"] != IGNORED_LABEL)
        labels = np.full(-(-len(row) // _MULTIPLE) * _MULTIPLE, IGNORED_LABEL)
        places = np.zeros_like(labels)
        places[: len(row)] = row * length + positions[row, slot]
        labels[: len(row)] = found["masked_labels"][row, slot]
        found |= {"masked_places": places, "masked_labels": labels}
    return found


def micro_batches(
    positions: NDArray[np.int64], micro_size: int, world: World
) -> list[NDArray[np.int64]]:
    """This rank's rows of the global batch, a micro batch at a time."""
    stride = micro_size * world.world_size
    first = world.rank * micro_size
    return [
        positions[start + first : start + first + micro_size]
        for start in range(0, len(positions), stride)
    ]
