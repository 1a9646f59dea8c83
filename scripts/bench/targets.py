"""The targets, and what a run says about them, so that nobody has to compute."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scripts.bench.clock import paired
from scripts.bench.contestants import ADAM_BYTES, ADAMW
from scripts.bench.ranks import SPLITS

MODEL = "bert-large"  # what the targets are set for
MAX_SHARDED, MAX_PEAK, MAX_COLLECTIVES = 1.10, 0.01, 0.003
MOST_SHARDED = f"<= {MAX_SHARDED:.2f}"
STATE = {"bfloat16": 0.253, "int8": 0.130, "sign": 0.02}  # of AdamW's
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Verdict:
    """One row of the table of targets; `met` is None for what was not measured."""

    number: int
    what: str
    target: str
    measured: str = NOT_MEASURED
    met: bool | None = None


def entry(record: dict[str, Any], name: str) -> dict[str, Any] | None:
    """What was measured of a contestant, or None if it did not take part."""
    for found in record["contestants"]:
        if found["name"] == name and found["seconds"]:
            return found
    return None


def ratio(record: dict[str, Any], over: str, under: str) -> dict[str, float] | None:
    """The spread of the ratio of two contestants' times in the rounds they share."""
    first, second = entry(record, over), entry(record, under)
    if first is None or second is None:
        return None
    return paired(first["seconds"], second["seconds"])


def sharded_ratio(world: dict[str, Any]) -> dict[str, float]:
    """The slowest rank's step times the world size, over the unsharded step."""
    slowest = max(world["ranks"], key=lambda seconds: sorted(seconds)[len(seconds) // 2])
    return paired(slowest, world["unsharded"], world["world_size"])


def verdicts(record: dict[str, Any]) -> list[Verdict]:
    """What one run says about each target."""
    ours = f"CAME {record['fused']}"
    cpu, gpu = (record if record["device"] == device else None for device in ("cpu", "cuda"))
    return [
        _time(1, "CAME / fused AdamW, CPU", cpu, f"{ours} float32", 1.20),
        _time(2, "CAME, bfloat16 momentum / fused AdamW, CPU", cpu, f"{ours} bfloat16", 1.0),
        _published(cpu, f"{ours} float32"),
        _time(4, "CAME / fused AdamW, GPU", gpu, f"{ours} float32", 1.0),
        _time(5, "CAME, bfloat16 momentum / fused AdamW, GPU", gpu, f"{ours} bfloat16", 0.75),
        *_sharded(record),
        *(_state(record, ours, momentum, most) for momentum, most in STATE.items()),
        _peak(record, ours),
    ]


def _time(number: int, what: str, record: dict[str, Any] | None, name: str, most: float) -> Verdict:
    return _judge(
        Verdict(number, f"step: {what}", f"<= {most:.2f}"),
        ratio(record, name, ADAMW) if record else None,
        lambda value: value <= most,
    )


def _published(record: dict[str, Any] | None, name: str) -> Verdict:
    return _judge(
        Verdict(3, "step: came-pytorch / CAME, CPU", ">= 12"),
        ratio(record, "came-pytorch", name) if record else None,
        lambda value: value >= 12,
    )


def _judge(
    verdict: Verdict, found: dict[str, float] | None, met: Callable[[float], bool]
) -> Verdict:
    if found is None:
        return verdict
    words = f"{found['median']:.2f} ({found['q1']:.2f} to {found['q3']:.2f}, n = {found['n']})"
    return Verdict(verdict.number, verdict.what, verdict.target, words, met(found["median"]))


def _sharded(record: dict[str, Any]) -> list[Verdict]:
    times = {
        split: Verdict(6, f"slowest rank's step x ranks / unsharded step, {split}", MOST_SHARDED)
        for split in SPLITS
    }
    sums = Verdict(7, "sums over the ranks per step; their bytes / ZeRO's", "2; <= 0.3 %")
    if not record["sharded"]:
        return [*times.values(), sums]
    worst = {split: _worst(record, split) for split in SPLITS}
    shares = [world["collective_bytes"] / zero_bytes(record) for world in record["sharded"]]
    counts = {world["num_collectives"] for world in record["sharded"]}
    return [
        *(_judge(times[split], worst[split], lambda v: v <= MAX_SHARDED) for split in SPLITS),
        Verdict(
            sums.number,
            sums.what,
            sums.target,
            f"{', '.join(map(str, sorted(counts)))}; {100 * max(shares):.3f} %",
            counts == {2} and max(shares) <= MAX_COLLECTIVES,
        ),
    ]


def _worst(record: dict[str, Any], split: str) -> dict[str, float] | None:
    found = [sharded_ratio(world) for world in record["sharded"] if world["split"] == split]
    return max(found, key=lambda ratios: ratios["median"], default=None)


def zero_bytes(record: dict[str, Any]) -> int:
    """What ZeRO hands to its own collectives: all gradients once, all parameters once."""
    return 2 * record["param_bytes"]


def _state(record: dict[str, Any], ours: str, momentum: str, most: float) -> Verdict:
    verdict = Verdict(8, f"bytes of state / AdamW's 8, {momentum} momentum", f"<= {most:g}")
    found = entry(record, f"{ours} {momentum}")
    if found is None:
        return verdict
    share = found["state_bytes"] / record["num_params"] / ADAM_BYTES
    return Verdict(8, verdict.what, verdict.target, f"{share:.4f}", share <= most)


def _peak(record: dict[str, Any], ours: str) -> Verdict:
    verdict = Verdict(9, "extra memory at the peak of a step / bytes of parameters", "<= 1 %")
    peaks = {
        found["name"]: found["peak_bytes"]
        for found in record["contestants"]
        if found["name"].startswith(ours) and isinstance(found["peak_bytes"], int)
    }
    if not peaks:
        return verdict
    name = max(peaks, key=lambda each: peaks[each])
    share = peaks[name] / record["param_bytes"]
    return Verdict(
        9, verdict.what, verdict.target, f"{100 * share:.2f} % ({name})", share <= MAX_PEAK
    )
