"""What CAME promises to FSDP2 beside the numbers: checkpoints and refusals.  On gloo ranks."""

import copy
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from came import CAME, bind
from came.fields import stored_boxes
from came.momentum import FORMATS, rows_per_block
from came.sharding.dtensor import as_dtensor
from tests.came.deepspeed_cases import LR
from tests.came.deepspeed_checks import raises
from tests.came.fsdp2_cases import (
    Case,
    Tensors,
    assert_close,
    check_baselines,
    check_cases,
    check_formats,
    make_came,
    sharded_toy,
    train,
    train_plain,
    whole,
)
from tests.came.toy import SHAPES, Toy

HALF, END = 3, 6  # steps
FULL = StateDictOptions(full_state_dict=True)


def make(momentum: str) -> tuple[Toy, Any]:
    model = sharded_toy()
    return model, make_came(momentum)(model)


def snapshot(model: Toy, optimizer: torch.optim.Optimizer) -> Tensors:
    """Every parameter, and all state as it is saved, whole."""
    found = {name: whole(param) for name, param in model.named_parameters()}
    for name, state in get_optimizer_state_dict(model, optimizer)["state"].items():
        found |= {f"{name}/{key}": whole(value) for key, value in state.items()}
    return found


def state_dicts(model: Toy, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def load(model: Toy, optimizer: torch.optim.Optimizer, folder: str) -> None:
    state = state_dicts(model, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])


def check_checkpoints(folder: str) -> None:
    """Saves for `check_resharded`; what goes on after a load is the unbroken run bit for bit."""
    for momentum in FORMATS:
        model, optimizer = make(momentum)
        train(model, optimizer, range(HALF), same=True)
        half = snapshot(model, optimizer)
        dcp.save(state_dicts(model, optimizer), checkpoint_id=f"{folder}/{momentum}")
        moved = {name: momentum_of(model, optimizer, name) for name in SHAPES}
        saved = copy.deepcopy((optimizer.state_dict(), state_dicts(model, optimizer)["model"]))
        assert_equal(snapshot(model, optimizer), half)  # saving changes nothing
        train(model, optimizer, range(HALF, END), same=True)
        end = snapshot(model, optimizer)
        if dist.get_rank() == 0:
            torch.save((moved, end), f"{folder}/{momentum}.pt")

        model, optimizer = make(momentum)
        load(model, optimizer, f"{folder}/{momentum}")
        assert_equal(snapshot(model, optimizer), half)
        train(model, optimizer, range(HALF, END), same=True)
        assert_equal(snapshot(model, optimizer), end)

        model, optimizer = make(momentum)  # without torch.distributed.checkpoint
        set_model_state_dict(model, saved[1])
        optimizer.load_state_dict(saved[0])
        train(model, optimizer, range(HALF, END), same=True)
        assert_equal(snapshot(model, optimizer), end)


def check_resharded(folder: str) -> None:
    """What another number of ranks has saved, loaded here and trained on.

    Int8 blocks that this number of ranks puts together are rounded anew: half a code at most.
    """
    for momentum in FORMATS:
        moved, end = torch.load(f"{folder}/{momentum}.pt")
        model, optimizer = make(momentum)
        load(model, optimizer, f"{folder}/{momentum}")
        found = {name: momentum_of(model, optimizer, name) for name in SHAPES}
        if momentum != "int8":
            assert_equal(found, moved)
            train(model, optimizer, range(HALF, END), same=True)
            for name, value in snapshot(model, optimizer).items():
                if value.dtype == torch.uint8:  # signs: of a number near zero one may tip
                    assert (value != end[name]).sum() <= 1, name
                else:  # in the 9x1 matrix a sign is a ninth of everything
                    tolerance = 1e-3 if momentum == "sign" and "column" in name else 1e-5
                    assert_close(value, end[name], tolerance, (momentum, name))
            continue
        assert any(not torch.equal(found[name], moved[name]) for name in SHAPES)
        for name in SHAPES:
            param = optimizer.shard(getattr(model, name).weight).layout.params[0]
            if param.factored:
                tall = (values[name].view(-1, param.shape[-1]) for values in (found, moved))
                pairs = zip(*(matrix.split(rows_per_block(param)) for matrix in tall), strict=True)
                for block, before in pairs:
                    assert (block - before).abs().max() <= before.abs().max() / 254 * (1 + 1e-5)
        train(model, optimizer, range(HALF, END), same=True)


