"""What CAME promises to scripts that are not ours, on DeepSpeed engines.  Runs on several ranks."""

import contextlib
import gc
import io
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import came
from came import CAME, bind, reduce
from came.state import after_load, entries, gather, scatter
from tests.came.deepspeed_cases import (
    BF16,
    FP32_GRADS,
    LR,
    Case,
    deepspeed_config,
    initialize,
    param_groups,
)
from tests.came.toy import Toy, micro_grads


def make_engine(case: Case, optimizer: str = "float32") -> Any:
    model = Toy().to(case.dtype)
    groups = param_groups(model)
    if optimizer == "adamw":
        chosen: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=LR)
    else:
        # Which step it is moves with the state: two formats would show it if it did not.
        corrects = optimizer in ("bfloat16", "sign")
        chosen = CAME(groups, lr=LR, momentum=optimizer, bias_correction=corrects)
    return initialize(model=model, optimizer=chosen, config=deepspeed_config(case))


def train(engine: Any, case: Case, steps: range) -> None:
    for step in steps:
        for micro in range(case.num_micro):
            engine.backward(engine(micro_grads(step, dist.get_rank(), micro)))
            engine.step()


def snapshot(engine: Any) -> dict[str, Tensor]:
    return {f"{entry.key}/{entry.name}": gather(entry) for entry in entries(engine)}


def restore(engine: Any, state: dict[str, Tensor]) -> None:
    for entry in entries(engine):
        scatter(entry, state[f"{entry.key}/{entry.name}"])
    after_load(engine)


def check_all() -> None:
    check_two_sums_per_step()
    check_register()
    check_changed_weights_are_refused()
    check_matrices_that_nobody_factors_are_refused()
    check_deepspeed_checkpoints()
    check_constructor_takes_no_step()
    check_frozen_heap()


def check_two_sums_per_step() -> None:
    """However many matrices, two all-reduces per `step()`: one step per group at stage 1."""
    for zero, calls in (({"stage": 1}, 2), ({"stage": 3}, 2)):
        case = Case(zero, num_micro=1)
        engine = make_engine(case)
        for verdicts in (1, 0, 0):  # the first step proves the layout
            with (
                mock.patch("came.reduce.sum_over", wraps=reduce.sum_over) as sums,
                mock.patch("came.sharding.deepspeed.dist", wraps=dist) as proof,
                mock.patch.object(
                    engine.basic_optimizer, "step", wraps=engine.basic_optimizer.step
                ) as step,
            ):
                train(engine, case, range(1))
            assert step.call_count == calls, step.call_count
            assert sums.call_count == 2 * calls, sums.call_count
            assert proof.all_reduce.call_count == verdicts, proof.all_reduce.call_count


def check_register() -> None:
    came.register()
    config = deepspeed_config(Case({"stage": 2}, num_micro=1))
    config["optimizer"] = {"type": "CAME", "params": {"lr": LR, "weight_decay": 0.01}}
    model = Toy()
    trained = [param for param in model.parameters() if param.requires_grad]
    engine = initialize(model=model, model_parameters=trained, config=config)
    assert isinstance(engine.basic_optimizer, CAME)
    train(engine, Case({}, num_micro=1), range(2))
    ledger = bind(engine)
    assert ledger.world_size == dist.get_world_size()
    assert {row.name for row in ledger.rows if row.rule == "factored"} == {
        f"{name}.weight" for name in ("embed", "wide", "conv", "row", "column", "tall", "unused")
    }


def check_changed_weights_are_refused() -> None:
    """A slice that is not where the layout says is an error on every rank, not on one."""
    for case in (
        Case({"stage": 1}, num_micro=1),
        Case({"stage": 0}, torch.bfloat16, num_micro=1, extra=BF16),
        Case({"stage": 1}, torch.bfloat16, num_micro=1, extra=BF16 | FP32_GRADS),
    ):
        for explicit in (True, False):
            engine = make_engine(case)
            if dist.get_rank() == 0:
                with torch.no_grad():
                    engine.module.wide.weight.add_(1)
            with raises(RuntimeError) as words:
                bind(engine) if explicit else train(engine, case, range(1))
            assert "does not hold its values" in words.getvalue()
            assert ("another rank" in words.getvalue()) == (dist.get_rank() != 0)
            assert dist.get_rank() != 0 or not explicit or "wide.weight" in words.getvalue()


def check_matrices_that_nobody_factors_are_refused() -> None:
    model = Toy()
    optimizer = CAME([model.bias.weight, model.norm.weight])
    config = deepspeed_config(Case({"stage": 1}, num_micro=1))
    engine = initialize(model=model, optimizer=optimizer, config=config)
    with raises(RuntimeError) as words:
        bind(engine)
    assert "factor none" in words.getvalue()


