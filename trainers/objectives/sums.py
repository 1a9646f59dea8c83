"""What every objective answers: sums over a batch, by task."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from trainers.data.batches import IGNORED_LABEL


class Sums(NamedTuple):
    """Sums over a batch by task ("mlm", "nsp", "lm", "span"), 0-dim float32 tensors: losses in
    nats, and right answers.

    Sums, not means: a micro batch cannot know how many labels the whole batch has.  A tuple,
    because DeepSpeed looks for tensors in tuples and dictionaries alone: in what it cannot see into
    it puts no hook, and then its bfloat16 optimizer of stage 1 never clears the gradients of one
    micro batch before the next, and adds the first of n up n times.
    """

    loss: dict[str, Tensor]
    correct: dict[str, Tensor]

    def share(self, num_labels: Mapping[str, int]) -> Tensor:
        """This batch's part of the mean loss of a whole that has `num_labels` labels of each task.

        The mean of a whole is that over each task's labels, added up over the tasks.
        """
        first, *others = [self.loss[task] / number for task, number in num_labels.items()]
        for other in others:
            first = first + other
        return first

    def stack(self) -> Tensor:
        """Losses, then right answers, by task in order: a vector without a gradient."""
        sums = (*self.loss.values(), *self.correct.values())
        return torch.stack([value.detach().float() for value in sums])


def loss_and_correct(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the cross-entropy over the labels [N] that are not ignored, and right answers."""
    loss = cross_entropy(logits.float(), labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return loss, (logits.argmax(-1) == labels).sum().float()
