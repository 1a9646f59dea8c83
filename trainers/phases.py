"""Which samples a step reads: phases of a run and a growing batch, as a pure function of the step.

    steps      1 . . . . . . . . . 90 91 . . 100     phases: share 0.9 of length 128, 0.1 of 512
    stretches  [16][32][48][   64   ] [   64   ]     a ramp from 16 to 64 at the start of the first
    positions  0 16 48 ...                           the samples of all steps before

Positions count on through phases, so that what was read is one whole number, and two phases of the
same length share out the data instead of reading it twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from trainers.config import Config, PhaseConfig


@dataclass(frozen=True)
class Stretch:
    """Steps `first` to `last` (1 is the first of a run) of one phase and one size of the batch."""

    phase: int
    first: int
    last: int
    size: int  # samples of a step, over all ranks
    position: int  # of the first sample

    def begin(self, step: int) -> int:
        """How many samples the steps before `step` have read."""
        return self.position + (step - self.first) * self.size

    def positions(self, step: int) -> range:
        """Of the samples of `step`."""
        return range(self.begin(step), self.begin(step + 1))


@dataclass(frozen=True)
class Plan:
    """All stretches of a run, in order and without gaps."""

    stretches: tuple[Stretch, ...]

    def at(self, step: int) -> Stretch:
        """The stretch that `step` lies in."""
        return self.stretches[bisect_right([s.first for s in self.stretches], step) - 1]


def plan(config: Config) -> Plan:
    """The stretches of a whole run; `problems_of_phases` has found nothing wrong with it."""
    found: list[Stretch] = []
    position = 0
    for phase, first, last, size in _sizes(config):
        found.append(Stretch(phase, first, last, size, position))
        position = found[-1].begin(last + 1)
    return Plan(tuple(found))


def phase_configs(config: Config) -> tuple[Config, ...]:
    """The configuration of each phase by itself; the whole run's, if it has no phases."""
    if not config.train.phases:
        return (config,)
    return tuple(_inside(config, phase) for phase in config.train.phases)


def shortest_length(config: Config) -> int:
    """Tokens of the shortest sequences of any phase, which sentences in the store must fit."""
    return min(inside.objective.sequence_length for inside in phase_configs(config))


def batch_units(config: Config) -> tuple[int, ...]:
    """For each phase the samples that every batch in it is a multiple of."""
    sizes = [inside.batch.global_size for inside in phase_configs(config)]
    return (config.batch.ramp_from or sizes[0], *sizes[1:])


def with_micro_sizes(config: Config, world_size: int) -> Config:
    """`config` with a number where the micro batch was 0: as large as every batch allows."""
    units = [unit // world_size for unit in batch_units(config)]
    given = config.batch.micro_size
    phases = tuple(
        replace(phase, micro_size=(given if phase.micro_size is None else phase.micro_size) or unit)
        for phase, unit in zip(config.train.phases, units, strict=False)
    )
    return replace(
        config,
        batch=replace(config.batch, micro_size=given or units[0]),
        train=replace(config.train, phases=phases),
    )


def finds_micro_batches(config: Config) -> bool:
    """Whether micro batches are tried at the start; those in `config` are then the most there can
    be, and what depends on them is not known before."""
    return config.runtime.micro_batch == "auto"


def _inside(config: Config, phase: PhaseConfig) -> Config:
    """`config` with what the phase changes, and without phases."""

    def changed(*names: str) -> dict[str, int]:
        return {name: getattr(phase, name) for name in names if getattr(phase, name) is not None}

    return replace(
        config,
        objective=replace(config.objective, **changed("sequence_length", "max_predictions")),
        batch=replace(config.batch, **changed("global_size", "micro_size")),
        train=replace(config.train, phases=()),
    )


def _last_steps(config: Config) -> list[int]:
    """The last step of each phase: what rounding leaves goes to the later one."""
    shares = [phase.share for phase in config.train.phases] or [1.0]
    return [round(share * config.train.steps) for share in accumulate(shares)]


def _sizes(config: Config) -> Iterator[tuple[int, int, int, int]]:
    """Phase, first step, last step and samples of a step, for each stretch."""
    first = 1
    for phase, (inside, last) in enumerate(
        zip(phase_configs(config), _last_steps(config), strict=True)
    ):
        if phase == 0:
            for end, size in _ramp(config, inside.batch.global_size):
                yield 0, first, end, size
                first = end + 1
        if first <= last:
            yield phase, first, last, inside.batch.global_size
        first = last + 1


def _ramp(config: Config, full: int) -> Iterator[tuple[int, int]]:
    """Last step and samples of a step while the batch grows, in multiples of its first size."""
    start, steps = config.batch.ramp_from, round(config.batch.ramp_fraction * config.train.steps)
    levels = full // start - 1 if start else 0
    before = 0
    for level in range(levels):
        # Step s, of `steps`, has the level (s - 1) * levels // steps.
        end = -(-(level + 1) * steps // levels)
        if end > before:
            yield end, start * (level + 1)
        before = end


def problems_of_phases(config: Config, world_size: int) -> Iterator[str]:
    """What keeps a run of these phases from being planned, in words."""
    yield from _wrong_shares(config)
    batch, full = config.batch, phase_configs(config)[0].batch.global_size
    if (batch.ramp_from > 0) != (batch.ramp_fraction > 0):
        yield (
            f"batch.ramp_from={batch.ramp_from} and batch.ramp_fraction={batch.ramp_fraction}: "
            "give both for a batch that grows, or 0 for both"
        )
    elif batch.ramp_from:
        yield from _wrong_ramp(config, full, world_size)


def _wrong_shares(config: Config) -> Iterator[str]:
    phases = config.train.phases
    if not phases:
        return
    shares = [phase.share for phase in phases]
    if any(share <= 0 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        yield f"train.phases: shares must be above 0 and add up to 1, not {shares}"
    elif len(set(_last_steps(config))) < len(phases) or _last_steps(config)[0] == 0:
        yield f"train.phases: with train.steps={config.train.steps} a phase has no step at all"


def _wrong_ramp(config: Config, full: int, world_size: int) -> Iterator[str]:
    start, inside = config.batch.ramp_from, phase_configs(config)[0]
    unit = max(inside.batch.micro_size, 1) * world_size
    if full % start or start > full:
        yield (
            f"batch.ramp_from={start} does not divide the batch of {full} samples that it "
            "grows to: it grows in steps of its first size"
        )
    elif start % unit:
        yield (
            f"batch.ramp_from={start} is not divisible by {unit}, the micro batch times "
            f"{world_size} processes: so the smaller batches cannot be dealt out"
        )
    if round(config.batch.ramp_fraction * config.train.steps) > _last_steps(config)[0]:
        yield (
            f"batch.ramp_fraction={config.batch.ramp_fraction} reaches beyond the first phase: "
            "the batch must have grown before it ends"
        )
