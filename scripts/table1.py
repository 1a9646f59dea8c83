"""The plan of BERT-Large at batch 1 beside Table 1 of the paper: python -m scripts.table1

Prints the tables of docs/planner.md; a test compares them with the page.
"""

from __future__ import annotations

import csv
from pathlib import Path

from trainers.compose import compose
from trainers.planner.plan import RunPlan, plan_run

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "paper" / "bert_large_memory.csv"
ROWS = {"Adam": "adamw", "LAMB": "lamb", "Adafactor": "adafactor", "SM3": "sm3", "CAME": "came"}
# float32 matrices that a step makes and drops, of the size of the parameter in hand: measured with
# torch's profiler. Adam and LAMB as in the authors' scripts (apex, fused: not measured), Adafactor
# in transformers 5.23, CAME in came-pytorch 0.1.3, whose authors' SM3 is not known.
TEMPORARIES = {"Adam": 0, "LAMB": 0, "Adafactor": 2, "CAME": 3}
GIB = 2**30
WORDS = ("experiment=bert_large_32k", "batch.global_size=1", "batch.micro_size=1")
HALF = ("runtime.dtype=bfloat16", "zero.stage=1")  # float32 copy and gradients, as the authors had
WHOLE = ("runtime.dtype=float32", "zero.stage=0")


def published() -> dict[str, float]:
    """GB per GPU by the paper's name of the optimizer."""
    with PUBLISHED.open() as file:
        return {row["optimizer"]: float(row["gigabytes_per_gpu"]) for row in csv.DictReader(file)}


def plan_of(words: tuple[str, ...]) -> RunPlan:
    return plan_run(compose([*WORDS, "launch.gpus_per_node=1", *words], planned=True), "H100", 0.4)


def standing(plan: RunPlan) -> dict[str, float]:
    """GiB that are there all the time, by the paper's names."""
    return {name: plan.rows[row].memory.kept / GIB for name, row in ROWS.items()}


def peaks(plan: RunPlan) -> dict[str, float]:
    """GiB at most, with the temporaries of the authors' steps in the place of ours."""
    largest = 4 * plan.config.model.hidden * plan.vocab_size
    found = {}
    for name, number in TEMPORARIES.items():
        memory = plan.rows[ROWS[name]].memory
        found[name] = (memory.kept + max(memory.activations, number * largest)) / GIB
    return found


def tables() -> str:
    """Both tables, as Markdown."""
    half, whole = plan_of(HALF), plan_of(WHOLE)
    columns = [published(), standing(half), peaks(half), peaks(whole)]
    lines = ["| | Table 1 | kept | most, half precision | most, float32 |", "|---|---|---|---|---|"]
    for name in ROWS:
        lines.append(_line(name, [column.get(name) for column in columns]))
    lines += ["", "| less CAME | Table 1 | kept | most, half precision | most, float32 |"]
    lines.append("|---|---|---|---|---|")
    for name in list(ROWS)[:-1]:
        differences = [c[name] - c["CAME"] if name in c else None for c in columns]
        lines.append(_line(name, differences))
    return "\n".join(lines) + "\n"


def _line(name: str, values: list[float | None]) -> str:
    cells = ("-" if value is None else f"{value:.2f}" for value in values)
    return f"| {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    print(tables(), end="")
