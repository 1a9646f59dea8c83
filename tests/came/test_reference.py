"""The oracle is what the authors published."""

import pytest
import torch
from came_pytorch import CAME as PublishedCAME

from came.reference import reference_state, reference_step


@pytest.mark.parametrize("shape", [(6, 5), (7,), (2, 3, 4), (1, 1), (2, 2, 3, 3)])
def test_reference_is_the_published_package(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    published = torch.nn.Parameter(weight.clone())
    optimizer = PublishedCAME([published], lr=1e-2, weight_decay=0.1)
    state = reference_state(weight)
    for _ in range(20):
        grad = torch.randn(shape, generator=generator, dtype=torch.float64)
        published.grad = grad.clone()
        optimizer.step()
        reference_step(weight, grad, state, lr=1e-2, weight_decay=0.1)
    torch.testing.assert_close(weight, published.detach(), rtol=1e-12, atol=1e-14)
    for key, value in state.items():
        torch.testing.assert_close(value, optimizer.state[published][key], rtol=1e-11, atol=1e-16)
