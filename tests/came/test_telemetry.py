"""What a step tells about itself."""

import math

import pytest
import torch
from torch import nn

from came import CAME, telemetry

SHAPES = [(24, 36), (7, 9), (13,), (4, 3, 3, 3)]


def make(**options: object) -> tuple[list[nn.Parameter], CAME]:
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    groups = [{"params": params[:2]}, {"params": params[2:], "weight_decay": 0.1}]
    return params, CAME(groups, lr=1e-2, **options)


def step(params: list[nn.Parameter], optimizer: CAME, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        param.grad = scale * torch.randn(param.shape, generator=generator)
    optimizer.step()


def test_telemetry_is_what_the_formulas_say() -> None:
    params, optimizer = make(clip_threshold=0.5)
    for seed in range(5):
        step(params, optimizer, seed)
    first, second = telemetry(optimizer)
    squares, numel, spreads = 0.0, 0, []
    for param in params[:2]:
        state = optimizer.state[param]
        row, col = state["exp_avg_sq_row"], state["exp_avg_sq_col"]
        update = param.grad / ((row / row.mean()).unsqueeze(1) * col).sqrt()
        squares, numel = squares + float(update.square().sum()), numel + param.numel()
        row, col = state["exp_avg_res_row"], state["exp_avg_res_col"]
        confidence = ((row / row.mean()).unsqueeze(1) * col).rsqrt()
        spreads.append(float(confidence.log().std(correction=0)))
    assert first.update_rms == pytest.approx(math.sqrt(squares / numel), rel=1e-5)
    assert first.confidence_spread == pytest.approx(sum(spreads) / 2, rel=1e-4)
    clips = [float(optimizer.state[param]["clip_factor"]) for param in params[:2]]
    assert first.clip_factor == pytest.approx(min(clips), rel=1e-5) and first.clip_factor < 1
    assert first.nonfinite == () and second.as_dict()["nonfinite"] == 0
    assert second.update_rms != first.update_rms


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("victim", range(len(SHAPES)))
def test_a_gradient_that_is_no_number_harms_its_own_parameter_alone(
    victim: int, bad: float
) -> None:
    """And the telemetry names it."""
    params, optimizer = make()
    sound, undisturbed = make()
    for seed in range(3):
        for each in (params, sound):
            generator = torch.Generator().manual_seed(seed)
            for param in each:
                param.grad = torch.randn(param.shape, generator=generator)
        if seed == 1:
            params[victim].grad.view(-1)[3] = bad
        optimizer.step()
        undisturbed.step()
        if seed == 1:
            names = [name for group in telemetry(optimizer) for name in group.nonfinite]
            assert names == [optimizer.original_names[params[victim]]]
    for index, (param, wanted) in enumerate(zip(params, sound, strict=True)):
        assert torch.equal(param, wanted) == (index != victim)
        if index != victim:
            for key, value in undisturbed.state[wanted].items():
                assert torch.equal(optimizer.state[param][key], value), key


def test_groups_without_gradient_have_no_numbers() -> None:
    params, optimizer = make()
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    first, second = telemetry(optimizer)
    assert math.isfinite(first.update_rms) and math.isnan(second.update_rms)
    assert second.nonfinite == ()
