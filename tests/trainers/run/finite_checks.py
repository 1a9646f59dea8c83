"""One bad step in the middle of good ones, on DeepSpeed engines.  Runs on several ranks."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from came import CAME
from came.state import entries, gather
from trainers.compose import compose
from trainers.run.engine import build_engine
from trainers.run.finite import Skips, contagious, guard

WAYS = {
    "zero0": ("zero.stage=0",),
    "zero0 clipped": ("zero.stage=0", "train.gradient_clipping=1.0"),
    "zero0 adamw": ("zero.stage=0", "optimizer=adamw"),
    "zero1": ("zero.stage=1",),
    "zero1 bf16": ("zero.stage=1", "runtime.dtype=bfloat16"),
    "zero1 offload": ("zero.stage=1", "zero.offload_optimizer=true"),
    "zero2": ("zero.stage=2",),
    "zero2 bf16": ("zero.stage=2", "runtime.dtype=bfloat16"),
    "zero3": ("zero.stage=3",),
    "zero3 bf16": ("zero.stage=3", "runtime.dtype=bfloat16"),
    "zero3 offload": ("zero.stage=3", "zero.offload_optimizer=true"),
}
NUM_MICRO = 2


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 12), nn.Linear(12, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return (
            self.second(self.first(rows.to(self.first.weight.dtype)).tanh()).float().square().sum()
        )


def make_engine(words: tuple[str, ...]) -> Any:
    config = compose(
        ["experiment=quickstart", "batch.global_size=8", "batch.micro_size=2", *words], 2
    )
    module = Toy()
    kind = CAME if config.optimizer.name == "came" else torch.optim.AdamW
    engine, _ = build_engine(config, module, kind(module.parameters(), lr=1e-2), 2)
    guard(engine)
    return engine


Spoil = Callable[[Any, Tensor], Tensor]


def no_fault(engine: Any, loss: Tensor) -> Tensor:
    return loss


def infinite_loss(engine: Any, loss: Tensor) -> Tensor:
    return loss * (math.inf if dist.get_rank() == 1 else 1.0)


def loss_that_is_no_number_but_has_gradients(engine: Any, loss: Tensor) -> Tensor:
    return loss + (math.nan if dist.get_rank() == 1 else 0.0)


def one_element_of_one_gradient(engine: Any, loss: Tensor) -> Tensor:
    """Rank 0 alone gets it, by way of what goes into the first layer's bias."""
    if dist.get_rank() == 0:

        def spoil(grad: Tensor) -> Tensor:
            grad = grad.clone()
            grad.view(-1)[5] = math.nan
            handle.remove()
            return grad

        handle = engine.module.first.bias.register_hook(spoil)
    return loss


PLAN = (
    (1, no_fault),
    (2, no_fault),
    (9, infinite_loss),
    (9, loss_that_is_no_number_but_has_gradients),
    (3, no_fault),
    (9, one_element_of_one_gradient),
    (4, no_fault),
)


def train_step(engine: Any, step: int, spoil: Spoil) -> Tensor:
    """The first micro batch is spoiled, the last is good: what is bad must not be forgotten."""
    total = torch.zeros(())
    for micro in range(NUM_MICRO):
        torch.manual_seed(100 * step + 10 * micro + dist.get_rank())
        loss = engine(torch.randn(2, 8))
        loss = spoil(engine, loss) if micro == 0 else loss
        engine.backward(contagious(loss))
        engine.step()
        total += loss.detach()
    return total


def snapshot(engine: Any) -> dict[str, Tensor]:
    return {f"{entry.key}/{entry.name}": gather(entry).clone() for entry in entries(engine)}


def check_all(folder: Any) -> None:
    """The run with bad steps in between is bit for bit the run without them."""
    for name, words in WAYS.items():
        plain, engine = make_engine(words), make_engine(words)
        skips = Skips(10, folder, engine)
        for step, spoil in PLAN:
            before = snapshot(engine)
            loss = train_step(engine, step, spoil)
            is_bad = spoil is not no_fault
            skipped = skips.note(engine, step, range(8), loss)
            assert skipped is is_bad, (name, spoil.__name__)
            if not is_bad:
                train_step(plain, step, no_fault)
            same(snapshot(engine), before if is_bad else snapshot(plain), (name, spoil.__name__))
        assert skips.total == 3, name


def same(found: dict[str, Tensor], expected: dict[str, Tensor], where: tuple[str, str]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.isfinite(value).all(), (where, key)
        assert torch.equal(found[key], value), (where, key)
