"""A world of ranks in one process: a list sum stands for the all-reduce."""

import random
from typing import Any

import torch
from torch import Tensor

from came.fields import allocate, replicated, stored_boxes
from came.layout import FlatSplit, Param, ShardLayout, packed_offsets
from came.reduce import Maximum
from came.reference import reference_state, reference_step
from came.rules import came as came_rule
from came.tasks import tasks

# Rows that no world size divides, matrices cut in the middle of a row, batches, vectors, scalars.
SHAPES = [(48, 80), (7, 13), (13,), (3, 2, 3, 3), (1, 9), (9, 1), (), (33, 10), (1,), (5, 4, 6)]
OPTIONS: dict[str, Any] = {
    "lr": 1e-2,
    "betas": (0.9, 0.99, 0.999),
    "eps": (1e-30, 1e-16),
    "clip_threshold": 0.7,
    "weight_decay": 0.1,
    "bias_correction": False,
    "momentum": "float32",
    "matricize": "last",
    "stochastic_rounding": False,
    "seed": 0,
    "kernel": "eager",
}


class SimulatedRank:
    """One rank of a world that lives in this process, with any rule of `came.rules`."""

    def __init__(
        self,
        layout: ShardLayout,
        weights: list[Tensor],
        options: dict[str, Any] = OPTIONS,
        rule: Any = came_rule,
        grad_dtype: torch.dtype | None = None,
    ) -> None:
        self.layout, self.options, self.rule = layout, options, rule
        self.fields = [rule.fields(param, options) for param in layout.params]
        self.size = max([p.offset + p.numel for p in layout.fragments], default=0) + 5
        # NaN between and behind the parameters: padding must never be read or written.
        self.flat = weights[0].new_full((self.size,), float("nan"))
        self.grad = torch.full_like(self.flat, float("nan"), dtype=grad_dtype)
        self.cut(weights, self.flat)
        self.state = allocate(self.flat, layout, self.fields)
        todo = tasks(0, self.flat, layout, self.fields, self.state, options)
        for index, task in enumerate(todo):
            task.index = index
        dtype = torch.promote_types(self.flat.dtype, torch.float32)
        self.plan = rule.plan(
            todo,
            [self.grad],
            self.flat.new_empty(0, dtype=dtype),
            alone=layout.split.world_size == 1,
        )

    def cut(self, wholes: list[Tensor], flat: Tensor) -> None:
        for piece in self.layout.fragments:
            part = wholes[piece.param].reshape(-1)[piece.start : piece.start + piece.numel]
            flat[piece.offset : piece.offset + piece.numel] = part

    def begin(self, grads: list[Tensor]) -> Any:
        self.cut(grads, self.grad)
        self.state["step"] += 1
        self.plan.refresh([self.grad])
        return self.rule.step(self.plan)

    def check_padding(self) -> None:
        covered = torch.zeros(self.size, dtype=torch.bool, device=self.flat.device)
        for piece in self.layout.fragments:
            covered[piece.offset : piece.offset + piece.numel] = True
        assert self.flat[~covered].isnan().all(), "padding was written"


def simulate(ranks: list[SimulatedRank], grads: list[Tensor]) -> int:
    """One step on all ranks in lockstep; returns how many reductions it took."""
    steps = [rank.begin(grads) for rank in ranks]
    num_sums = 0
    while True:
        found = [next(step, None) for step in steps]
        if found[0] is None:
            assert all(buffer is None for buffer in found)
            for rank in ranks:
                rank.check_padding()
            return num_sums
        buffers = [b.buffer if isinstance(b, Maximum) else b for b in found]
        total = buffers[0].clone()
        for buffer in buffers[1:]:
            total = total.maximum(buffer) if isinstance(found[0], Maximum) else total + buffer
        for buffer in buffers:
            buffer.copy_(total)
        num_sums += 1


def world(
    shapes: list[tuple[int, ...]],
    split: Any,
    weights: list[Tensor],
    options: dict[str, Any] = OPTIONS,
    **settings: Any,
) -> list[SimulatedRank]:
    """All ranks of a split."""
    flatten = options["matricize"] == "first"
    params = tuple(Param(str(i), shape, flatten) for i, shape in enumerate(shapes))
    return [
        SimulatedRank(ShardLayout(params, split, rank), weights, options, **settings)
        for rank in range(split.world_size)
    ]


def gather(ranks: list[SimulatedRank], key: str, index: int) -> Tensor:
    """One elementwise tensor of one parameter, from all ranks: "param" or a float32 state."""
    param = ranks[0].layout.params[index]
    found = ranks[0].flat.new_full((param.numel,), float("nan"), dtype=torch.float64)
    for rank in ranks:
        starts = {piece.param: piece.start - piece.offset for piece in rank.layout.fragments}
        for kept in stored_boxes(rank.layout, rank.fields, rank.state):
            if kept.param != index:
                continue
            offset, numel = kept.box.offset, kept.box.numel
            view = rank.flat[offset : offset + numel] if key == "param" else kept.stored[key][0]
            start = starts[index] + offset
            found[start : start + numel] = view.double()
    return found.reshape(param.shape)


def statistics(rank: SimulatedRank, index: int) -> dict[str, Tensor]:
    """What one rank keeps whole of a parameter."""
    return replicated(rank.layout, rank.fields, rank.state)[index]


def flat_split(shapes: list[tuple[int, ...]], world_size: int, rng: random.Random) -> FlatSplit:
    """One buffer with gaps here and there, in equal slices."""
    numels = [Param("", shape).numel for shape in shapes]
    gaps = [numel + rng.choice([0, 3]) for numel in numels]
    slice_numel = -(-sum(gaps) // world_size)
    return FlatSplit(tuple(numels), packed_offsets(gaps), slice_numel, world_size)


def check_against_reference(
    shapes: list[tuple[int, ...]],
    split: Any,
    dtype: torch.dtype,
    tolerance: float,
    *,
    kernel: str = "eager",
    num_steps: int = 10,
    bias_correction: bool = False,
) -> None:
    """Steps with random gradients against the oracle in float64: parameters and all state."""
    generator = torch.Generator().manual_seed(len(shapes) + split.world_size)
    weights = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    settings = {**OPTIONS, "kernel": kernel, "bias_correction": bias_correction}
    ranks = world(shapes, split, weights, settings)
    wanted = [weight.double() for weight in weights]
    states = [reference_state(weight) for weight in wanted]
    names = ("lr", "betas", "eps", "clip_threshold", "weight_decay")
    options = {name: OPTIONS[name] for name in names}
    for step in range(1, num_steps + 1):
        grads = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
        assert simulate(ranks, grads) == 2
        for weight, grad, state in zip(wanted, grads, states, strict=True):
            at = step if bias_correction else None
            reference_step(weight, grad.double(), state, **options, corrected_at=at)
    for index, (weight, state) in enumerate(zip(wanted, states, strict=True)):
        for key, value in {"param": weight, **state}.items():
            what = f"{shapes[index]} {key}"
            if key.endswith(("row", "col")):
                for rank in ranks:  # every rank holds all of it
                    assert_close(statistics(rank, index)[key], value, tolerance, what)
            else:
                assert_close(gather(ranks, key, index), value, tolerance, what)


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    """The norm of the error is at most `tolerance` of that of the tensor."""
    assert found.shape == wanted.shape, what
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error <= tolerance, f"{what}: off by {error:.1e}"
