"""A run, or several, as markdown."""

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.bench.clock import spread
from scripts.bench.contestants import ADAM_BYTES, ADAMW
from scripts.bench.ranks import STREAMED
from scripts.bench.targets import MODEL, Verdict, ratio, sharded_ratio, verdicts, zero_bytes

MIB = 1 << 20
INTRODUCTION = """\
# Benchmarks of the optimizer

Made by `python -m scripts.bench_optimizer --table RUN.json ...`; the runs by
`python -m scripts.bench_optimizer --out RUN.json` (or `make bench`).

One run is one process. All contestants update the same parameters from the same gradients, one step
each in turn, round after round; a few warm-up steps come before. Ratios are taken within a round,
and the median and the quartiles of the rounds are given; n is how many rounds a contestant was in.
On a GPU times are those of the device (events), with the queue filled before. Memory is what a
step needs beyond what existed before it: on a GPU as torch's allocator counts it, on a CPU the
high-water mark of resident memory in a process of its own.
"""


def document(records: list[dict[str, Any]]) -> str:
    """All of it: the targets first, then each run."""
    parts = [INTRODUCTION, "## Targets\n", *_target_section(records)]
    for record in records:
        parts += _run_section(record)
    return "\n".join(parts).rstrip() + "\n"


def _target_section(records: list[dict[str, Any]]) -> Iterator[str]:
    rows: list[tuple[str, Verdict]] = []
    for record in records:
        if record["model"] != MODEL or record["dtype"] != "float32":
            yield f"({title(record)}: the targets are set for {MODEL} in float32.)\n"
        rows += [(title(record), verdict) for verdict in verdicts(record)]
    said = {verdict.what for _, verdict in rows if verdict.met is not None}
    head = ("#", "what", "target", "measured", "met?", "run")
    body = []
    for run, verdict in sorted(rows, key=lambda row: row[1].number):
        if verdict.met is not None:
            end = ("yes" if verdict.met else "**no**", run)
        elif verdict.what not in said:
            said.add(verdict.what)  # once, however many runs did not measure it
            end = ("-", "-")
        else:
            continue
        body.append((str(verdict.number), verdict.what, verdict.target, verdict.measured, *end))
    yield table(head, body)


def title(record: dict[str, Any]) -> str:
    commit = record["machine"].get("commit", "")[:7]
    return f"{record['model']}, {record['device']}, {record['dtype']}{commit and ', ' + commit}"


def _run_section(record: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {title(record)}\n"
    yield f"{record['num_params']:,} parameters, {record['param_bytes'] / MIB:,.0f} MiB\n"
    yield table(("", ""), list(record["machine"].items()))
    yield "\n### Steps\n"
    head = ("optimizer", "n", "ms, median", "min", "quartiles", "/ AdamW", "quartiles")
    yield table(
        (*head, "state, MiB", "/ AdamW's 8 B", "peak extra, MiB", "of parameters"),
        [_step_row(record, found) for found in record["contestants"] if found["seconds"]],
    )
    if "memory_error" in record:
        yield f"\n(A known buffer was measured to {record['memory_error'] / MIB:.2f} MiB.)"
    for found in record["contestants"]:
        if found["missing"]:
            yield f"\nNot measured: {found['name']}: {found['missing']}"
    if record["sharded"]:
        yield f"\n### {record['sharded_name']} on simulated ranks\n"
        yield from _sharded_section(record)


def _step_row(record: dict[str, Any], found: dict[str, Any]) -> tuple[str, ...]:
    times = spread([1e3 * each for each in found["seconds"] if each is not None])
    against = ratio(record, found["name"], ADAMW)
    peak = found["peak_bytes"]
    return (
        found["name"],
        str(times["n"]),
        f"{times['median']:,.1f}",
        f"{times['min']:,.1f}",
        f"{times['q1']:,.1f} to {times['q3']:,.1f}",
        f"{against['median']:.2f}" if against else "-",
        f"{against['q1']:.2f} to {against['q3']:.2f}" if against else "-",
        f"{found['state_bytes'] / MIB:,.1f}",
        f"{found['state_bytes'] / record['num_params'] / ADAM_BYTES:.4f}",
        f"{peak / MIB:,.1f}" if isinstance(peak, int) else str(peak),
        f"{100 * peak / record['param_bytes']:.2f} %" if isinstance(peak, int) else "-",
    )


def _sharded_section(record: dict[str, Any]) -> Iterator[str]:
    yield (
        "Each rank's own work, collectives apart. The ratio is that of the slowest rank's step, "
        "times the ranks, to the unsharded step of the same round. That step keeps a matrix in "
        "cache from pass to pass, and so does a rank that holds it whole; where every matrix is "
        "cut, each pass has to read all numbers again. What this alone costs, unsharded, is the "
        f"row `{STREAMED}`.\n"
    )
    head = ("sharding", "ranks", "n", "ratio, median", "min", "quartiles")
    rows = []
    for world in record["sharded"]:
        found = sharded_ratio(world)
        share = world["collective_bytes"] / zero_bytes(record)
        rows.append(
            (
                world["split"],
                str(world["world_size"]),
                str(found["n"]),
                f"{found['median']:.3f}",
                f"{found['min']:.3f}",
                f"{found['q1']:.3f} to {found['q3']:.3f}",
                str(world["num_collectives"]),
                f"{world['collective_bytes'] / MIB:.2f}",
                f"{100 * share:.3f} %",
            )
        )
    yield table((*head, "sums", "their MiB", "of ZeRO's bytes"), rows)
    yield (
        "\nZeRO's bytes are what it hands to its collectives: all gradients to a reduce-scatter, "
        f"all parameters to an all-gather, {zero_bytes(record) / MIB:,.0f} MiB here. "
        "On a ring an all-reduce sends its buffer twice, so the share of the traffic is up to "
        "twice that of the bytes."
    )


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
