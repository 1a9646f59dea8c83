"""The examples run, and what they claim is so."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import nn

from came import CAME, bind
from scripts.examples import bare_loop
from tests.ranks import run_ranks
from trainers.deepspeed_keys import TOP_LEVEL, ZERO

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "scripts" / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2")


def run_example(*words: str) -> str:
    paths = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, *words],
        cwd=EXAMPLES,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_bare_loop_learns() -> None:
    losses = bare_loop.main()
    assert losses[-1] < 0.05 < 1 < losses[0]  # vowels of a word: their variance is 1.9


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_trainer_of_transformers(ranks: int) -> None:
    launcher = TORCHRUN if ranks > 1 else ()
    deepspeed_words = ("--deepspeed", "2") if ranks > 1 else ()
    output = run_example(*launcher, "hf_trainer.py", "--cpu", "--steps", "20", *deepspeed_words)
    losses = [float(loss) for loss in re.findall(r"'loss': '?([\d.]+)", output)]
    assert losses[-1] < losses[0] - 1  # from random bytes to the common ones
    kept = "28 parameters (10 factored), 118,528 numbers, 501,032 bytes of state"
    assert f"{kept}, {ranks} rank(s)" in output


def snippet(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the snippet for Lightning defines; Lightning itself is not installed here."""

    def remember(**settings: Any) -> dict[str, Any]:
        return settings

    lightning = types.ModuleType("lightning")
    lightning.LightningModule, lightning.Trainer = nn.Module, remember
    strategies = types.ModuleType("lightning.pytorch.strategies")
    strategies.DeepSpeedStrategy = remember
    monkeypatch.setitem(sys.modules, "lightning", lightning)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", types.ModuleType("lightning.pytorch"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch.strategies", strategies)
    (code,) = re.findall(r"```python\n(.*?)```", (EXAMPLES / "lightning.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_snippet_for_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    names = snippet(monkeypatch)
    config = names["trainer"]["strategy"]["config"]
    assert config.keys() <= TOP_LEVEL  # DeepSpeed swallows a typo
    assert config["zero_optimization"].keys() <= ZERO
    # Lightning refuses the one, and fills the other in.
    assert not {"gradient_accumulation_steps", "train_micro_batch_size_per_gpu"} & config.keys()
    run_ranks(initialize_as_lightning_does, 1, config)
    module = names["Pretraining"]()
    module.layer = nn.Linear(3, 4)
    assert isinstance(module.configure_optimizers(), CAME)


def initialize_as_lightning_does(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3))
    engine, *_ = deepspeed.initialize(
        config={"train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1, **config},
        model=module,
        model_parameters=filter(lambda p: p.requires_grad, module.parameters()),
        optimizer=CAME(module.parameters(), lr=2e-4, weight_decay=0.01),
        dist_init_required=False,
    )
    assert [row.rule for row in bind(engine).rows].count("factored") == 2
    engine.backward(engine(torch.ones(4, 6)).square().sum())
    engine.step()
    assert engine.gradient_clipping() == 0
