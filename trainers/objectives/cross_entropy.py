"""The cross-entropy of a vocabulary head without its logits in memory: a piece of tokens at a time.

For 8,192 tokens and 50,304 entries the logits are 1.6 GB in float32, and autograd keeps them twice.
Here the gradient is made in the forward pass, while a piece of logits is there: no piece is
computed again, and backward multiplies by a number.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainers.data.batches import IGNORED_LABEL

# Tokens of a piece, by device: its logits should stay in a cache where there is a large one, and
# the gradient of the weight is read and written once for each piece.
PIECES = {"cpu": 256, "cuda": 2048}


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, piece: int | None = None
) -> tuple[Tensor, Tensor]:
    """Of logits `hidden @ weight.T + bias`: the sum of losses in nats, and the right answers.

    hidden [N, H], weight [V, H], bias [V], labels [N], those that are -100 left out. Both results
    are 0-dim float32. Right answers are counted where no gradient is asked for, and 0 elsewhere:
    training does not read them, and looking for a maximum is a walk over all logits.
    """
    piece = piece or PIECES.get(hidden.device.type, 1024)
    if not torch.is_grad_enabled():
        return _evaluate(hidden, weight, bias, labels, piece)
    loss = _LinearCrossEntropy.apply(hidden, weight, bias, labels, piece)
    return loss, torch.zeros_like(loss)


class VocabularyHead(nn.Linear):
    """A head that answers with logits, or, given labels, with `linear_cross_entropy`.

    A module, because ZeRO 3 has its weight whole only while it is called.
    """

    @classmethod
    def of(cls, linear: nn.Linear) -> "VocabularyHead":
        """A head of the same parameters: what is tied stays tied."""
        head = cls(1, 1, device="meta")
        head.in_features, head.out_features = linear.in_features, linear.out_features
        head.weight, head.bias = linear.weight, linear.bias
        return head

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Any:
        if labels is None:
            return super().forward(hidden)
        return linear_cross_entropy(hidden, self.weight, self.bias, labels)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, piece: int
    ) -> Tensor:
        loss = torch.zeros((), device=hidden.device)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight, dtype=torch.float32)
        d_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for rows, logits in _pieces(hidden, weight, bias, piece):
            part, d_logits = _loss_and_gradient(logits, labels[rows])
            loss += part
            if d_bias is not None:
                d_bias += d_logits.sum(0)
            d_logits = d_logits.to(weight.dtype)
            d_hidden[rows] = d_logits @ weight
            if d_logits.dtype == hidden.dtype == d_weight.dtype:
                # In place: the product is as large as the weight.
                torch.addmm(d_weight, d_logits.T, hidden[rows], out=d_weight)
            else:
                d_weight += d_logits.T @ hidden[rows]
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        d_weight = (d_weight * d_loss).to(ctx.dtype)
        d_bias = None if d_bias is None else (d_bias * d_loss).to(ctx.dtype)
        return d_hidden * d_loss.to(d_hidden.dtype), d_weight, d_bias, None, None


def _pieces(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, piece: int
) -> Iterator[tuple[slice, Tensor]]:
    for start in range(0, len(hidden), piece):
        rows = slice(start, start + piece)
        yield rows, nn.functional.linear(hidden[rows], weight, bias).float()


def _loss_and_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The summed loss of logits [n, V], and its gradient by them:

    d loss / d logits = softmax(logits) - [one at the label], nothing where nothing is asked.
    """
    is_asked = (labels != IGNORED_LABEL).unsqueeze(1)
    place = labels.clamp(min=0).unsqueeze(1)
    log_odds = logits.log_softmax(1)
    loss = -(log_odds.gather(1, place) * is_asked).sum()
    d_logits = log_odds.exp_().mul_(is_asked)
    return loss, d_logits.scatter_add_(1, place, -is_asked.to(logits.dtype))


def _evaluate(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, piece: int
) -> tuple[Tensor, Tensor]:
    loss, correct = torch.zeros(2, device=hidden.device)
    for rows, logits in _pieces(hidden, weight, bias, piece):
        loss += nn.functional.cross_entropy(
            logits, labels[rows], ignore_index=IGNORED_LABEL, reduction="sum"
        )
        correct += (logits.argmax(-1) == labels[rows]).sum()
    return loss, correct
