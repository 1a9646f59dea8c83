"""The head in pieces is the head as a whole: losses, right answers, gradients, tied weights."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from trainers.objectives.cross_entropy import VocabularyHead, linear_cross_entropy


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((23, 16), (50, 16), (50,))
    )
    labels = torch.randint(0, 50, (23,), generator=generator)
    labels[[0, 5, 6, 7, 8, 9, 10, 22]] = -100
    return hidden, weight, bias, labels


@pytest.mark.parametrize("piece", [1, 4, 23, 100])
@pytest.mark.parametrize("with_bias", [True, False])
def test_loss_and_gradients_are_those_of_the_whole(piece: int, with_bias: bool) -> None:
    hidden, weight, bias, labels = problem()
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)
    logits = linear(hidden, weight, bias if with_bias else None)
    wanted = cross_entropy(logits, labels, reduction="sum")
    loss, _ = linear_cross_entropy(hidden, weight, bias if with_bias else None, labels, piece)
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=0)
    scale = 0.37  # a share of the whole batch
    for found, gradient in zip(
        torch.autograd.grad(loss * scale, inputs),
        torch.autograd.grad(wanted * scale, inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-6)


def test_right_answers_are_counted_without_gradients() -> None:
    hidden, weight, bias, labels = problem()
    labels[:4] = linear(hidden, weight, bias).argmax(-1)[:4]
    with torch.no_grad():
        loss, correct = linear_cross_entropy(hidden, weight, bias, labels, 7)
    logits = linear(hidden, weight, bias)
    torch.testing.assert_close(loss, cross_entropy(logits, labels, reduction="sum"))
    assert correct == (logits.argmax(-1) == labels).sum() >= 4


def test_half_precision_adds_up_in_float32() -> None:
    """The gradient of the weight, added up over many pieces in bfloat16, loses the late ones."""
    hidden, weight, bias, labels = problem(torch.bfloat16)
    many = [hidden.repeat(200, 1), labels.repeat(200)]
    loss, _ = linear_cross_entropy(many[0], weight, bias, many[1], 23)
    assert loss.dtype == torch.float32
    once, _ = linear_cross_entropy(hidden, weight, bias, labels)
    torch.testing.assert_close(loss, 200 * once, rtol=1e-4, atol=0)
    (found,) = torch.autograd.grad(loss / 200, weight)
    (wanted,) = torch.autograd.grad(once, weight)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-3)


def test_a_batch_without_a_label_costs_and_teaches_nothing() -> None:
    hidden, weight, bias, labels = problem()
    loss, _ = linear_cross_entropy(hidden, weight, bias, torch.full_like(labels, -100))
    gradients = torch.autograd.grad(loss, (hidden, weight, bias))
    assert loss == 0 and all((gradient == 0).all() for gradient in gradients)


def test_a_head_shares_the_parameters_it_is_made_of() -> None:
    linear_head = nn.Linear(16, 50)
    head = VocabularyHead.of(linear_head)
    assert head.weight is linear_head.weight and head.bias is linear_head.bias
    hidden = torch.randn(3, 16)
    assert torch.equal(head(hidden), linear_head(hidden))
    assert repr(head) == repr(linear_head).replace("Linear", "VocabularyHead")
