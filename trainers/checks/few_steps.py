"""A few steps of a small run, and all that each leaves behind: what a rank of the gate does.

<folder>/config.json        what is run
<folder>/<step>.safetensors whole tensors by key and parameter name, and the loss; 0 = the start
"""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from came.pieces import Entry
from came.state import after_load, entries, gather, scatter
from launch.local import die_with_launcher, hear_requests
from trainers.build import build_module, build_optimizer
from trainers.config import Config
from trainers.data.splits import open_phases
from trainers.failures import report
from trainers.run.distributed import World, join, leave
from trainers.run.engine import build_engine, place
from trainers.run.feed import Feed
from trainers.run.finite import guard
from trainers.run.loop import train_step
from trainers.run.speed import set_speed
from trainers.run.stopping import Stopping
from trainers.schedules import learning_rate
from trainers.signals import Listener
from trainers.typed import convert

CONFIG, SUFFIX = "config.json", ".safetensors"

# What a rank runs: `-m` would look for `trainers` in the folder that the user stands in.
START = f"""\
import sys
sys.path[0] = {str(Path(__file__).resolve().parents[2])!r}
from trainers.checks.few_steps import main
main()"""


def write_config(config: Config, folder: Path) -> None:
    """For the ranks: they read no YAML again."""
    (folder / CONFIG).write_text(json.dumps(asdict(config)), encoding="utf-8")


def read_config(folder: Path) -> Config:
    """What `write_config` wrote."""
    problems: list[str] = []
    saved = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config: Config | None = convert(Config, saved, "", problems)
    assert config is not None, problems
    return config


def few_steps(config: Config, world: World, folder: Path, leader: Path | None) -> None:
    """Train all steps of `config`, and keep in `folder` what a checkpoint would hold after each.

    With a `leader`, the folder of another world, each step begins with the state that the other one
    had: what is different after it is of this step, and not of what rounding has grown into.
    Every rank must call it.
    """
    data = open_phases(config)
    module = place(build_module(config, data[0]), world.device, config.runtime.dtype)
    set_speed(module, config.runtime)
    optimizer = build_optimizer(config.optimizer, config.runtime, module)
    engine, _ = build_engine(config, module, optimizer, world.world_size)
    guard(engine)
    stopping = Stopping(Listener(), world, config.runtime.timeout_seconds)
    _keep(engine, world, folder / f"0{SUFFIX}", torch.zeros(1))
    engine.train()
    with Feed(config, data, world, 0) as feed:
        for step in range(1, config.train.steps + 1):
            if leader is not None:
                _take(engine, load_file(leader / f"{step - 1}{SUFFIX}"))
            rate = learning_rate(config.schedule, step, config.train.steps, config.optimizer.lr)
            loss = train_step(config, engine, world, feed.step(step), rate, step, stopping.ask)
            stopping.told()
            _keep(engine, world, folder / f"{step}{SUFFIX}", world.sum(loss).cpu())


def _keep(engine: Any, world: World, file: Path, loss: Tensor) -> None:
    found = {f"{entry.key}/{entry.name}": gather(entry) for entry in _trained(engine)}
    if world.rank == 0:
        whole = {name: tensor.contiguous() for name, tensor in found.items()}
        save_file({**whole, "loss": loss.reshape(1)}, file)


def _take(engine: Any, state: Mapping[str, Tensor]) -> None:
    for entry in _trained(engine):
        name = f"{entry.key}/{entry.name}"
        if name in state:  # a name that the other one lacks is what the comparison will say
            scatter(entry, state[name])
    after_load(engine)


def _trained(engine: Any) -> list[Entry]:
    return [entry for entry in entries(engine) if entry.key != "buffer"]


def main() -> None:
    """A rank: FOLDER [LEADER], in the process group of its environment."""
    die_with_launcher()
    hear_requests()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DeepSpeed talks, and stdout may be JSON
    folder, *leaders = map(Path, sys.argv[1:])
    rank, code = int(os.environ["RANK"]), 0
    try:
        config = read_config(folder)
        few_steps(config, join(config.runtime), folder, *leaders or [None])
        leave()
    except (Exception, KeyboardInterrupt) as error:
        code = report(error, rank, verbose=os.environ.get("CAME_TRACEBACK") == "1")
    os._exit(code)  # as in trainers.pretrain: what an engine keeps alive aborts the interpreter
