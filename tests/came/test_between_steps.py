"""What a user may do between two steps: cast, reset, reload, skip; and what is refused in words."""

import math

import pytest
import torch
from torch import Tensor, nn

from came import CAME, Adafactor, telemetry

SHAPES = [(8, 20), (5,)]


def params(shapes: list[tuple[int, ...]] = SHAPES, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def step(optimizer: torch.optim.Optimizer, *chosen: Tensor, scale: float = 1.0) -> None:
    optimizer.zero_grad()
    for param in chosen or optimizer.param_groups[0]["params"]:
        param.grad = scale * torch.randn_like(param)
    optimizer.step()


@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_a_model_may_be_cast(kernel: str) -> None:
    """The C++ kernel once read statistics in float64 as if they were float32, and gave NaN."""
    model = nn.Linear(20, 8).double()
    optimizer = CAME(model.parameters(), lr=1e-3, kernel=kernel)
    step(optimizer)
    factors = optimizer.state[model.weight]["exp_avg_sq_row"].clone()
    model.float()
    step(optimizer)
    state = optimizer.state[model.weight]
    assert state["exp_avg_sq_row"].dtype == torch.float32 and state["step"] == 2
    assert (state["exp_avg_sq_row"] > 0.9 * factors).all()  # it went on from there
    assert all(param.isfinite().all() for param in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_is_no_matter(dtype: torch.dtype) -> None:
    before, (one, two) = torch.get_default_dtype(), (params(), params())
    step_grads = [torch.randn_like(param) for param in one]
    for chosen, default in ((one, before), (two, dtype)):
        for param, grad in zip(chosen, step_grads, strict=True):
            param.grad = grad.clone()
        torch.set_default_dtype(default)
        try:
            CAME(chosen, lr=1e-2).step()
        finally:
            torch.set_default_dtype(before)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_an_insisted_kernel_refuses_foreign_devices() -> None:
    """It once took the address of a tensor elsewhere for one in memory, and the process died."""
    param = nn.Parameter(torch.empty(8, 8, device="meta"))
    param.grad = torch.empty_like(param)
    with pytest.raises(RuntimeError, match="'cpu'.*works on cpu, and these are on meta"):
        CAME([param], lr=1e-3, kernel="cpu").step()


def test_state_that_is_cleared_begins_again() -> None:
    chosen = params()
    optimizer = CAME(chosen, lr=1e-3)
    step(optimizer)
    optimizer.state.clear()
    step(optimizer)
    assert all(optimizer.state[param]["step"] == 1 for param in chosen)


def test_a_parameter_of_another_size_is_refused() -> None:
    """Its new rows were left out of the step."""
    chosen = params()
    optimizer = CAME(chosen, lr=1e-3)
    step(optimizer)
    chosen[0].data = torch.randn(16, 20)
    with pytest.raises(RuntimeError, match="has 320 numbers now, and had 160"):
        step(optimizer)


def test_telemetry_is_of_the_last_step_alone() -> None:
    first, second = params([(8, 20), (8, 20)])
    optimizer = CAME([first, second], lr=1e-3)
    step(optimizer, scale=math.nan)
    assert len(telemetry(optimizer)[0].nonfinite) == 2
    assert math.isnan(telemetry(optimizer)[0].clip_factor)
    fresh = CAME([first, second], lr=1e-3)
    step(fresh)
    second.grad = torch.zeros_like(second)
    first.grad = None
    fresh.step()
    assert telemetry(fresh)[0].update_rms < 1e-3  # that of zeros, not of `first` a step ago
    with pytest.raises(TypeError, match="telemetry is of CAME, and this is a Adafactor"):
        telemetry(Adafactor(params()))  # type: ignore[arg-type]


def test_strided_parameters_are_not_kept_twice() -> None:
    weight = nn.Parameter(torch.randn(6, 4, 3, 3).contiguous(memory_format=torch.channels_last))
    optimizer = CAME([weight], lr=1e-3, matricize="first")
    step(optimizer)
    (plan,) = optimizer.last_plans()
    assert not any(task.blocks for task in plan.table.matrices.tasks)
    assert math.isfinite(telemetry(optimizer)[0].update_rms)


def test_options_of_a_checkpoint() -> None:
    """The kernel is that of this machine, the format that of what is loaded."""
    saved = CAME(params(), lr=1e-3, momentum="int8", kernel="eager")
    step(saved)
    loading = CAME(params(), lr=1e-2, kernel="auto")
    loading.load_state_dict(saved.state_dict())
    (group,) = loading.param_groups
    assert (group["kernel"], group["momentum"], group["lr"]) == ("auto", "int8", 1e-3)
    step(loading)
    chosen = params()
    for other in (
        torch.optim.AdamW(chosen, lr=1e-3),
        torch.optim.SGD(chosen, lr=1e-3, momentum=0.9),
    ):
        step(other)
        with pytest.raises(ValueError, match="saved by another optimizer than CAME"):
            loading.load_state_dict(other.state_dict())


def test_a_format_written_into_a_group_is_refused() -> None:
    optimizer = CAME(params(), lr=1e-3)
    step(optimizer)
    optimizer.param_groups[0]["momentum"] = "int8"
    with pytest.raises(RuntimeError, match="another momentum format"):
        step(optimizer)
