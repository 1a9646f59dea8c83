"""How long a save keeps a step waiting: in the background, and as torch.save does it.

    python -m scripts.bench_checkpoint --out runs/bench/checkpoint.json     GPT-2's parameters
    python -m scripts.bench_checkpoint --model bert-large --device cuda     2.7 GB of state
    python -m scripts.bench_checkpoint --table checkpoint.json

One process holds the parameters in float32 and the state of CAME.  All kinds of saves hold the same
numbers and take turns; what one has left to the disk is on it before the next begins.  On a CPU
the copy is made by the cores that train, and is most of what can be saved.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from came import CAME
from came.state import entries
from scripts.bench.clock import paired, spread
from scripts.bench.machine import describe_machine
from scripts.bench.shapes import MODELS, model_shapes
from trainers.run.writer import Writer

STALL, COMMITTED, TORCH, TORCH_SYNC = (
    "background: the stall",
    "background: until committed, beside steps",
    "torch.save",
    "torch.save and fsync",
)


def main(words: list[str] | None = None) -> None:
    options = parse(words)
    record = json.loads(options.table.read_text()) if options.table else run(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record), end="")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--momentum", default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of the CPU; torch's choice by default")
    parser.add_argument("--folder", type=Path, help="on the disk that is measured; else /tmp")
    parser.add_argument("--out", type=Path, metavar="JSON")
    parser.add_argument("--table", type=Path, metavar="JSON", help="print a run that was kept")
    return parser.parse_args(words)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured in one run, and what it was measured on."""
    if options.threads:
        torch.set_num_threads(options.threads)
    engine = make_engine(options.model, options.momentum, torch.device(options.device))
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="bench-checkpoint-"))
    try:
        record = {
            "model": options.model,
            "momentum": options.momentum,
            "machine": describe_machine(torch.device(options.device)),
            **measure(engine, folder, options.rounds),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def make_engine(model: str, momentum: str, device: torch.device) -> Any:
    """Parameters and an optimizer that has made a step, with the attributes of an engine."""
    module = nn.Module()
    params = {
        name.replace(".", "/"): nn.Parameter(torch.randn(shape, device=device) * 0.02)
        for name, shape in model_shapes(model)
    }
    for name, param in params.items():
        module.register_parameter(name, param)
        param.grad = torch.full_like(param, 1e-3)
    optimizer = CAME(params.values(), lr=1e-4, momentum=momentum)
    optimizer.step()
    return SimpleNamespace(module=module, basic_optimizer=optimizer, optimizer=optimizer)


def measure(engine: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of each kind of save in each round, and how a step slows down beside one."""
    writer = Writer(folder / "checkpoints", keep=2)
    times: dict[str, list[float | None]] = {k: [] for k in (STALL, COMMITTED, TORCH, TORCH_SYNC)}
    quiet: list[float] = []
    beside: list[float] = []
    first = begin_save(writer, engine, 1)  # allocates the buffer
    writer.settle()
    for number in range(rounds):
        stall = begin_save(writer, engine, number + 2)
        since = time.perf_counter()
        steps = []
        while writer.is_writing():
            steps.append(timed(engine.basic_optimizer.step))
        writer.settle()
        times[STALL].append(stall)
        times[COMMITTED].append(stall + time.perf_counter() - since)
        beside += steps[:-1]  # the last may have ended after the save
        quiet += [timed(engine.basic_optimizer.step) for _ in range(3)]
        plain, synced = torch_save(engine, folder / "torch.pt")
        times[TORCH].append(plain)
        times[TORCH_SYNC].append(synced)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        "bytes": writer.num_bytes,
        "first stall": first,
        "seconds": times,
        "step quiet": quiet,
        "step beside a save": beside,
    }


def timed(action: Any) -> float:
    synchronize()
    begin = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - begin


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def begin_save(writer: Writer, engine: Any, step: int) -> float:
    """Seconds to start a save, listing the tensors included, as a step of training does."""
    return timed(lambda: writer.start(step, entries(engine), identity={}, setting={}, extra={}))


def torch_save(engine: Any, path: Path) -> tuple[float, float]:
    """Seconds until torch.save returns, and until the bytes are on the disk."""
    state = {"module": engine.module.state_dict(), "optimizer": engine.optimizer.state_dict()}
    begin = time.perf_counter()
    torch.save(state, path)
    plain = time.perf_counter() - begin
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return plain, time.perf_counter() - begin


def table(record: dict[str, Any]) -> str:
    """The run as Markdown."""
    times = record["seconds"]
    lines = [
        f"{record['model']}, momentum in {record['momentum']}, "
        f"{record['bytes'] / 1e9:.2f} GB of state; "
        + ", ".join(f"{key} {value}" for key, value in record["machine"].items()),
        "",
        "| save | seconds, median | quartiles | n | over torch.save | over torch.save and fsync |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in times.items():
        own = spread([value for value in values if value is not None])
        ratios = [paired(values, times[under])["median"] for under in (TORCH, TORCH_SYNC)]
        lines.append(
            f"| {name} | {own['median']:.3f} | {own['q1']:.3f} to {own['q3']:.3f} | {own['n']} | "
            f"{ratios[0]:.3f} | {ratios[1]:.3f} |"
        )
    lines += ["", f"The first stall, which allocates the buffer: {record['first stall']:.3f} s."]
    if record["step beside a save"]:
        ratio = statistics.median(record["step beside a save"]) / statistics.median(
            record["step quiet"]
        )
        lines.append(f"A step of the optimizer beside a save takes {ratio:.2f} times as long.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
