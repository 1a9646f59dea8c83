"""Time and memory of optimizers on the parameters of real models, side by side in one run.

    python -m scripts.bench_optimizer --out runs/bench/cpu.json       BERT-Large on the CPU
    python -m scripts.bench_optimizer --device cuda --out gpu.json    the same on a GPU
    python -m scripts.bench_optimizer --model gpt2 --rounds 40        GPT-2, to the terminal alone
    python -m scripts.bench_optimizer --only "torch AdamW fused" "CAME eager int8"
    python -m scripts.bench_optimizer --table cpu.json gpu.json > docs/benchmarks.md

BERT-Large in float32 takes about 12 GB of memory.
"""

import argparse
import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from scripts.bench.contestants import (
    Contestant,
    all_contestants,
    default_contestants,
    fused_kernel,
    make_params,
)
from scripts.bench.machine import describe_machine
from scripts.bench.measure import measure_steps, measure_worlds
from scripts.bench.memory import peak_bytes
from scripts.bench.shapes import MODELS, model_shapes
from scripts.bench.tables import document


def main(words: list[str] | None = None) -> None:
    options = parse(words)
    if options.table:
        print(document([json.loads(path.read_text()) for path in options.table]), end="")
        return
    record = run(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(document([record]), end="")


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=MODELS, default="bert-large")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--slow-every", type=int, default=4, help="slow contestants are in each n-th round alone"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these contestants alone")
    parser.add_argument(
        "--worlds", nargs="*", type=int, default=[2, 4, 8], help="numbers of simulated ranks"
    )
    parser.add_argument("--threads", type=int, help="of the CPU; torch's choice by default")
    parser.add_argument("--out", type=Path, metavar="JSON", help="keep every single time here")
    parser.add_argument(
        "--table",
        nargs="+",
        type=Path,
        metavar="JSON",
        help="print runs that were kept",
    )
    options = parser.parse_args(words)
    options.contestants = choose(parser, torch.device(options.device), options.only)
    return options


def choose(
    parser: argparse.ArgumentParser, device: torch.device, only: list[str] | None
) -> list[Contestant]:
    if only is None:
        return default_contestants(device)
    known = {each.name: each for each in all_contestants(device)}
    unknown = [name for name in only if name not in known]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in known if name in only]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured in one run, and what it was measured on."""
    if options.threads:
        torch.set_num_threads(options.threads)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    shapes = model_shapes(options.model)
    num_params = sum(torch.Size(shape).numel() for _, shape in shapes)
    record = {
        "model": options.model,
        "device": options.device,
        "dtype": options.dtype,
        "fused": fused_kernel(device),
        "num_params": num_params,
        "param_bytes": num_params * dtype.itemsize,
        "machine": describe_machine(device),
    }
    peaks = peak_bytes(options.contestants, shapes, dtype, device, progress)
    record["memory_error"] = peaks.pop("error", None)

    params = make_params(shapes, dtype, device)
    steps = measure_steps(options.contestants, params, options.rounds, options.slow_every, progress)
    record["contestants"] = [{**found, "peak_bytes": peaks[found["name"]]} for found in steps]
    gc.collect()  # the optimizers with their state

    record["sharded"] = []
    for kernel in (fused_kernel(device), "eager"):
        sharded = Contestant("CAME", kernel, "float32")
        if not record["sharded"] and options.worlds:
            record["sharded_name"] = sharded.name
            record["sharded"] = measure_worlds(
                sharded, shapes, params, options.worlds, options.rounds, progress
            )
    return record


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
