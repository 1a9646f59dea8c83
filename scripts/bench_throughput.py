"""Tokens per second of whole training steps: this project and transformers' Trainer + DeepSpeed.

    python -m scripts.bench_throughput --out runs/bench/throughput.json
    python -m scripts.bench_throughput --out x.json data=text data.path=wiki/ data.tokenizer=v.txt
    python -m scripts.bench_throughput --out x.json --variant objective.packing=true \\
        -- objective.sequence_length=512 objective.max_predictions=80
    python -m scripts.bench_throughput --device cuda model=bert_large batch.global_size=256 ...
    python -m scripts.bench_throughput --table x.json

Both train the same BERT (masked words and next sentence) from the same weights on the same samples
in one process, a few steps each in turn, with the same optimizer and DeepSpeed configuration; that
the losses agree is part of the output.  `key=value` words are those of `came-train`; each --variant
is our side once more with other words.
"""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from scripts.bench.clock import paired, spread
from scripts.bench.machine import describe_machine
from scripts.bench.tables import table

HF = "transformers Trainer + DeepSpeed"
OURS = "came-train"
# The CPU twin of BERT: 4 layers of 256, 30k words, length 128.
TWIN = (
    *("experiment=quickstart", "model=bert_tiny", "model.layers=4", "model.hidden=256"),
    *("model.heads=4", "model.intermediate=1024", "model.unigram_bias=false"),
    *("data.vocab_size=30522", "objective.sequence_length=128", "objective.max_predictions=20"),
    *("optimizer=adamw", "optimizer.lr=1e-4", "schedule=constant", "schedule.warmup_fraction=0"),
    *("batch.global_size=64", "checkpoint.every=0", "run.dir=runs/bench"),
)


def main(words: list[str] | None = None) -> None:
    options = parse(words)
    if options.table:
        print("\n".join(document(json.loads(path.read_text())) for path in options.table))
        return
    record = run(options)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(document(record))


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1, help="of each side in a round")
    parser.add_argument("--variant", action="append", default=[], metavar="'key=value ...'")
    parser.add_argument("--ours-alone", action="store_true", help="without transformers' Trainer")
    parser.add_argument("--out", type=Path, metavar="JSON")
    parser.add_argument("--table", nargs="+", type=Path, metavar="JSON", help="print kept runs")
    return parser.parse_args(words)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds, and what they were measured on."""
    os.environ["DS_ACCELERATOR"] = options.device
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for key, value in ({} if "RANK" in os.environ else alone | {"MASTER_PORT": "0"}).items():
        os.environ[key] = value
    from scripts.bench.sides import HfSide, OurSide, Samples, num_parameters
    from trainers.compose import compose
    from trainers.flops import peak_flops
    from trainers.run.distributed import join

    warm_up = 2  # turns of each side before the clock
    total = (options.rounds + warm_up) * options.steps
    given = [*TWIN, *options.overrides, f"train.steps={total}"]
    world_size = int(os.environ["WORLD_SIZE"])
    configs = {OURS: compose(given, world_size)}
    for words in options.variant:
        configs[f"{OURS} {words}"] = compose([*given, *words.split()], world_size)
    config = configs[OURS]
    world = join(config.runtime)
    sides: dict[str, Any] = {name: OurSide(each, world) for name, each in configs.items()}
    if not options.ours_alone:
        sides[HF] = HfSide(config, world, Samples(sides[OURS], total), sides[OURS])
    for _ in range(warm_up):
        for name in sides:
            sides[name].turn(options.steps)
    found: dict[str, dict[str, list[float]]] = {
        name: {"seconds": [], "tokens": [], "flops": []} for name in sides
    }
    for number in range(options.rounds):
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
        for name, side in sides.items():
            source = sides[OURS if name == HF else name].feed
            before = source.counts
            found[name]["seconds"].append(side.turn(options.steps))
            if name == HF:  # it has read what our side did in this round
                counted = {key: found[OURS][key][-1] for key in ("tokens", "flops")}
            else:
                read = source.counts - before
                counted = {"tokens": read.tokens, "flops": read.flops}
            for key, value in counted.items():
                found[name][key].append(value)
    losses = {name: [loss.item() for loss in side.losses] for name, side in sides.items()}
    num_params = num_parameters(sides[OURS].engine.module)
    for name in configs:
        sides[name].close()
    device = world.device
    return {
        "words": [*options.overrides],
        "device": options.device,
        "batch": config.batch.global_size,
        "length": config.objective.sequence_length,
        "dtype": config.runtime.dtype,
        "zero_stage": config.zero.stage,
        "optimizer": config.optimizer.name,
        "num_params": num_params,
        "world_size": world_size,
        "steps": options.steps,
        "peak": peak_flops(
            config, torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        ),
        "machine": describe_machine(device)
        | {name: version(name) for name in ("transformers", "deepspeed", "accelerate")},
        "sides": found,
        "losses": losses,
    }


def document(record: dict[str, Any]) -> str:
    """One run as markdown."""
    words = ", ".join(
        f"{key} {record[key]}" for key in ("dtype", "batch", "length", "zero_stage", "optimizer")
    )
    lines = [f"## Training steps: {record['num_params']:,} parameters, {words}\n"]
    lines += [f"`{' '.join(record['words'])}`\n"] if record.get("words") else []
    lines += [table(("", ""), list(record["machine"].items())), ""]
    head = ("program", "n", "tokens/s, median", "quartiles", "times as many as transformers")
    lines.append(
        table((*head, "quartiles", "MFU"), [_row(record, name) for name in record["sides"]])
    )
    if HF in record["losses"]:
        pairs = zip(record["losses"][OURS], record["losses"][HF], strict=True)
        largest = max(abs(a - b) for a, b in pairs)
        lines.append(
            f"\nThe losses of the first {len(record['losses'][OURS])} steps, "
            f"{record['losses'][OURS][0]:.4f} and on, differ by at most {largest:.1e}. "
            "Tokens are counted without padding."
        )
    return "\n".join(lines) + "\n"


def speeds(side: dict[str, list[float]]) -> list[float]:
    """Tokens per second of each round."""
    return [t / s for t, s in zip(side["tokens"], side["seconds"], strict=True)]


def _row(record: dict[str, Any], name: str) -> tuple[str, ...]:
    side = record["sides"][name]
    found = spread(speeds(side))
    ratio = None
    if HF in record["sides"] and name != HF:
        ratio = paired(list(speeds(side)), list(speeds(record["sides"][HF])))
    used = None
    if record["peak"]:
        flops = [f / s for f, s in zip(side["flops"], side["seconds"], strict=True)]
        used = spread(flops)["median"] / record["peak"] / record["world_size"]
    return (
        name,
        str(found["n"]),
        f"{found['median']:,.0f}",
        f"{found['q1']:,.0f} to {found['q3']:,.0f}",
        f"{ratio['median']:.2f}" if ratio else "-",
        f"{ratio['q1']:.2f} to {ratio['q3']:.2f}" if ratio else "-",
        f"{used:.1%}" if used else "-",
    )


if __name__ == "__main__":
    main()
