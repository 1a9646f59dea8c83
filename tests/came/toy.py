"""A model whose gradients the test chooses, with the shapes that break optimizers."""

import torch
from torch import Tensor, nn

SHAPES = {
    "embed": (17, 5),  # tied to `out`
    "wide": (7, 13),  # no world size divides it
    "bias": (13,),
    "conv": (3, 2, 3, 3),  # more than two dimensions
    "row": (1, 9),
    "column": (9, 1),
    "tall": (33, 10),  # cut in the middle of a row
    "one": (1,),
    "norm": (37,),
    "unused": (6, 4),  # never gets a gradient
}
NO_DECAY = ("bias", "one", "norm")


def initial_weights() -> dict[str, Tensor]:
    """Values that bfloat16 holds exactly, so that fp32 masters start from the same numbers."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (0.02 * torch.randn(shape, generator=generator)).bfloat16().float()
        for name, shape in SHAPES.items()
    }


# Made here, because deepspeed.zero.Init changes what torch.randn returns.
INITIAL = initial_weights()


class Leaf(nn.Module):
    """One parameter; its gradient is what `forward` is given."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, grad: Tensor) -> Tensor:
        return (self.weight * grad.to(self.weight.dtype)).sum()


class Toy(nn.Module):
    """The sum of its leaves times the gradients they shall have."""

    def __init__(self) -> None:
        super().__init__()
        for name, weight in INITIAL.items():
            self.add_module(name, Leaf(weight.clone()))
        self.frozen = Leaf(torch.ones(4, 4))
        self.frozen.weight.requires_grad_(False)
        self.out = Leaf(torch.empty(17, 5))
        self.out.weight = self.embed.weight

    def forward(self, grads: dict[str, Tensor]) -> Tensor:
        parts = [getattr(self, name)(grad) for name, grad in grads.items()]
        return sum(parts, start=self.out(grads["embed"]) + self.frozen(torch.ones(4, 4)))


def micro_grads(step: int, rank: int, micro: int) -> dict[str, Tensor]:
    """The gradient of each parameter that is used.

    Bfloat16 holds it exactly, and also a half, a third and a quarter of it: ZeRO 2 and 3 divide
    half-precision gradients by the world size before they add them.
    """
    generator = torch.Generator().manual_seed(1000 * step + 10 * rank + micro)
    grads = {
        name: torch.randn(shape, generator=generator).mul(16).round().clamp(-42, 42) * 3 / 2048
        for name, shape in SHAPES.items()
        if name != "unused"
    }
    grads["tall"][20:] = 0  # rows without a gradient, as in an embedding
    return grads


def mean_grads(step: int, world_size: int, num_micro: int, same: bool) -> dict[str, Tensor]:
    """What all ranks and micro batches together should hand to the optimizer."""
    total = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for rank in range(world_size):
        for micro in range(num_micro):
            for name, grad in micro_grads(step, 0 if same else rank, micro).items():
                # `embed` is used twice
                total[name] += grad.double() * (2 if name == "embed" else 1)
    return {name: (grad / (world_size * num_micro)).float() for name, grad in total.items()}
