"""The parts of a step are those that the optimizer has taken."""

import numpy as np
import pytest
import torch
from torch import nn

from came import CAME
from scripts import confidence_picture
from scripts.confidence_picture import Parts, parts_of


def stepped(lr=0.5):
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(6, 9)), nn.Parameter(torch.randn(9))
    optimizer = CAME([weight, bias], lr=lr, betas=(0.9, 0.99, 0.999), kernel="eager")
    for _ in range(5):
        before = weight.detach().clone()
        weight.grad, bias.grad = torch.randn(6, 9), torch.randn(9)
        optimizer.step()
    return optimizer, weight, bias, before


def test_what_comes_after_confidence_is_what_the_weights_lose():
    optimizer, weight, _, before = stepped()
    parts = parts_of(optimizer, weight)
    lost = (before - weight.detach()) / 0.5
    np.testing.assert_allclose(parts.after, lost.numpy(), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(parts.after, parts.before * parts.confidence, rtol=1e-6)
    assert np.sqrt(np.square(parts.update).mean()) <= 1 + 1e-5  # it was clipped


def test_vectors_have_no_confidence():
    optimizer, _, bias, _ = stepped()
    with pytest.raises(ValueError, match=r"shape \(9,\) has no confidence"):
        parts_of(optimizer, bias)


def test_numbers_and_picture(tmp_path):
    momentum = np.ones((4, 6), dtype=np.float32)
    even = Parts(momentum, 3 * momentum, momentum, 3 * momentum)
    found = confidence_picture.numbers(even)
    assert found["cosine_of_update_before_and_after"] == pytest.approx(1)
    assert found["confidence_spread"] == pytest.approx(0, abs=1e-6)
    assert found["geometric_mean_of_confidence"] == pytest.approx(3)
    optimizer, weight, _, _ = stepped()
    parts = parts_of(optimizer, weight)
    numbers = confidence_picture.numbers(parts)
    both = numbers["confidence_spread_of_rows"] ** 2 + numbers["confidence_spread_of_columns"] ** 2
    assert numbers["confidence_spread"] == pytest.approx(both**0.5, rel=1e-3)  # log S is a sum
    figure = confidence_picture.draw(parts, {"parameter": "w", "steps": 5})
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
