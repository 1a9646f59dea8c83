"""A plan for people: all optimizers side by side, the chosen one in detail."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from trainers.phases import finds_micro_batches
from trainers.planner.plan import Row, RunPlan

_PARTS = {
    "parameters": "parameters",
    "gradients": "gradients, kept or summed over micro batches",
    "master": "float32 copy of the parameters",
    "state": "optimizer state",
    "sums": "what the optimizer sums over the ranks",
    "buffers": "buffers of DeepSpeed that stay",
    "activations": "activations of one micro batch (estimated)",
    "communication": "buffers of DeepSpeed while it runs backward",
    "step": "gradients once more while it updates, instead of the last two",
    "total": "most at a time",
    "host": "on the host (offload)",
}


def show(plan: RunPlan, console: Console) -> None:
    """Print the plan."""
    for line in _head(plan):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_side_by_side(plan))
    console.print(_detail(plan.rows[plan.config.optimizer.name], plan.config.optimizer.name))


def _head(plan: RunPlan) -> Iterator[str]:
    config, work, found = plan.config, plan.work, finds_micro_batches(plan.config)
    zero = f"ZeRO {config.zero.stage}{', offload' if config.zero.offload_optimizer else ''}"
    yield (
        f"{config.experiment}: {config.model.name}, {plan.num_params / 1e6:,.1f} M parameters, "
        f"{plan.vocab_size:,} entries of vocabulary"
    )
    yield (
        f"{plan.world_size} GPUs on {config.launch.nodes} node(s), {zero}, {config.runtime.dtype}, "
        f"batch {config.batch.global_size:,} in micro batches "
        + ("as large as fit" if found else f"of {config.batch.micro_size}")
    )
    if found:
        sent = ", and what is sent in a step" if config.zero.stage >= 2 else ""
        yield f"micro batches are found at the start: activations{sent} are not known before"
    yield (
        f"{work.steps:,} steps, {work.samples:,} samples, {work.tokens / 1e9:,.2f} billion tokens "
        f"(places, padding included), {work.flops:.2e} FLOPs"
    )
    if work.hours is None:
        yield (
            f"time: not known; {plan.device} has no peak for {config.runtime.dtype} on record, "
            "runtime.peak_tflops=... gives one"
        )
    else:
        yield (
            f"time: {work.hours:,.1f} hours if {plan.mfu:.0%} of the peak of {plan.device} is used "
            "(an assumption: --mfu)"
        )


def _side_by_side(plan: RunPlan) -> Table:
    offloads = plan.config.zero.offload_optimizer
    table = Table(title="per GPU, GB (1e9 bytes)", title_justify="left")
    table.add_column("optimizer", overflow="fold")  # on a narrow terminal no digit is left out
    heads = ["state, whole", "state", "kept", "most at a time", "sent a step"]
    for head in [*heads, *(["host"] if offloads else [])]:
        table.add_column(head, justify="right", overflow="fold")
    for name, row in plan.rows.items():
        memory = row.memory
        sizes = [row.state_bytes, memory.state, memory.kept, memory.total, row.communication.total]
        cells = [_gb(size) for size in [*sizes, *([memory.host] if offloads else [])]]
        style = "bold" if name == plan.config.optimizer.name else None
        table.add_row(name, *cells, style=style)
    return table


def _detail(row: Row, name: str) -> Table:
    table = Table(title=f"{name} in detail", title_justify="left", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    sizes = row.memory.as_dict()
    for part, words in _PARTS.items():
        if sizes[part] != 0:
            table.add_row(words, _with_unit(sizes[part]), style="bold" if part == "total" else None)
    table.add_section()
    for part, size in row.communication.as_dict().items():
        table.add_row(f"sent in a step: {part}", _with_unit(size))
    return table


def _with_unit(size: int | None) -> str:
    return "not known" if size is None else f"{_gb(size)} GB"


def _gb(size: int | None) -> str:
    return "-" if size is None else f"{size / 1e9:,.3f}"
