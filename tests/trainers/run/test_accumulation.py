"""Micro batches add up to their batch.

The story: our objectives gave DeepSpeed a dataclass, which it does not look into for tensors. So it
hung no hook on the backward, and in bfloat16 at stage 1 the gradients of a micro batch were not
cleared before the next: of n micro batches the first counted n times, the last one once.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.ranks import run_ranks
from trainers.checks import few_steps, reduced
from trainers.checks.few_steps import SUFFIX
from trainers.compose import compose
from trainers.data.splits import open_phases
from trainers.run.distributed import World


def first_steps(folder: str) -> None:
    """One step each, in float32 and in bfloat16, on one rank with eight micro batches."""
    path = Path(folder)
    for dtype in ("float32", "bfloat16"):
        words = ["experiment=quickstart", f"runtime.dtype={dtype}"]
        small = reduced.sharded(compose(words, 2), path)
        config = replace(small, train=replace(small.train, steps=1))
        (path / dtype).mkdir()
        world = World(0, 1, torch.device("cpu"))
        few_steps.few_steps(reduced.unsharded(config), world, path / dtype, None)


def test_in_bfloat16_as_in_float32(tmp_path: Path) -> None:
    reduced.write_text(tmp_path)
    open_phases(reduced.sharded(compose(["experiment=quickstart"], 2), tmp_path))
    run_ranks(first_steps, 1, str(tmp_path))
    exact, half = (load_file(tmp_path / d / f"1{SUFFIX}") for d in ("float32", "bfloat16"))
    name = "exp_avg_sq/model.cls.predictions.transform.LayerNorm.bias"
    # Squares of gradients that are right to some hundredths; added up wrong they were ten times as
    # large, and more.
    largest = exact[name].max().item()
    torch.testing.assert_close(half[name], exact[name], rtol=0.2, atol=0.01 * largest)