def check_frozen_heap() -> None:
    """`gc.freeze()` hides the wrapper from a search; `bind` does not have to search."""
    case = Case({"stage": 2}, num_micro=1)
    for bound in (True, False):
        engine = make_engine(case)
        gc.freeze()
        try:
            if bound:
                bind(engine)
                train(engine, case, range(1))
                assert (snapshot(engine)["exp_avg_sq_row/wide.weight"] > 0).all()
            else:
                with raises(RuntimeError) as words:
                    train(engine, case, range(1))
                assert "gc.freeze" in words.getvalue()
        finally:
            gc.unfreeze()


def check_constructor_takes_no_step() -> None:
    """ZeRO 0 in half precision calls `step()` with zero gradients while it is being built."""
    engine = make_engine(Case({"stage": 0}, torch.bfloat16, num_micro=1, extra=BF16))
    bind(engine)
    state = snapshot(engine)
    assert state["step/wide.weight"] == 0
    assert torch.equal(state["param/wide.weight"], Toy().wide.weight)


def check_deepspeed_checkpoints() -> None:
    """DeepSpeed's own checkpoints, same world and stage: the resumed run goes on bit for bit."""
    for case in (
        Case({"stage": 1}, num_micro=1),
        Case({"stage": 2}, num_micro=1),
        Case({"stage": 3, "sub_group_size": 100}, num_micro=1),
        Case({"stage": 1, "offload_optimizer": {"device": "cpu"}}, num_micro=1),
        Case({"stage": 2, "round_robin_gradients": True}, num_micro=1),
        Case({"stage": 0}, torch.bfloat16, num_micro=1, extra=BF16),
        Case({"stage": 1}, torch.bfloat16, num_micro=1, extra=BF16 | FP32_GRADS),
    ):
        engine = make_engine(case)
        train(engine, case, range(3))
        with shared_folder() as folder:
            engine.save_checkpoint(folder, tag="saved")
            train(engine, case, range(3, 6))
            resumed = make_engine(case)
            resumed.load_checkpoint(folder, tag="saved")
            train(resumed, case, range(3, 6))
        assert_equal(snapshot(resumed), snapshot(engine))


def check_state_moves() -> None:
    """Gathered under one sharding and scattered under another, state is the same bit for bit;
    int8 momentum is quantised once more where a block is cut anew."""
    for optimizer in ("float32", "bfloat16", "int8", "sign", "adamw"):
        first = Case({"stage": 1}, num_micro=1)
        engine = make_engine(first, optimizer)
        train(engine, first, range(3))
        state = snapshot(engine)
        momentum = "exp_avg_sign" if optimizer == "sign" else "exp_avg"
        assert state[f"{momentum}/tall.weight"].shape == (33, 10)
        train(engine, first, range(3, 6))
        end = snapshot(engine)
        for case in (
            first,
            Case({"stage": 0}, num_micro=1),
            Case({"stage": 3}, num_micro=1),
            Case({"stage": 3, "stage3_param_persistence_threshold": 0}, num_micro=1),
            Case({"stage": 2, "round_robin_gradients": True}, num_micro=1),
            Case({"stage": 2, "offload_optimizer": {"device": "cpu"}}, num_micro=1),
        ):
            other = make_engine(case, optimizer)
            restore(other, state)
            moved = snapshot(other)
            if optimizer == "int8" and case is not first:
                check_requantised(moved, state)
            else:
                assert_equal(moved, state)
            train(other, case, range(3, 6))
            if case is first:
                assert_equal(snapshot(other), end)
                continue
            tolerance = {"int8": 2e-2, "sign": 1e-3}.get(optimizer, 1e-5)
            for name, value in snapshot(other).items():
                if name.startswith("exp_avg_sign"):  # of a number near zero it may tip
                    assert (value != end[name]).double().mean() <= 0.02, (case, name)
                    continue
                error = (value - end[name]).norm()
                assert error <= tolerance * end[name].norm(), (case, optimizer, name, error)


def check_requantised(moved: dict[str, Tensor], state: dict[str, Tensor], times: int = 1) -> None:
    """Momentum is off by half a code at most for each time, everything else is the same."""
    assert moved.keys() == state.keys()
    for name, value in state.items():
        if name.startswith("exp_avg/"):
            assert (moved[name] - value).abs().max() <= times * value.abs().max() / 254 * 1.001, (
                name
            )
        else:
            assert torch.equal(moved[name], value), name


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@contextlib.contextmanager
def raises(kind: type[Exception]) -> Iterator[io.StringIO]:
    words = io.StringIO()
    try:
        yield words
    except kind as error:
        words.write(str(error))
    else:
        raise AssertionError(f"no {kind.__name__}")


@contextlib.contextmanager
def shared_folder() -> Iterator[str]:
    """One temporary folder for all ranks."""
    with tempfile.TemporaryDirectory() as own:
        chosen = [own]
        dist.broadcast_object_list(chosen)
        yield chosen[0]
        dist.barrier()
