"""The Triton kernels in Triton's interpreter, on the CPU: run by `test_gpu.py`, apart.

Every tile is cut as small as it can be, so that small matrices have many.
"""

import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from came import CAME
from came.kernels import gpu, launches, tiles
from came.layout import EachSplit, FlatSplit, Param
from came.reference import reference_state, reference_step
from tests.came.kernels.guarded import guard
from tests.came.kernels.pairs import check_close, check_equal, random_grads, run_both
from tests.came.simulation import (
    OPTIONS,
    check_against_reference,
    flat_split,
    gather,
    simulate,
    statistics,
    world,
)

# Not a number is often what is asked for here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def whole(shapes: list[tuple[int, ...]]) -> FlatSplit:
    return flat_split(shapes, 1, random.Random(0))


def test_twenty_steps_equal_the_reference() -> None:
    shapes = [(1, 1), (1, 9), (9, 1), (17, 300), (13,)]
    check_against_reference(shapes, whole(shapes), torch.float32, 3e-6, kernel="gpu", num_steps=20)


@pytest.mark.parametrize(("kind", "world_size"), [("flat", 2), ("flat", 3), ("each", 3)])
def test_sharded_equals_the_reference(kind: str, world_size: int) -> None:
    shapes = [(33, 10), (11, 300), (13,), (3, 2, 3, 3), (2, 7, 13)]
    split: Any = flat_split(shapes, world_size, random.Random(world_size))
    if kind == "each":
        split = EachSplit(tuple(Param("", shape).numel for shape in shapes), world_size)
    check_against_reference(shapes, split, torch.float32, 3e-6, kernel="gpu", num_steps=2)


def test_bias_correction() -> None:
    """A whole matrix, a batch, one cut in two, vectors of one tile and of several."""
    shapes = [(17, 100), (3, 2, 3, 3), (11, 140), (13,), (4100,)]
    for world_size in (1, 2):
        split = flat_split(shapes, world_size, random.Random(1))
        settings: dict[str, Any] = {"kernel": "gpu", "num_steps": 3, "bias_correction": True}
        check_against_reference(shapes, split, torch.float32, 3e-6, **settings)
    split = flat_split(shapes[:4], 2, random.Random(1))
    check_equal(run_both(shapes[:4], split, 2, momentum="sign", bias_correction=True), 1e-5)