def momentum_of(model: Toy, optimizer: CAME, name: str) -> Tensor:
    """The momentum of a parameter, whole, in float32; in the sign format the signs."""
    tensor = getattr(model, name).weight
    shard = optimizer.shard(tensor)
    fields, local = optimizer.fields(shard), torch.zeros(shard.local.shape)
    for kept in stored_boxes(shard.layout, fields, optimizer.state_of(shard)):
        box, field = kept.box, fields[0][0]
        ones = torch.ones(box.batches, box.rows), torch.ones(box.batches, box.cols)
        values = field.storage.load(kept.stored["exp_avg"], shard.layout.params[0], box, ones)
        local.view(-1)[box.offset : box.offset + box.numel] = values.float().reshape(-1)
    return as_dtensor(local, tensor, tuple(tensor.shape)).full_tensor()


def check_one_process_and_back() -> None:
    """Sharded, then on one process, then sharded: the run is the same, and nothing is lost.

    `load_state_dict` once left an option of torch's in `param_groups`: the third leg died of it.
    """
    for momentum in FORMATS:
        model, optimizer = make(momentum)
        train(model, optimizer, range(HALF), same=True)
        plain = Toy()
        one = make_came(momentum)(plain)
        state = get_optimizer_state_dict(model, optimizer, options=FULL)
        set_model_state_dict(plain, get_model_state_dict(model, options=FULL))
        set_optimizer_state_dict(plain, one, state)
        train_plain(plain, one, range(HALF, END), same=True)
        train(model, optimizer, range(HALF, END), same=True)
        for name in SHAPES:
            found, wanted = getattr(plain, name).weight.detach(), getattr(model, name).weight
            # Blocks of int8 are put together, and rounded anew.
            assert_close(found, whole(wanted), 1e-2 if momentum == "int8" else 2e-6, name)

        again, resharded = make(momentum)
        set_model_state_dict(again, get_model_state_dict(plain), options=FULL)
        state = get_optimizer_state_dict(plain, one)
        set_optimizer_state_dict(again, resharded, state, options=FULL)
        assert_equal(snapshot(again, resharded), snapshot(plain, one))


def check_two_ranks() -> None:
    check_cases()
    check_one_process_and_back()


def check_three_ranks() -> None:
    check_cases()
    check_formats()
    check_baselines()


def check_four_ranks() -> None:
    check_cases()
    check_state_before_the_first_step()
    check_swapped_parameters()
    check_replicated_parameters()
    check_ledger()
    check_refusals()


def check_state_before_the_first_step() -> None:
    """torch takes a step with gradients of zero to have the state allocated: that is no step."""
    model, optimizer = make("float32")
    state = get_optimizer_state_dict(model, optimizer)["state"]
    assert state.keys() == {f"{name}.weight" for name in SHAPES}  # also what gets no gradient
    assert all(not whole(value).any() for kept in state.values() for value in kept.values())
    train(model, optimizer, range(HALF))
    other, unasked = make("float32")
    train(other, unasked, range(HALF))
    assert_equal(snapshot(model, optimizer), snapshot(other, unasked))


