"""A few steps of a small run, and all that they leave behind: what a rank of the parity gate does.

<folder>/config.json              what is run
<folder>/<name>.safetensors       what `few_steps` gives
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from came.state import entries, gather
from launch.local import die_with_launcher
from trainers.build import build_module, build_optimizer
from trainers.config import Config
from trainers.data.splits import open_phases
from trainers.failures import report
from trainers.run.distributed import World, join, leave
from trainers.run.engine import DTYPES, build_engine
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


def few_steps(config: Config, world: World, *, backwards: bool = False) -> dict[str, Tensor]:
    """Train all steps of `config`; every rank must call it.

    Returns whole tensors on every rank: `before/` and `after/` all that a checkpoint would hold, by
    key and name, and the `losses` of the steps.  `backwards` takes the micro batches of each step
    in the opposite order: the same sums, rounded otherwise.
    """
    data = open_phases(config)
    module = build_module(config, data[0]).to(world.device, DTYPES[config.runtime.dtype])
    set_speed(module, config.runtime)
    optimizer = build_optimizer(config.optimizer, config.runtime, module)
    engine, _ = build_engine(config, module, optimizer, world.world_size)
    guard(engine)
    stopping = Stopping(Listener(), world, config.runtime.timeout_seconds)
    found = {f"before/{name}": tensor for name, tensor in _all(engine).items()}
    losses = []
    engine.train()
    with Feed(config, data, world, 0) as feed:
        for step in range(1, config.train.steps + 1):
            rate = learning_rate(config.schedule, step, config.train.steps, config.optimizer.lr)
            micros = list(feed.step(step))
            order = reversed(micros) if backwards else iter(micros)
            loss = train_step(config, engine, world, order, rate, step, stopping)
            stopping.told()
            losses.append(world.sum(loss).double().cpu())
    found |= {f"after/{name}": tensor for name, tensor in _all(engine).items()}
    return {**found, "losses": torch.stack(losses)}


def _all(engine: object) -> dict[str, Tensor]:
    return {
        f"{entry.key}/{entry.name}": gather(entry)
        for entry in entries(engine)
        if entry.key != "buffer"  # nobody trains them
    }


def main() -> None:
    """A rank: the steps of FOLDER/config.json in the process group of its environment."""
    die_with_launcher()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # DeepSpeed talks, and stdout may be JSON
    folder, *names = Path(sys.argv[1]), *sys.argv[2:]
    rank = int(os.environ["RANK"])
    code = 0
    try:
        config = read_config(folder)
        world = join(config.runtime)
        for name in names:
            found = few_steps(config, world, backwards=name == "backwards")
            if world.rank == 0:
                whole = {key: tensor.contiguous() for key, tensor in found.items()}
                save_file(whole, folder / f"{name}{SUFFIX}")
        leave()
    except (Exception, KeyboardInterrupt) as error:
        code = report(error, rank, verbose=os.environ.get("CAME_TRACEBACK") == "1")
    os._exit(code)  # as in trainers.pretrain: what an engine keeps alive aborts the interpreter
