"""CAME under every way in which DeepSpeed shards it, held against `came-pytorch` on one process."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from came_pytorch import CAME as PublishedCAME
from torch import Tensor, nn

from came import CAME, bind
from came.reference import reference_state, reference_step
from came.state import entries, gather
from tests.came.toy import INITIAL, NO_DECAY, SHAPES, Toy, mean_grads, micro_grads

STEPS, LR, DECAY = 20, 1e-3, 0.01


@dataclass(frozen=True)
class Case:
    """A DeepSpeed configuration; `same` gives every rank the same gradient, `corrects` is bias
    correction, which the authors' package does not have."""

    zero: dict[str, Any]
    dtype: torch.dtype = torch.float32
    num_micro: int = 2
    same: bool = False
    zero_init: bool = False
    explicit_bind: bool = False
    corrects: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
BF16 = {"bf16": {"enabled": True}, "communication_data_type": "fp32"}
FP32_GRADS = {"data_types": {"grad_accum_dtype": "fp32"}}

CASES = {
    "zero0": Case({"stage": 0}),
    "zero1": Case({"stage": 1}),
    "zero2": Case({"stage": 2}, explicit_bind=True),
    "zero3": Case({"stage": 3}),
    # Half precision at stage 0 accumulates in bfloat16: one micro batch, the same on all ranks.
    "zero0-bf16": Case({"stage": 0}, torch.bfloat16, num_micro=1, same=True, extra=BF16),
    "zero1-bf16": Case({"stage": 1}, torch.bfloat16, extra=BF16 | FP32_GRADS),
    "zero2-bf16": Case({"stage": 2}, torch.bfloat16, extra=BF16 | FP32_GRADS),
    "zero3-bf16": Case({"stage": 3}, torch.bfloat16, extra=BF16 | FP32_GRADS),
    "zero1-offload": Case({"stage": 1, **OFFLOAD}),
    "zero2-offload": Case({"stage": 2, **OFFLOAD}),
    "zero3-offload": Case({"stage": 3, **OFFLOAD}),
    "zero1-round-robin": Case({"stage": 1, "round_robin_gradients": True}),
    "zero2-round-robin": Case({"stage": 2, "round_robin_gradients": True}),
    "zero3-init": Case({"stage": 3}, zero_init=True, explicit_bind=True),
    "zero3-sub-groups": Case({"stage": 3, "sub_group_size": 100}),
    "zero3-nothing-persistent": Case({"stage": 3, "stage3_param_persistence_threshold": 0}),
    "zero1-corrected": Case({"stage": 1}, corrects=True),
    "zero3-corrected": Case({"stage": 3, "sub_group_size": 100}, corrects=True),
    "zero3-offload-all": Case({"stage": 3, **OFFLOAD, "offload_param": {"device": "cpu"}}),
}


def deepspeed_config(case: Case) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": case.num_micro,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": case.zero,
        "steps_per_print": 10**9,
        **case.extra,
    }


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    vectors = [p for name, p in named if name.split(".")[0] in NO_DECAY]
    matrices = [p for name, p in named if name.split(".")[0] not in NO_DECAY]
    return [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]


def check_cases(names: Iterable[str]) -> None:
    """Run cases one after another in this process group; raises on the first difference."""
    for name in names:
        try:
            check_case(CASES[name])
        except AssertionError as error:
            raise AssertionError(f"{name}, {dist.get_world_size()} ranks: {error}") from error


def check_ddp() -> None:
    """DistributedDataParallel leaves parameters whole: nothing is to be found."""
    model = nn.parallel.DistributedDataParallel(Toy(), find_unused_parameters=True)
    optimizer = CAME(param_groups(model.module), lr=LR)
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=False)
        model(micro_grads(step, dist.get_rank(), 0)).backward()
        # DeepSpeed gives unused parameters a gradient of zero; so does the oracle
        model.module.unused.weight.grad = torch.zeros(SHAPES["unused"])
        optimizer.step()
    found = {
        name: {"param": (weight := getattr(model.module, name).weight).detach()}
        | optimizer.state[weight]
        for name in SHAPES
    }
    compare(found | {"frozen": {"param": torch.ones(1)}}, published(Case({}, num_micro=1)))