@pytest.mark.parametrize("momentum", ["float32", "bfloat16", "int8", "sign"])
def test_momentum_formats(momentum: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no program reads or writes beside the tensors.

    It did: tiles of the sums began where int8 blocks do, so before their box.
    """
    guard(monkeypatch)
    # Rows of a multiple of 16 bytes, and of none; blocks of 256 columns, of 2 x 100 and of
    # 64 x 3, which several of the 3 x 3 matrices share.
    shapes = [(3, 272), (2, 301), (9, 100), (30, 3, 3), (3, 8, 256)]
    split = flat_split(shapes, 2, random.Random(1))
    check_equal(run_both(shapes, split, 2, momentum=momentum), 1e-5)


@pytest.mark.parametrize(
    ("dtype", "grad_dtype", "rounding"),
    [
        (torch.bfloat16, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, False),
        (torch.float16, torch.float16, False),
        (torch.float32, torch.bfloat16, False),
    ],
)
def test_half_precision(dtype: torch.dtype, grad_dtype: torch.dtype, rounding: bool) -> None:
    shapes = [(5, 272), (7, 3), (21,)]
    split = flat_split(shapes, 2, random.Random(1))
    worlds = run_both(
        shapes, split, 2, dtype=dtype, grad_dtype=grad_dtype, stochastic_rounding=rounding, seed=7
    )
    check_equal(worlds, 1e-6)
    if dtype != torch.float32:  # stochastic rounding takes the same random bits
        for wanted, found in zip(*worlds, strict=True):
            assert torch.equal(found.flat.nan_to_num(), wanted.flat.nan_to_num())


@pytest.mark.parametrize(("sigma", "tolerance"), [(1.0, 1e-5), (1e-4, 5e-2)])
def test_residual_sums_do_not_cancel(sigma: float, tolerance: float) -> None:
    """Expanded about a clip factor of zero they do: `tests/came/test_rules_came.py`."""
    shape, names = (12, 80), ("lr", "betas", "eps", "clip_threshold", "weight_decay")
    weight = torch.zeros(shape, dtype=torch.float64)
    ranks = world(
        [shape], FlatSplit((960,), (0,), 480, 2), [weight.float()], OPTIONS | {"kernel": "gpu"}
    )
    state = reference_state(weight)
    for step in range(10):
        grad = 1 + sigma * random_grads([shape], step)[0]
        simulate(ranks, [grad])
        reference_step(weight, grad.double(), state, **{name: OPTIONS[name] for name in names})
    wanted = state["exp_avg_res_row"]
    found = statistics(ranks[0], 0)["exp_avg_res_row"].double()
    assert ((found - wanted).abs() / wanted).max() < tolerance


def test_rows_without_gradient_stay_finite() -> None:
    shapes = [(10, 4), (5, 140), (6,)]

    def grads(step: int) -> list[Tensor]:
        found = [torch.zeros(shape) for shape in shapes]
        if step >= 2:  # nothing at all at first, then one row
            found[0][3], found[1][2] = 1e-3, 1e-3
        return found

    for momentum in ("float32", "sign"):
        worlds = run_both(shapes, whole(shapes), 4, grads=grads, momentum=momentum)
        check_equal(worlds, 3e-6)
        assert worlds[1][0].flat.nan_to_num(0).isfinite().all()


@pytest.mark.parametrize("size", [1e15, 1e-15])
def test_huge_and_tiny_gradients(size: float) -> None:
    shapes = [(5, 140), (9, 3), (6,)]
    worlds = run_both(
        shapes, whole(shapes), 3, grads=lambda s: [size * g for g in random_grads(shapes, s)]
    )
    check_equal(worlds, 1e-6)


@pytest.mark.parametrize(
    ("poison", "momentum"), [(float("nan"), "int8"), (float("inf"), "float32")]
)
def test_what_is_not_a_number_stays_in_its_parameter(poison: float, momentum: str) -> None:
    shapes = [(5, 140), (5, 141), (6,)]
    split = flat_split(shapes, 2, random.Random(1))
    worlds = []
    for bad in (False, True):
        ranks = world(
            shapes,
            split,
            random_grads(shapes, 9),
            {**OPTIONS, "kernel": "gpu", "momentum": momentum},
        )
        for step in range(2):
            grads = random_grads(shapes, step)
            if bad:
                grads[1][2, 3] = poison
            simulate(ranks, grads)
        worlds.append(ranks)
    for index in (0, 2):
        assert torch.equal(*(gather(ranks, "param", index) for ranks in worlds))
        good, other = (statistics(ranks[0], index) for ranks in worlds)
        assert all(torch.equal(other[key], value) for key, value in good.items())
    assert gather(worlds[1], "param", 1).isnan().any()
    assert worlds[1][0].plan.table.rms[1].isnan()


def test_tiles_of_many_rows_in_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a tile is worked through in pieces, and scratch memory may take several launches."""
    shapes, split = [(300, 131), (2100, 3)], FlatSplit((39300, 6300), (0, 39300), 22800, 2)
    check_equal(run_both(shapes, split, 1), 1e-6)  # a column has more parts than are added at once
    monkeypatch.setattr(launches.Tables, "_chunks", lambda self, numbers: 16)
    check_equal(run_both(shapes, split, 2, momentum="int8"), 1e-5)
    monkeypatch.setattr(tiles, "MAX_PARTS", 700)
    check_equal(run_both(shapes, split, 1, momentum="sign"), 1e-6)


def test_nothing_beside_the_buffers_is_written() -> None:
    shapes = [(33, 10), (5, 140), (5, 4, 6)]
    ranks = world(
        shapes,
        whole(shapes),
        random_grads(shapes, 0),
        {**OPTIONS, "kernel": "gpu", "momentum": "sign"},
    )
    rank = ranks[0]
    rank.begin(random_grads(shapes, 1))
    for part in (alone.part for alone in rank.plan.alone):
        buffers = torch.full((7, part.size + 20), float("nan"))
        inside = buffers[:, 10:-10]
        inside[:4] = 0
        gpu.add_squares(part, inside[0])
        gpu.update_squares(part, inside[0], inside[4])
        gpu.add_residuals(part, inside[4], inside[1:4])
        gpu.update_confidence(part, inside[1:4], inside[5:])
        gpu.apply_update(part, inside[4], inside[5:])
        assert inside.isfinite().all()
        assert buffers[:, :10].isnan().all() and buffers[:, -10:].isnan().all()


def optimizer_of(kernel: str, **options: Any) -> tuple[list[nn.Parameter], CAME]:
    params = [nn.Parameter(weight) for weight in random_grads([(6, 272), (9, 7), (13,)], 5)]
    groups = [{"params": params[:1], "weight_decay": 0.1}, {"params": params[1:], "lr": 3e-3}]
    return params, CAME(groups, kernel=kernel, **options)


def test_the_optimizer_follows_gradients_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients move, also to where 16 bytes cannot be read at once; learning rates change, also
    where only the device knows them."""
    runs = [optimizer_of(kernel, lr=torch.tensor(1e-2)) for kernel in ("eager", "gpu")]
    prepared = []
    prepare = launches.Tables._prepare
    monkeypatch.setattr(
        launches.Tables, "_prepare", lambda self, part: prepared.append(part) or prepare(self, part)
    )
    for module in ("mirror", "table"):
        monkeypatch.setattr(f"came.kernels.{module}.on_device", lambda lr: isinstance(lr, Tensor))
    for step in range(4):
        for params, optimizer in runs:
            for param in params:
                storage = torch.zeros(param.numel() + 1)
                grad = storage[step // 2 :][: param.numel()].view(param.shape)
                param.grad = grad.copy_(random_grads([tuple(param.shape)], step)[0])
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.5
            optimizer.param_groups[1]["lr"] *= 0.9
    for wanted, found in zip(runs[0][0], runs[1][0], strict=True):
        check_close(found.detach(), wanted.detach(), 1e-6, f"{tuple(found.shape)}")
    parts = len({part.matrices for part in prepared})
    assert len(prepared) == 2 * parts  # prepared anew for other places only, not for each gradient


def test_two_runs_are_the_same_bit_for_bit() -> None:
    runs = [optimizer_of("gpu", momentum="int8") for _ in range(2)]
    for params, optimizer in runs:
        for param in params:
            param.grad = random_grads([tuple(param.shape)], 3)[0]
        optimizer.step()
    for first, second in zip(runs[0][0], runs[1][0], strict=True):
        assert torch.equal(first, second)
