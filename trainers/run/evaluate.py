"""Held-out loss and accuracy: the same samples, masks and pairs every time."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.config import Config
from trainers.data.batches import Ints, token_labels
from trainers.data.splits import Splits
from trainers.run.distributed import World

_COUNTED_AT_ONCE = 1024  # samples


class Evaluator:
    """The first `eval.samples` held-out samples, shared out over the ranks."""

    def __init__(self, config: Config, data: Splits, world: World) -> None:
        self._batches, self._world = data.heldout, world
        micro_size, batches = config.batch.micro_size, data.heldout
        positions = np.arange(min(config.eval.samples, batches.num_samples))
        self._num_labels = batches.num_labels(positions)
        # Each rank takes the same number of turns: under ZeRO 3 a forward is a collective.
        stride = micro_size * world.world_size
        first = world.rank * micro_size
        self._turns = [
            positions[start + first : start + first + micro_size]
            for start in range(0, len(positions), stride)
        ]
        self._commonest, self._num_words = _count(data, positions)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What a call returns, before there is one."""
        return tuple(self._metrics([0.0] * 2 * len(self._num_labels)))

    def __call__(self, engine: Any) -> dict[str, float]:
        """Metrics by name; every rank must call it, all get the same.

        `eval/perplexity` is that of a token and `eval/word_perplexity` that of a word, of the same
        probability of the text; `eval/commonest_token_accuracy` is that of guessing the commonest
        held-out label always.
        """
        engine.eval()
        # In float64: of a large text, numbers of right answers are beyond what float32 counts.
        total = torch.zeros(
            2 * len(self._num_labels), device=self._world.device, dtype=torch.float64
        )
        with torch.no_grad():
            for positions in self._turns:
                idle = len(positions) == 0  # takes part with a sample that does not count
                batch = to_device(
                    self._batches.batch(positions if not idle else np.zeros(1, int)), self._world
                )
                total += engine(batch).stack() * (0 if idle else 1)
        engine.train()
        return self._metrics(self._world.sum(total).tolist())

    def _metrics(self, sums: list[float]) -> dict[str, float]:
        tokens, *_ = self._num_labels  # the task whose labels are tokens
        losses, correct = sums[: len(sums) // 2], sums[len(sums) // 2 :]
        values = {"eval/loss": 0.0}
        for (task, number), loss, right in zip(
            self._num_labels.items(), losses, correct, strict=True
        ):
            values["eval/loss"] += loss / number
            values[f"eval/{task}_loss"] = loss / number
            values[f"eval/{task}_accuracy"] = right / number
        values["eval/perplexity"] = perplexity(values[f"eval/{tokens}_loss"])
        if self._num_words:
            values["eval/word_perplexity"] = perplexity(losses[0] / self._num_words)
        values["eval/commonest_token_accuracy"] = self._commonest / self._num_labels[tokens]
        return values


def _count(data: Splits, positions: Ints) -> tuple[int, int]:
    """How often the commonest label comes among the samples at `positions`; how many words."""
    counts, num_words = np.zeros(data.vocab_size, dtype=np.int64), 0
    for start in range(0, len(positions), _COUNTED_AT_ONCE):
        batch = data.heldout.batch(positions[start : start + _COUNTED_AT_ONCE])
        counts += np.bincount(token_labels(batch), minlength=data.vocab_size)
        num_words += data.num_words(batch) or 0
    return int(counts.max()), num_words


def perplexity(loss: float) -> float:
    """The number of equally likely choices that cost `loss` nats."""
    return math.exp(loss) if loss < 700 else math.inf  # beyond, a float has no room


def to_device(batch: dict[str, np.ndarray[Any, Any]], world: World) -> dict[str, Tensor]:
    """A batch of arrays as tensors on this rank's device."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if world.device.type == "cuda":
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: t.to(world.device, non_blocking=True) for name, t in tensors.items()}
