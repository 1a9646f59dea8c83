"""The optimizers that a plan compares, and what each keeps for each parameter of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from came.fields import Field
from came.layout import Param
from came.sharded_optimizer import ShardedOptimizer
from came.sharding.discover import parameter_names
from trainers.build import build_optimizer
from trainers.compose import CONFIGS, choices
from trainers.config import Config, OptimizerConfig, RuntimeConfig
from trainers.errors import ConfigError
from trainers.typed import convert

FORMATS = ("float32", "bfloat16", "int8", "sign")


@dataclass(frozen=True)
class Group:
    """One param group: its parameters, and the state fields of each."""

    params: tuple[Param, ...]
    fields: tuple[tuple[Field, ...], ...]

    @property
    def numel(self) -> int:
        return sum(param.numel for param in self.params)


@dataclass(frozen=True)
class Kept:
    """What an optimizer keeps; `num_summed` has the numbers of each buffer that a step sums."""

    groups: tuple[Group, ...]
    num_summed: Callable[[Sequence[Param]], tuple[int, ...]]


def kept(config: OptimizerConfig, runtime: RuntimeConfig, module: nn.Module) -> Kept:
    """What the optimizer of a run keeps for the parameters of `module`, which may be on meta."""
    optimizer = build_optimizer(config, runtime, module)
    names = parameter_names(module)
    groups = []
    for group in optimizer.param_groups:
        params = tuple(Param(names[param], tuple(param.shape)) for param in group["params"])
        if params:
            groups.append(
                Group(params, tuple(_fields(optimizer, param, group) for param in params))
            )
    sharded = isinstance(optimizer, ShardedOptimizer)
    return Kept(tuple(groups), optimizer.rule.num_summed if sharded else lambda params: ())


def _fields(optimizer: Any, param: Param, group: dict[str, Any]) -> tuple[Field, ...]:
    if isinstance(optimizer, ShardedOptimizer):
        return optimizer.rule.fields(param, group)
    return Field("exp_avg"), Field("exp_avg_sq")  # torch's AdamW


def compared(config: Config) -> dict[str, OptimizerConfig]:
    """Every optimizer by the name of its row: the chosen one as it is configured, the others as
    their files have them; and the variants that keep something else."""
    chosen = config.optimizer
    found = {
        name: chosen if name == chosen.name else _of_file(name) for name in choices()["optimizer"]
    }
    came, adafactor = found.pop("came"), found["adafactor"]
    rows = {"came": came}
    for momentum in FORMATS:
        if momentum != came.momentum:
            rows[f"came_{momentum}"] = replace(came, momentum=momentum)
    for name in ("adamw", "adafactor"):
        rows[name] = found.pop(name)
    if adafactor.betas:
        rows["adafactor_no_momentum"] = replace(adafactor, betas=())
    else:
        rows["adafactor_momentum"] = replace(adafactor, betas=(0.9,))
    return rows | found


def _of_file(name: str) -> OptimizerConfig:
    problems: list[str] = []
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / "optimizer" / f"{name}.yaml"))
    config: OptimizerConfig | None = convert(OptimizerConfig, values, "optimizer", problems)
    if config is None or problems:
        raise ConfigError(f"configs/optimizer/{name}.yaml: {'; '.join(problems)}")
    return config
