"""Whether a run, made small, learns on two ranks what it learns on one: the parity gate.

    one process, nothing sharded     the reference
    the same, backwards              micro batches in the opposite order: what rounding does
    two processes, as configured     must differ from the reference no more than that allows

Both worlds compute the same micro batches, so their gradients begin bit for bit alike, and what
differs is the order of additions.  Where the reference itself depends on that order (the biases of
attention's keys have no gradient but rounding), the run backwards shows it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
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

# Relative, of five steps.  float32 rounds to 6e-8, sums of some hundred numbers to 1e-6.
# In bfloat16 a weight that lies between two numbers may be rounded to the other one, 2^-8 of itself
# away; all that it feeds follows.
_BASE = {"float32": 1e-5, "bfloat16": 2**-8}
# What is stored may be rounded to the neighbour: a code of int8 is 1/127 of the largest in its
# block, and a rank's border begins a new block; of 10,000 signs near zero one may flip, which is
# twice itself.
_STORED = {"float32": 0.0, "bfloat16": 2**-8, "int8": 2 / 127, "sign": 0.02}
_SPREAD = 10  # one order of additions may differ so many times as much as another one
_NOISE = 0.01  # beyond, a tensor is what rounding makes of it, and shows nothing
_EPS = 2**-23


@dataclass(frozen=True)
class Difference:
    """How far a tensor lies from the reference, as a share of its movement, or of itself."""

    name: str
    value: float  # two ranks
    rounding: float  # one process backwards
    allowed: float

    @property
    def is_noise(self) -> bool:
        """Whether rounding alone decides this tensor."""
        return self.rounding > _NOISE

    @property
    def fits(self) -> bool:
        return self.value <= self.allowed


@dataclass(frozen=True)
class Parity:
    """What came out, tensors by how far they are beyond what is allowed."""

    what: str  # was run, in words
    differences: tuple[Difference, ...]

    @property
    def fits(self) -> bool:
        return all(difference.fits for difference in self.differences)

    def worst(self, kind: str) -> Difference | None:
        """The largest difference of `param`, `loss` or `state` that is not noise."""
        chosen = [d for d in self.differences if _kind(d.name) == kind and not d.is_noise]
        return max(chosen, key=lambda d: d.value, default=None)

    @property
    def first_wrong(self) -> Difference | None:
        return next((d for d in self.differences if not d.fits), None)


def check_parity(config: Config) -> Parity:
    """Train `config` at its smallest in both worlds, on GPUs if there are two, and compare.

    Raises RunError of a rank that could not train, after it has said why itself.
    """
    with tempfile.TemporaryDirectory(prefix="came-check-") as name:
        folder = Path(name)
        reduced.write_text(folder)
        small = reduced.sharded(config, folder)
        open_phases(small)  # once, for all ranks
        one = _train(reduced.unsharded(small), folder / "one", ("forwards", "backwards"))
        two = _train(small, folder / "two", ("forwards",))
        found = differences(one["forwards"], one["backwards"], two["forwards"], tolerance(config))
    return Parity(reduced.told(config), tuple(found))


def tolerance(config: Config) -> float:
    """The relative difference that the formats of a run explain."""
    stored = _STORED[config.optimizer.momentum or "float32"]
    return max(_BASE[config.runtime.dtype], stored)


def _train(config: Config, folder: Path, names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
    folder.mkdir()
    few_steps.write_config(config, folder)
    command = [sys.executable, "-c", few_steps.START, str(folder), *names]
    if num_gpus() < reduced.RANKS:
        os.environ["DS_ACCELERATOR"] = "cpu"  # both worlds compute on the same kind of device
    outcome = run_local(command, config.launch.processes, config.runtime.threads)
    if outcome != Outcome(0):
        report_outcome(outcome)
        error = ParityError(f"{reduced.told(config)}: cannot be trained, see above")
        error.exit_code = outcome.exit_code
        raise error
    return {name: load_file(folder / f"{name}{few_steps.SUFFIX}") for name in names}


def differences(
    reference: Mapping[str, Tensor],
    backwards: Mapping[str, Tensor],
    sharded: Mapping[str, Tensor],
    tolerance: float,
) -> list[Difference]:
    """Every tensor after the steps, and the losses; those that are furthest beyond come first."""
    names = sorted(reference.keys() | sharded.keys())
    missing = [name for name in names if name not in reference or name not in sharded]
    if missing:
        inf = float("inf")
        return [Difference(name, inf, 0.0, 0.0) for name in missing]
    found = list(_compared(reference, backwards, sharded, tolerance))
    return sorted(found, key=lambda d: d.value / d.allowed, reverse=True)


def _compared(
    reference: Mapping[str, Tensor],
    backwards: Mapping[str, Tensor],
    sharded: Mapping[str, Tensor],
    tolerance: float,
) -> Iterator[Difference]:
    for name, tensor in reference.items():
        if name.startswith("before/"):
            continue
        wanted = tensor.double()
        scale, resolution = wanted, 0.0
        if name.startswith("after/param/"):
            scale = wanted - reference[name.replace("after", "before", 1)].double()
            resolution = _share(_EPS * wanted, scale)  # of a small step of a large number
        rounding = _share(backwards[name].double() - wanted, scale)
        allowed = max(tolerance + resolution, _SPREAD * rounding)
        value = _share(sharded[name].double() - wanted, scale)
        yield Difference(name.removeprefix("after/"), value, rounding, allowed)


def _share(difference: Tensor, scale: Tensor) -> float:
    """|difference| / |scale|, Euclidean; infinite where it is no number, or the scale is zero."""
    length, whole = difference.norm().item(), scale.norm().item()
    if length == 0.0:
        return 0.0
    share = length / whole if whole else float("inf")
    return share if torch.tensor(share).isfinite() else float("inf")


def _kind(name: str) -> str:
    return {"param": "param", "losses": "loss"}.get(name.partition("/")[0], "state")
