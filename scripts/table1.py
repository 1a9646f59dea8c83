"""The plan at batch 1 beside the authors' memory: python -m scripts.table1

Table 1 of the paper (BERT-Large), and GPT-2 medium of the authors' repository. Prints the tables of
docs/planner.md; a test compares them with the page.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

from trainers.compose import compose
from trainers.planner.plan import RunPlan, plan_run

PUBLISHED = Path(__file__).resolve().parents[1] / "docs" / "paper"
ROWS = {
    "bert_large": {
        **{"Adam": "adamw", "LAMB": "lamb", "Adafactor": "adafactor", "SM3": "sm3"},
        "CAME": "came",
    },
    "gpt2_medium": {"AdamW": "adamw", "CAME": "came"},
}
EXPERIMENTS = {"bert_large": "bert_large_32k", "gpt2_medium": "gpt2_medium"}
# float32 matrices that a step makes and drops, of the size of the parameter in hand: measured with
# torch's profiler. Adam and LAMB as in the authors' scripts (apex, fused: not measured), Adafactor
# in transformers 5.23, CAME in came-pytorch 0.1.3, whose authors' SM3 is not known; AdamW fused.
TEMPORARIES = {"Adam": 0, "AdamW": 0, "LAMB": 0, "Adafactor": 2, "CAME": 3}
GIB = 2**30
WORDS = ("batch.global_size=1", "batch.micro_size=1", "launch.gpus_per_node=1")
HALF = ("runtime.dtype=bfloat16", "zero.stage=1")  # float32 copy and gradients, as the authors had
WHOLE = ("runtime.dtype=float32", "zero.stage=0")


def published(model: str) -> dict[str, float]:
    """What the authors print, by their names of the optimizers."""
    with (PUBLISHED / f"{model}_memory.csv").open() as file:
        return {row["optimizer"]: float(list(row.values())[-1]) for row in csv.DictReader(file)}


@cache
def plan_of(model: str, words: tuple[str, ...]) -> RunPlan:
    experiment = f"experiment={EXPERIMENTS[model]}"
    return plan_run(compose([experiment, *WORDS, *words], planned=True), "H100", 0.4)


def standing(model: str, plan: RunPlan) -> dict[str, float]:
    """GiB that are there all the time, by the authors' names."""
    return {name: plan.rows[row].memory.kept / GIB for name, row in ROWS[model].items()}


def peaks(model: str, plan: RunPlan) -> dict[str, float]:
    """GiB at most, with the temporaries of the authors' steps in the place of ours."""
    largest = 4 * plan.config.model.hidden * plan.vocab_size
    found = {}
    for name, row in ROWS[model].items():
        memory = plan.rows[row].memory
        if name in TEMPORARIES:
            assert memory.activations is not None  # the micro batch is given
            most = memory.kept + max(memory.activations, TEMPORARIES[name] * largest)
            found[name] = most / GIB
    return found


def less_came(sizes: dict[str, float]) -> dict[str, float]:
    return {name: size - sizes["CAME"] for name, size in sizes.items() if name != "CAME"}


def tables() -> str:
    """Of both models, as Markdown: the sizes, and what they differ from CAME's by."""
    found = []
    for model, title in {"bert_large": "Table 1", "gpt2_medium": "GPT-2 medium"}.items():
        half, whole = plan_of(model, HALF), plan_of(model, WHOLE)
        columns = [published(model), standing(model, half), peaks(model, half), peaks(model, whole)]
        found.append(_table("", title, columns))
        found.append(_table("less CAME", title, [less_came(column) for column in columns]))
    return "\n".join(found)


def _table(corner: str, title: str, columns: list[dict[str, float]]) -> str:
    heads = [corner, title, "kept", "most, half precision", "most, float32"]
    rows = [[name, *(_cell(column.get(name)) for column in columns)] for name in columns[0]]
    lines = [f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in [heads, *rows]]
    return "\n".join([lines[0], "|---|---|---|---|---|", *lines[1:]]) + "\n"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    print(tables(), end="")
