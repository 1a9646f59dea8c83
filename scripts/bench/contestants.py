"""Who takes part: each optimizer on the same parameters and gradients."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from came import CAME
from came.momentum import FORMATS
from scripts.bench.shapes import Shapes

# Parameters and gradients are shared, and drift: so little that they stay what they are.
LR, WEIGHT_DECAY = 1e-7, 0.01
ADAMW = "torch AdamW fused"
ADAM_BYTES = 8  # of state for each parameter: two moments in float32
SLOW_NAMES = ("came-pytorch", "CAME eager")


@dataclass(frozen=True)
class Contestant:
    """An optimizer of `torch` or a package, or our CAME with a kernel and a momentum format."""

    label: str
    kernel: str = ""
    momentum: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.label, self.kernel, self.momentum)))

    @property
    def slow(self) -> bool:
        """Many times slower than the others: it takes part in fewer rounds."""
        return self.name.startswith(SLOW_NAMES)

    def build(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer.

        Raises:
            ImportError: its package is not installed.
        """
        settings: dict[str, Any] = {"lr": LR, "weight_decay": WEIGHT_DECAY}
        if self.label == "CAME":
            return CAME(params, kernel=self.kernel, momentum=self.momentum, **settings)
        if self.label == ADAMW:
            return torch.optim.AdamW(params, fused=True, **settings)
        if self.label == "torch Adafactor":
            return torch.optim.Adafactor(params, **settings)
        from came_pytorch import CAME as PublishedCAME

        return PublishedCAME(params, **settings)


def fused_kernel(device: torch.device) -> str:
    """The name of the kernel that is made for a device."""
    return "cpu" if device.type == "cpu" else "gpu"


def all_contestants(device: torch.device) -> list[Contestant]:
    """Every contestant, AdamW first; `default_contestants` are those that run unless named."""
    kernels = (fused_kernel(device), "eager")
    ours = [Contestant("CAME", kernel, momentum) for kernel in kernels for momentum in FORMATS]
    others = [Contestant(name) for name in ("torch Adafactor", "came-pytorch")]
    return [Contestant(ADAMW), *ours, *others]


def default_contestants(device: torch.device) -> list[Contestant]:
    """All but the eager kernel with the smaller momentum formats."""
    return [
        contestant
        for contestant in all_contestants(device)
        if contestant.kernel != "eager" or contestant.momentum == "float32"
    ]


def make_params(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Parameters with gradients, the same at every call."""
    generator = torch.Generator(device).manual_seed(0)
    params = []
    for _, shape in shapes:
        param, grad = (
            torch.empty(shape, dtype=dtype, device=device).normal_(0, std, generator=generator)
            for std in (2e-2, 1e-2)
        )
        param.requires_grad_(True).grad = grad
        params.append(param)
    return params


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all tensors of the state, counters included."""
    return sum(
        value.numel() * value.itemsize
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )
