"""How long a save keeps the training waiting: in the background, and as torch.save does it.

    python -m scripts.bench_checkpoint --out runs/bench/checkpoint.json     GPT-2's parameters
    python -m scripts.bench_checkpoint --model bert-large --device cuda     2.7 GB of state
    python -m scripts.bench_checkpoint --table checkpoint.json

One process trains the model in float32 with CAME, `--tokens` in one row at each step.  In a round a
step, a save in the background, steps until it is committed, a step, torch.save; both saves hold the
same numbers and come right after a step, as they do in training, and what one has left to the disk
is on it before the next begins.  The training waits where the save begins and before the next
update, until the copy is there.  What copy and write take from the cores that train is in the times
of the steps beside them.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from came import CAME
from came.state import entries
from scripts.bench.clock import paired, spread
from scripts.bench.machine import describe_machine
from trainers.run.writer import Writer

STALL, COMMITTED, TORCH, TORCH_SYNC = (
    "background: training waits",
    "background: until committed, beside steps",
    "torch.save",
    "torch.save and fsync",
)
BERTS = {
    "bert-large": (24, 1024, 30522, 512),
    "toy": (2, 64, 500, 512),
}  # layers, width, words, positions
ALONE, FIRST, BESIDE = "no save", "the copy of a save", "the writing of a save"


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
    parser.add_argument("--model", choices=("gpt2", *BERTS), default="gpt2")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--momentum", default="float32")
    parser.add_argument("--tokens", type=int, default=512, help="of a step")
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
            "tokens": options.tokens,
            "machine": describe_machine(torch.device(options.device)),
            **measure(Training(engine, options.tokens, folder), options.rounds),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def make_engine(model: str, momentum: str, device: torch.device) -> Any:
    """A model and its optimizer, with the attributes of an engine."""
    torch.manual_seed(0)
    module = make_model(model).to(device).train()
    optimizer = CAME(module.parameters(), lr=1e-4, momentum=momentum)
    return SimpleNamespace(module=module, basic_optimizer=optimizer, optimizer=optimizer)


def make_model(name: str) -> PreTrainedModel:
    """The model of transformers with the shapes of `MODELS`."""
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config())
    layers, width, words, positions = BERTS[name]
    return BertForPreTraining(
        BertConfig(
            vocab_size=words,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 64),
            intermediate_size=4 * width,
            max_position_embeddings=positions,
        )
    )


class Training:
    """Steps of a model on one row, and a writer of its state."""

    def __init__(self, engine: Any, tokens: int, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.writer = Writer(folder / "checkpoints", keep=2)
        device = next(engine.module.parameters()).device
        self._ids = torch.arange(tokens, device=device)[None] % engine.module.config.vocab_size
        self._saves = 0

    def step(self) -> tuple[float, float]:
        """Seconds of a step, and of them those in which its update waited for a copy."""
        synchronize()
        begin = time.perf_counter()
        logits = self.engine.module(input_ids=self._ids)[0]
        cross_entropy(logits[0], self._ids[0]).backward()
        before = time.perf_counter()
        self.writer.copied()
        waited = time.perf_counter() - before
        self.engine.optimizer.step()
        self.engine.optimizer.zero_grad()
        synchronize()
        return time.perf_counter() - begin, waited

    def begin_save(self) -> float:
        """Seconds to start a save, listing the tensors included, as a step of training does."""
        synchronize()
        self._saves += 1
        begin = time.perf_counter()
        found = entries(self.engine)
        self.writer.start(self._saves, found, identity={}, setting={}, extra={})
        return time.perf_counter() - begin


def measure(training: Training, rounds: int) -> dict[str, Any]:
    """Seconds of each kind of save in each round, and of the steps beside them."""
    times: dict[str, list[float]] = {k: [] for k in (STALL, COMMITTED, TORCH, TORCH_SYNC)}
    steps: dict[str, list[float]] = {ALONE: [], FIRST: [], BESIDE: []}
    for _ in range(2):
        training.step()
    first = training.begin_save() + training.step()[1]  # allocates the buffer
    training.writer.settle()
    for number in range(rounds):
        steps[ALONE].append(training.step()[0])
        begin = time.perf_counter()
        stall = training.begin_save()
        seconds, waited = training.step()
        times[STALL].append(stall + waited)
        steps[FIRST].append(stall + seconds)
        while training.writer.is_writing():
            seconds, _ = training.step()
            if training.writer.is_writing():
                steps[BESIDE].append(seconds)
        training.writer.settle()
        times[COMMITTED].append(time.perf_counter() - begin)
        steps[ALONE].append(training.step()[0])
        plain, synced = torch_save(training.engine, training.folder / "torch.pt")
        times[TORCH].append(plain)
        times[TORCH_SYNC].append(synced)
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return {
        "bytes": training.writer.num_bytes,
        "first stall": first,
        "seconds": times,
        "steps": steps,
    }


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
        own = spread(values)
        ratios = [paired(values, times[under])["median"] for under in (TORCH, TORCH_SYNC)]
        lines.append(
            f"| {name} | {own['median']:.3f} | {own['q1']:.3f} to {own['q3']:.3f} | {own['n']} | "
            f"{ratios[0]:.3f} | {ratios[1]:.3f} |"
        )
    lines += [
        "",
        f"| a step of {record['tokens']} tokens beside | seconds, median | quartiles | n |",
    ]
    lines += ["|---|---|---|---|"]
    for name, values in record["steps"].items():
        if values:
            own = spread(values)
            told = f"{own['median']:.3f} | {own['q1']:.3f} to {own['q3']:.3f} | {own['n']}"
            lines.append(f"| {name} | {told} |")
    lines += ["", f"The first save, which allocates the buffer: {record['first stall']:.3f} s."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
