"""Held-out loss and accuracy: the same samples, masks and pairs every time."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainers.data.batches import MaskedLMBatches
from trainers.run.distributed import World


class Evaluator:
    """The first `samples` held-out samples, shared out over the ranks."""

    def __init__(
        self, batches: MaskedLMBatches, samples: int, micro_size: int, world: World
    ) -> None:
        self._batches, self._world = batches, world
        positions = np.arange(min(samples, batches.num_samples))
        self._num_samples = len(positions)
        self._num_masked = batches.num_masked(positions)
        # Each rank takes the same number of turns: under ZeRO 3 a forward is a collective.
        stride = micro_size * world.world_size
        first = world.rank * micro_size
        self._turns = [
            positions[start + first : start + first + micro_size]
            for start in range(0, len(positions), stride)
        ]
        batch = batches.batch(positions)
        self._has_pairs = "next_sentence_label" in batch
        labels = batch["masked_labels"]
        self._commonest = int(np.bincount(labels[labels >= 0]).max())

    def __call__(self, engine: Any) -> dict[str, float]:
        """Metrics by name; every rank must call it, all get the same.

        `eval/commonest_token_accuracy` is that of guessing the commonest held-out label always.
        """
        engine.eval()
        total = torch.zeros(4, device=self._world.device)
        with torch.no_grad():
            for positions in self._turns:
                idle = len(positions) == 0  # takes part with a sample that does not count
                batch = to_device(
                    self._batches.batch(positions if not idle else np.zeros(1, int)), self._world
                )
                total += engine(batch).stack() * (0 if idle else 1)
        engine.train()
        mlm_loss, mlm_correct, nsp_loss, nsp_correct = self._world.sum(total).tolist()
        values = {
            "eval/loss": mlm_loss / self._num_masked + nsp_loss / self._num_samples,
            "eval/mlm_loss": mlm_loss / self._num_masked,
            "eval/mlm_accuracy": mlm_correct / self._num_masked,
            "eval/commonest_token_accuracy": self._commonest / self._num_masked,
        }
        if self._has_pairs:
            values["eval/nsp_accuracy"] = nsp_correct / self._num_samples
        return values


def to_device(batch: dict[str, np.ndarray[Any, Any]], world: World) -> dict[str, Tensor]:
    """A batch of arrays as tensors on this rank's device."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if world.device.type == "cuda":
        tensors = {name: tensor.pin_memory() for name, tensor in tensors.items()}
    return {name: t.to(world.device, non_blocking=True) for name, t in tensors.items()}