def check_swapped_parameters() -> None:
    """accelerate shards the model under an optimizer that exists, and replaces its parameters."""
    plain, (model, optimizer) = Toy(), make("float32")
    swapped = make_came("float32")(plain)
    for group, other in zip(swapped.param_groups, optimizer.param_groups, strict=True):
        group["params"] = list(other["params"])
    train(model, swapped, range(HALF))
    wanted, unasked = make("float32")
    train(wanted, unasked, range(HALF))
    assert_equal(snapshot(model, swapped), snapshot(wanted, unasked))
    assert not {*plain.parameters()} & {*swapped.original_names}  # they can be freed
    names = [row.name for row in bind(swapped).rows]
    assert names == [row.name for row in bind(optimizer).rows]


def check_replicated_parameters() -> None:
    """A DTensor that every rank holds all of is no other than a plain one."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weight, grad = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    plain = nn.Parameter(weight.clone())
    param = nn.Parameter(distribute_tensor(weight, mesh, [Replicate()]))
    one, optimizer = CAME([plain], lr=LR), CAME([param], lr=LR)
    for _ in range(HALF):
        plain.grad = grad.clone()
        partial = DTensor.from_local(grad / dist.get_world_size(), mesh, [Partial()])
        # Asynchronous: what it is has no memory before somebody waits for it.
        param.grad = partial.redistribute(placements=[Replicate()], async_op=True)
        one.step()
        optimizer.step()
    assert_close(whole(param), plain.detach(), 2e-6, "replicated")
    assert optimizer.state[param]["exp_avg"].placements == (Replicate(),)


def check_ledger() -> None:
    for mesh, owners in (((4,), (0,)), ((2, 2), (0, 2))):
        model = sharded_toy(Case(mesh=mesh))
        ledger = bind(CAME(list(model.named_parameters())))
        rows = {row.name: row for row in ledger.rows}
        assert ledger.num_params == sum(Toy().get_parameter(name).numel() for name in rows)
        assert rows["tall.weight"].owners == (0, 1, 2, 3)
        assert rows["row.weight"].owners == owners  # one row
        assert rows["conv.weight"].rule == "factored"
        assert rows["tall.weight"].sharded_bytes == 4 * 330


def check_refusals() -> None:
    """What cannot be exact is refused on every rank, with the parameter and its placements."""
    row = init_device_mesh("cpu", (4,))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

    def bound(tensor: Tensor) -> None:
        bind(CAME([("w", nn.Parameter(tensor))]))

    ones = torch.ones(8, 8)
    both = "leave out tensor parallelism"
    for mesh, placements, words in (
        (row, [Shard(1)], "without a shard_placement_fn"),
        (grid, [Shard(0), Shard(0)], both),
        (grid, [Shard(0), Shard(1)], both),
        (grid, [Replicate(), Shard(1)], both),
    ):
        with raises(RuntimeError) as found:
            bound(distribute_tensor(ones, mesh, placements))
        for word in ("w, of shape (8, 8)", repr(placements[-1]), words):
            assert word in found.getvalue(), (word, found.getvalue())
    with raises(RuntimeError) as found:
        bound(DTensor.from_local(ones, row, [Partial()]))
    assert "Partial(sum)" in found.getvalue() and "redistribute" in found.getvalue()
    rows = torch.ones((3, 1, 1, 1)[dist.get_rank()], 3)  # torch.chunk gives 2, 2, 2 and 0
    with raises(RuntimeError) as found:
        bound(DTensor.from_local(rows, row, [Shard(0)], shape=torch.Size((6, 3)), stride=(3, 1)))
    assert "torch.chunk gives" in found.getvalue()

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    parallelize_module(model, grid["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    fully_shard(model, mesh=grid["data"])
    with raises(RuntimeError) as found:
        bind(CAME(model.named_parameters()))
    assert "0.weight" in found.getvalue() and "_StridedShard" in found.getvalue()

    param = nn.Parameter(distribute_tensor(ones, row, [Shard(0)]))
    param.grad = distribute_tensor(ones, row, [Replicate()])
    with raises(RuntimeError) as found:
        CAME([param]).step()
    assert "gradient" in found.getvalue() and "Replicate()" in found.getvalue()


def assert_equal(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
