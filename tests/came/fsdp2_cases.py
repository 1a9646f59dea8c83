"""Optimizers on DTensors, held against the authors' package and one process.  On gloo ranks."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from came import CAME, LAMB, SM3, Adafactor, reduce
from tests.came import deepspeed_cases
from tests.came.deepspeed_cases import LR, STEPS, compare, param_groups, published
from tests.came.toy import SHAPES, Toy, mean_grads, micro_grads


@dataclass(frozen=True)
class Case:
    """How `fully_shard` is called; `mesh` is its shape, all ranks in a row if it is empty.

    `nested` are sharded by themselves, before the root.  `ignored` parameters stay plain tensors
    whose gradients nobody reduces: `same` gives every rank the same ones.
    """

    options: dict[str, Any] = field(default_factory=dict)
    mesh: tuple[int, ...] = ()
    nested: tuple[tuple[str, ...], ...] = (("tall",), ("embed", "out"))
    ignored: tuple[str, ...] = ()
    same: bool = False


BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
NESTED, IGNORED = Case(), Case(ignored=("wide", "norm"), same=True)

# By the number of ranks.
CASES = {
    2: {
        "nested": NESTED,
        "the root alone": Case(nested=()),
        "gathered until backward": Case({"reshard_after_forward": False}),
        "bfloat16": Case({"mp_policy": BF16}),
        "offload": Case({"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
        "ignored": IGNORED,
        "one copy": Case(mesh=(1, 2)),
        "a mesh of one": Case(mesh=(2, 1)),
    },
    3: {"nested": NESTED, "bfloat16": Case({"mp_policy": BF16}), "ignored": IGNORED},
    4: {"nested": NESTED, "two copies": Case(mesh=(2, 2))},
}


def check_cases() -> None:
    """All cases of this number of ranks; raises on the first difference."""
    for name, case in CASES[dist.get_world_size()].items():
        try:
            check_case(case)
        except AssertionError as error:
            raise AssertionError(f"{name}, {dist.get_world_size()} ranks: {error}") from error


def sharded_toy(case: Case = NESTED) -> Toy:
    """The toy model, sharded.  Parameters are DTensors, but for those that are ignored."""
    model = Toy()
    shape = case.mesh or (dist.get_world_size(),)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    ignored = {getattr(model, name).weight for name in case.ignored}
    for names in case.nested:
        fully_shard([getattr(model, name) for name in names], mesh=mesh, **case.options)
    fully_shard(model, mesh=mesh, ignored_params=ignored, **case.options)
    return model


def train(model: Toy, optimizer: torch.optim.Optimizer, steps: range, same: bool = False) -> None:
    for step in steps:
        optimizer.zero_grad()
        model(micro_grads(step, 0 if same else dist.get_rank(), 0)).backward()
        optimizer.step()


def train_plain(
    model: Toy, optimizer: torch.optim.Optimizer, steps: range, same: bool = False
) -> None:
    """The same steps on a model that nobody shards."""
    for step in steps:
        for name, grad in mean_grads(step, dist.get_world_size(), 1, same).items():
            getattr(model, name).weight.grad = None if name == "unused" else grad
        optimizer.step()


def check_case(case: Case) -> None:
    model = sharded_toy(case)
    optimizer = CAME(param_groups(model), lr=LR)
    with mock.patch("came.reduce.sum_over", wraps=reduce.sum_over) as sums:
        train(model, optimizer, range(STEPS), case.same)
    groups = [call.args[1] for call in sums.call_args_list if call.args[1] is not None]
    num_parts = (case.mesh or (dist.get_world_size(),))[-1]
    assert len(groups) == (2 * STEPS if num_parts > 1 else 0), len(groups)
    assert all(group.size() == num_parts for group in groups)
    assert model.unused.weight not in optimizer.state
    found = gathered(model, optimizer)
    wanted = published(deepspeed_cases.Case({}, num_micro=1, same=case.same))
    assert torch.equal(found.pop("unused")["param"], wanted.pop("unused")["start"])
    compare(found, wanted)


def gathered(model: Toy, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Parameters and state, whole; proves on the way that each is placed as it must be."""
    found = {}
    for name in (*SHAPES, "frozen"):
        param = getattr(model, name).weight
        state = optimizer.state.get(param, {})
        found[name] = {"param": whole(param)} | {key: whole(v) for key, v in state.items()}
        for key, value in state.items():
            sharded = isinstance(param, DTensor)
            assert isinstance(value, DTensor) == (sharded and value.shape == param.shape), key
            if isinstance(value, DTensor):
                assert value.placements == param.placements, (name, key)
            elif sharded:
                assert_same_everywhere(value, f"{name} {key}")
    return found


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def assert_same_everywhere(value: Tensor, what: str) -> None:
    """Bit for bit on every rank."""
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, value)
    assert all(torch.equal(value, other) for other in everywhere), what


Make = Callable[[Toy], torch.optim.Optimizer]
Tensors = dict[str, Tensor]
BASELINES: dict[str, Make] = {
    "Adafactor": lambda model: Adafactor(param_groups(model)),
    "LAMB": lambda model: LAMB(param_groups(model), lr=0.03),
    "SM3": lambda model: SM3(param_groups(model)),
}


def make_came(momentum: str) -> Make:
    return lambda model: CAME(param_groups(model), lr=LR, momentum=momentum)  # type: ignore[arg-type]


def twins(make: Make) -> Iterator[tuple[str, Tensors, Tensors]]:
    """Name, parameter and state after all steps, sharded and on one process."""
    sharded, plain = sharded_toy(), Toy()
    optimizer, reference = make(sharded), make(plain)
    train(sharded, optimizer, range(STEPS))
    train_plain(plain, reference, range(STEPS))
    for name in SHAPES:
        param, wanted = getattr(sharded, name).weight, getattr(plain, name).weight
        state = optimizer.state.get(param, {})
        yield (
            name,
            {"param": whole(param)} | {key: whole(value) for key, value in state.items()},
            {"param": wanted.detach()} | reference.state.get(wanted, {}),
        )


def check_baselines() -> None:
    """The other rules on DTensors equal themselves on one process."""
    for rule, make in BASELINES.items():
        for name, found, wanted in twins(make):
            assert found.keys() == wanted.keys(), (rule, name)
            for key, value in wanted.items():
                assert_close(found[key], value, 2e-6 if key == "param" else 1e-5, (rule, name, key))


def check_formats() -> None:
    """The other formats are on DTensors what they are on one process.

    Rounding tips a number now and then; in the 9x1 matrix one sign is a ninth of everything.  The
    int8 blocks of narrow matrices are cut: that costs no more than int8 costs anyway.
    """
    exact = Toy()
    train_plain(exact, make_came("float32")(exact), range(STEPS))
    for momentum, tolerance in (("bfloat16", 1e-5), ("sign", 1e-3), ("int8", 2e-6)):
        for name, found, wanted in twins(make_came(momentum)):
            error = (found["param"] - wanted["param"]).norm()
            allowed = tolerance * wanted["param"].norm()
            if momentum == "int8":
                of_int8 = (wanted["param"] - getattr(exact, name).weight.detach()).norm()
                allowed += 2 * of_int8 * (name != "row")  # its one row is cut by nobody
            assert error <= allowed, f"{momentum} {name}: off by {error}, {allowed} are allowed"


def assert_close(found: Tensor, wanted: Tensor, tolerance: float, what: Any) -> None:
    """The norm of the error is at most `tolerance` of that of the tensor."""
    assert found.shape == wanted.shape, what
    error = (found - wanted).norm()
    assert error <= tolerance * wanted.norm(), f"{what}: off by {error}"
