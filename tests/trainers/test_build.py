"""Every optimizer that can be chosen is built with the values of its file."""

from typing import Any

import pytest
import torch
from torch import nn

from came import CAME, LAMB, SM3, Adafactor
from trainers.build import build_optimizer
from trainers.compose import choices, compose
from trainers.errors import ConfigError

BUILT: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "came": (CAME, {"betas": (0.9, 0.999, 0.9999), "eps": (1e-30, 1e-16), "clip_threshold": 1.0}),
    "adamw": (torch.optim.AdamW, {"betas": (0.9, 0.999), "eps": 1e-8}),
    "adafactor": (
        Adafactor,
        {"beta1": 0.9, "eps": (1e-30, 1e-3), "scale_parameter": True, "relative_step": False},
    ),
    "lamb": (LAMB, {"betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": True}),
    "sm3": (SM3, {"beta1": 0.9, "eps": 1e-30}),
}


@pytest.mark.parametrize("name", choices()["optimizer"])
def test_the_file_of_an_optimizer_builds_it(name: str) -> None:
    whole = compose([f"optimizer={name}"], 2)
    config = whole.optimizer
    module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(config, whole.runtime, module)
    kind, options = BUILT[name]
    assert type(optimizer) is kind
    matrices, vectors = optimizer.param_groups
    assert matrices["lr"] == config.lr
    assert {key: matrices[key] for key in options} == options
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (config.weight_decay, 0.0)
    assert [len(matrices["params"]), len(vectors["params"])] == [1, 3]


def test_how_came_keeps_its_momentum_and_runs() -> None:
    config = compose(["optimizer.momentum=int8", "runtime.kernel=eager"], 2)
    (group, _) = build_optimizer(config.optimizer, config.runtime, nn.Linear(4, 3)).param_groups
    assert (group["momentum"], group["kernel"]) == ("int8", "eager")


def test_came_with_bias_correction() -> None:
    for words, corrects in (([], False), (["optimizer.bias_correction=true"], True)):
        config = compose(words, 2)
        (group, _) = build_optimizer(config.optimizer, config.runtime, nn.Linear(4, 3)).param_groups
        assert group["bias_correction"] is corrects


def test_adafactor_without_momentum() -> None:
    config = compose(["optimizer=adafactor", "optimizer.betas=[]"], 2)
    (group, _) = build_optimizer(config.optimizer, config.runtime, nn.Linear(4, 3)).param_groups
    assert group["beta1"] is None


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("adafactor optimizer.betas=[0.9,0.999]", "adafactor takes 0 or 1 values"),
        ("lamb optimizer.betas=[0.9]", "lamb takes 2 values"),
        ("sm3 optimizer.eps=[]", "sm3 takes 1 value"),
        ("lamb optimizer.clip_threshold=2", "lamb clips no update"),
        ("lamb optimizer.scale_parameter=true", "scale_parameter is given: it is adafactor's"),
        ("adafactor optimizer.scale_parameter=null", "scale_parameter is null"),
        ("lamb optimizer.momentum=int8", "momentum is given: it is came's"),
        ("adamw optimizer.bias_correction=true", "bias_correction=true: it is came's"),
        ("came optimizer.betas=[0,0.9,0.99]", "without a momentum came has no confidence"),
        ("came optimizer.momentum=null", "momentum is null"),
        ("lamb runtime.kernel=cpu", "runtime.kernel=cpu: lamb has plain torch alone"),
    ],
)
def test_options_of_another_optimizer_are_refused(words: str, answer: str) -> None:
    with pytest.raises(ConfigError, match=answer):
        compose(f"optimizer={words}".split(), 2)