def initialize(**kwargs: Any) -> Any:
    """A DeepSpeed engine, without its compiled shared-memory all-reduce: gloo does as well."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed.initialize(**kwargs)[0]


def check_case(case: Case) -> None:
    import deepspeed

    config = deepspeed_config(case)
    if case.zero_init:
        with deepspeed.zero.Init(config_dict_or_path=config, dtype=case.dtype):
            model = Toy()
    else:
        model = Toy().to(case.dtype)
    optimizer = CAME(param_groups(model), lr=LR, bias_correction=case.corrects)
    engine = initialize(model=model, optimizer=optimizer, config=config)
    if case.explicit_bind:
        ledger = bind(engine)
        assert {row.name: row.rule for row in ledger.rows}["conv.weight"] == "factored"
        assert ledger.num_params == sum(torch.Size(shape).numel() for shape in SHAPES.values())
    for step in range(STEPS):
        for micro in range(case.num_micro):
            grads = micro_grads(step, 0 if case.same else dist.get_rank(), micro)
            engine.backward(engine(grads))
            engine.step()
    compare(gathered(engine), corrected(case) if case.corrects else published(case))
    engine.destroy()


def gathered(engine: Any) -> dict[str, dict[str, Tensor]]:
    """Every tensor of the run, whole: parameter name -> key -> tensor."""
    found: dict[str, dict[str, Tensor]] = {}
    for entry in entries(engine):
        found.setdefault(entry.name.removesuffix(".weight"), {})[entry.key] = gather(entry)
    return found


def published(case: Case) -> dict[str, dict[str, Tensor]]:
    """The same steps by the authors' package, whole, in fp32; "start" is the first parameter."""
    weights = {name: nn.Parameter(weight.clone()) for name, weight in INITIAL.items()}
    optimizer = PublishedCAME(
        [
            {"params": [w for n, w in weights.items() if n not in NO_DECAY], "weight_decay": DECAY},
            {"params": [w for n, w in weights.items() if n in NO_DECAY], "weight_decay": 0.0},
        ],
        lr=LR,
    )
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    for step in range(STEPS):
        for name, grad in mean_grads(
            step, dist.get_world_size(), case.num_micro, case.same
        ).items():
            weights[name].grad = grad
        optimizer.step()
    return {
        name: {
            "start": start[name],
            "param": weight.detach(),
            **{k: v for k, v in optimizer.state[weight].items() if k not in ("RMS", "step")},
            "step": torch.tensor(float(STEPS)),
        }
        for name, weight in weights.items()
    }


def corrected(case: Case) -> dict[str, dict[str, Tensor]]:
    """The same steps with bias correction, by the oracle, whole, in fp32 as the weights are: what
    only decays moves by little more than the last bit."""
    start = {name: weight.clone() for name, weight in INITIAL.items()}
    found = {name: {"start": weight.clone(), "param": weight} for name, weight in start.items()}
    for name, weight in start.items():
        state = reference_state(weight)
        for step in range(STEPS):
            grads = mean_grads(step, dist.get_world_size(), case.num_micro, case.same)
            decay = 0.0 if name in NO_DECAY else DECAY
            reference_step(
                *(weight, grads[name], state), lr=LR, weight_decay=decay, corrected_at=step + 1
            )
        found[name] |= state | {"step": torch.tensor(float(STEPS))}
    return found


def compare(found: dict[str, dict[str, Tensor]], wanted: dict[str, dict[str, Tensor]]) -> None:
    """Parameters to 2e-6 of themselves and 1e-5 of their movement, all state to 1e-5."""
    assert found.pop("frozen")["param"].eq(1).all()
    assert found.keys() == wanted.keys()
    for name, tensors in wanted.items():
        start = tensors.pop("start")
        assert found[name].keys() - {"clip_factor"} == tensors.keys(), name
        movement = (tensors["param"] - start).norm()
        error = (found[name]["param"].float() - tensors["param"]).norm()
        assert error <= 2e-6 * tensors["param"].norm(), f"{name}: parameter off by {error}"
        assert error <= 1e-5 * movement, f"{name}: off by {error / movement} of the movement"
        for key, tensor in tensors.items():
            assert found[name][key].shape == tensor.shape, f"{name} {key}"
            error = (found[name][key].float() - tensor).norm()
            assert error <= 1e-5 * tensor.norm(), f"{name}: {key} off by {error / tensor.norm()}"
