"""Whether a run, made small, learns on two ranks what it learns on one: the parity gate.

    one process, nothing sharded   S0 -step-> S1 -step-> S2 ...
    two, as configured             S0 -step-> T1   S1 -step-> T2 ...     is each T its S?

Both worlds compute the same micro batches, and each step of two begins where one has stood, so that
their gradients are alike bit for bit and what differs is the order of additions.  Left to itself a
run in bfloat16 is another one after three steps, whoever adds up: weights round to other numbers.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from launch.devices import num_gpus
from launch.local import Outcome, run_local
from trainers.checks import few_steps, reduced
from trainers.config import Config
from trainers.data.splits import open_phases
from trainers.errors import ParityError
from trainers.failures import report_outcome

State = Mapping[str, Tensor]

# float32 rounds to 6e-8, and sums of some hundred numbers that cancel to some 1e-6.
_SUMS = 1e-5
# GPUs add up in no fixed order in the backward of attention and of embeddings, in their own dtype.
_ON_GPUS = {"float32": 1e-5, "bfloat16": 2**-8}
# What is stored may be rounded to the neighbour: a bfloat16 number 2^-8 of itself away; an int8
# code 1/127 of the largest in its block, and a rank's border begins a new block; of 10,000 signs
# near zero one may flip, which is twice itself.
_STORED = {"float32": 0.0, "bfloat16": 2**-8, "int8": 2 / 127, "sign": 0.02}
_EPS = 2**-23  # of a parameter, in float32


@dataclass(frozen=True)
class Difference:
    """How far a tensor lies from the reference after a step."""

    step: int
    name: str  # key and parameter, or loss
    value: float  # as a share of its movement in this step (parameters), or of itself
    allowed: float

    @property
    def fits(self) -> bool:
        return self.value <= self.allowed


@dataclass(frozen=True)
class Parity:
    """What came out, of each tensor the step at which it was furthest off, the worst ones first."""

    what: str  # was run, in words
    differences: tuple[Difference, ...]

    @property
    def first_wrong(self) -> Difference | None:
        """The tensor that is furthest beyond what is allowed; None if all fit."""
        return next((d for d in self.differences if not d.fits), None)

    def worst(self, kind: str) -> Difference | None:
        """The largest difference of `param`, `loss` or `state`."""
        chosen = [d for d in self.differences if _kind(d.name) == kind]
        return max(chosen, key=lambda d: d.value, default=None)


def check_parity(config: Config) -> Parity:
    """Train `config` at its smallest in both worlds, on GPUs if there are two, and compare.

    Raises RunError of a rank that could not train, after it has said why itself.
    """
    with tempfile.TemporaryDirectory(prefix="came-check-") as name:
        folder = Path(name)
        reduced.write_text(folder)
        small = reduced.sharded(config, folder)
        open_phases(small)  # once, for all ranks
        one = train(reduced.unsharded(small), folder / "one")
        two = train(small, folder / "two", leader=folder / "one")
        on_gpus = num_gpus() >= reduced.RANKS
        found = differences(one, two, tolerance(config, on_gpus=on_gpus))
    return Parity(reduced.told(config), tuple(found))


def tolerance(config: Config, *, on_gpus: bool) -> float:
    """The relative difference that the formats of a run explain."""
    stored = _STORED[config.optimizer.momentum or "float32"]
    return max(_ON_GPUS[config.runtime.dtype] if on_gpus else _SUMS, stored)


def train(config: Config, folder: Path, leader: Path | None = None) -> list[State]:
    """Run `config`, step by step behind `leader` if there is one; the state after each step.

    Raises ParityError, with the exit code of a rank that could not train and has said why.
    """
    folder.mkdir()
    few_steps.write_config(config, folder)
    command = [
        sys.executable,
        "-c",
        few_steps.START,
        str(folder),
        *([str(leader)] if leader else []),
    ]
    if num_gpus() < reduced.RANKS:
        os.environ["DS_ACCELERATOR"] = "cpu"  # both worlds compute on the same kind of device
    outcome = run_local(command, config.launch.processes, config.runtime.threads)
    if outcome != Outcome(0):
        report_outcome(outcome)
        error = ParityError(f"{reduced.told(config)}: cannot be trained, see above")
        error.exit_code = outcome.exit_code
        raise error
    steps = range(config.train.steps + 1)
    return [load_file(folder / f"{step}{few_steps.SUFFIX}") for step in steps]


def differences(one: Sequence[State], two: Sequence[State], tolerance: float) -> list[Difference]:
    """Of every tensor its worst step; those that are furthest beyond what is allowed come first."""
    worst: dict[str, Difference] = {}
    for step in range(len(one)):
        for found in _compared(step, one[max(step - 1, 0)], one[step], two[step], tolerance):
            if found.name not in worst or _excess(found) > _excess(worst[found.name]):
                worst[found.name] = found
    return sorted(worst.values(), key=_excess, reverse=True)


def _compared(
    step: int, before: State, wanted: State, found: State, tolerance: float
) -> Iterator[Difference]:
    for name in sorted(wanted.keys() | found.keys()):
        if name not in wanted or name not in found:
            yield Difference(step, name, float("inf"), tolerance)
            continue
        right = wanted[name].double()
        moved = name.startswith("param/") and step > 0
        scale = right - before[name].double() if moved else right
        # A small step of a large number is lost in its last digit.
        allowed = tolerance + (_share(_EPS * right, scale) if moved else 0.0)
        yield Difference(step, name, _share(found[name].double() - right, scale), allowed)


def _excess(difference: Difference) -> float:
    return difference.value / difference.allowed


def _share(difference: Tensor, scale: Tensor) -> float:
    """|difference| / |scale|, Euclidean; infinite where it is no number, or the scale is zero."""
    length, whole = difference.norm().item(), scale.norm().item()
    if length == 0.0:
        return 0.0
    share = length / whole if whole else float("inf")
    return share if torch.tensor(share).isfinite() else float("inf")


def _kind(name: str) -> str:
    return {"param": "param", "loss": "loss"}.get(name.partition("/")[0], "state")
