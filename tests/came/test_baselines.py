"""Adafactor, LAMB and SM3 as torch optimizers; what they compute is in test_rules_baselines.py."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import came
from came import LAMB, SM3, Adafactor
from came.sharded_optimizer import ShardedOptimizer

WITH_MOMENTUM = {"lr": 1e-2, "relative_step": False, "beta1": 0.9}
CHOICES: list[tuple[type[ShardedOptimizer], dict[str, Any]]] = [
    (Adafactor, {}),
    (Adafactor, WITH_MOMENTUM),
    (LAMB, {"lr": 0.03}),
    (SM3, {}),
    (SM3, {"beta1": 0.0}),
]


@pytest.mark.parametrize(
    ("optimizer", "options", "words"),
    [
        (Adafactor, {"lr": 1e-3}, "with relative_step it must be None"),
        (Adafactor, {"relative_step": False}, "lr is None"),
        (Adafactor, {"relative_step": False, "lr": -1.0}, "lr is -1.0"),
        (Adafactor, {"relative_step": False, "lr": 1.0, "warmup_init": True}, "warmup_init"),
        (Adafactor, {"eps": 1e-30}, "eps is 1e-30"),
        (Adafactor, {"clip_threshold": 0.0}, "clip_threshold is 0.0; it must be > 0"),
        (Adafactor, {"decay_rate": 0.8}, "decay_rate is 0.8; it must be a number < 0"),
        (Adafactor, {"beta1": 1.0}, r"beta1 is 1.0; it must be a number in \[0, 1\)"),
        (LAMB, {"lr": -1.0}, "lr is -1.0"),
        (LAMB, {"betas": (0.9, 0.999, 0.9999)}, "two numbers"),
        (LAMB, {"eps": -1e-6}, "eps is -1e-06"),
        (LAMB, {"weight_decay": -0.1}, "weight_decay is -0.1"),
        (LAMB, {"max_trust_ratio": 0.0}, "max_trust_ratio is 0.0"),
        (SM3, {"beta1": "0.9"}, "beta1 is '0.9'"),
        (SM3, {"beta1": float("nan")}, "beta1 is nan"),
        (SM3, {"eps": 0.0}, "eps is 0.0; it must be > 0"),  # 0 / sqrt(0) where there is no gradient
    ],
)
def test_an_option_out_of_its_range_is_refused(
    optimizer: type[ShardedOptimizer], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        optimizer([nn.Parameter(torch.ones(2, 2))], **options)


@pytest.mark.parametrize(("optimizer", "options"), CHOICES)
def test_resumed_equals_unbroken_bit_for_bit(
    optimizer: type[ShardedOptimizer], options: dict[str, Any]
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (2, 3, 4), (5,), ()]
    dtypes = [torch.bfloat16, *[torch.float32] * 3]  # statistics must not be cast to a half
    weights, *grads = [
        [torch.randn(s, generator=generator).to(d) for s, d in zip(shapes, dtypes, strict=True)]
        for _ in range(7)
    ]
    params = [nn.Parameter(weight) for weight in weights]
    unbroken = optimizer(params, **options)
    _train(params, unbroken, grads[:3])
    copies = [nn.Parameter(param.detach().clone()) for param in params]
    resumed = optimizer(copies, **options)
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    _train(params, unbroken, grads[3:])
    _train(copies, resumed, grads[3:])
    for param, twin in zip(params, copies, strict=True):
        assert torch.equal(param, twin)
        assert unbroken.state[param].keys() == resumed.state[twin].keys()
        for key, value in unbroken.state[param].items():
            assert value.dtype == torch.float32
            assert torch.equal(value, resumed.state[twin][key]), key


def _train(
    params: list[nn.Parameter], optimizer: ShardedOptimizer, grads: list[list[torch.Tensor]]
) -> None:
    for row in grads:
        for param, grad in zip(params, row, strict=True):
            param.grad = grad
        optimizer.step()


@pytest.mark.parametrize(("optimizer", "options"), CHOICES)
def test_each_learns(optimizer: type[ShardedOptimizer], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    inputs = torch.randn(256, 8)
    wanted = inputs[:, :1] * inputs[:, 1:2]
    chosen = optimizer(model.parameters(), **options)
    losses = []
    for _ in range(200):
        chosen.zero_grad()
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        chosen.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_a_vector_keeps_more_than_a_row_of_a_matrix() -> None:
    """What is kept: the ledger counts it, so that a comparison of memory needs no belief."""
    params = [nn.Parameter(torch.ones(30, 20)), nn.Parameter(torch.ones(20))]
    kept = {}
    for optimizer, options in CHOICES:
        kept[optimizer, len(options)] = came.bind(optimizer(params, **options)).state_bytes // 4
    assert kept[Adafactor, 0] == (30 + 20) + 20
    assert kept[Adafactor, 3] == 600 + (30 + 20) + 2 * 20
    assert kept[LAMB, 1] == 2 * 620
    assert kept[SM3, 0] == 600 + (30 + 20) + 2 * 20
    assert kept[SM3, 1] == (30 + 20) + 20


def test_names_that_mean_something_else_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """By "Adafactor" DeepSpeed finds torch's, which computes something else under ZeRO."""
    theirs = torch.optim.Adafactor
    for name in ("CAME", "SM3"):
        monkeypatch.setattr(torch.optim, name, None, raising=False)
    came.register()
    assert torch.optim.Adafactor is theirs
    assert torch.optim.SM3 is SM3 and torch.optim.CAME is came.CAME
    assert not hasattr(torch.optim, "LAMB")
