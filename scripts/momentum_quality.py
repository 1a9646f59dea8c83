"""Does a smaller momentum learn as well?  A small BERT and a small GPT-2, paired by seed.

    python -m scripts.momentum_quality --jobs 2
    python -m scripts.momentum_quality --seeds 8 data=text data.path=my_texts/
    python -m scripts.momentum_quality --models bert train.steps=100 optimizer.lr=1e-3

One seed gives every format the same first weights, batches and masks; all are judged by the same
held-out sequences.  Words `key=value` are those of `came-train`.  A finished run is a line of the
file `--runs`: started again, the script goes on with those that are missing, then prints the table.

bfloat16 and int8 pass if their mean loss is above that of float32 by at most 0.02 nat, or by two
standard errors of the paired difference; what `sign` costs is shown.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from math import nan, sqrt
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

import came
from came import CAME
from came.momentum import FORMATS
from scripts.small_models import MODELS, Learner
from trainers.compose import compose
from trainers.config import Config
from trainers.data.needs import needs_of
from trainers.data.prepare import Prepared, prepare
from trainers.run.folder import git_state, versions
from trainers.schedules import learning_rate

BASELINE, GATED = "float32", ("bfloat16", "int8")
ALLOWED_NATS, ALLOWED_ERRORS = 0.02, 2.0
TOKEN_LENGTH = 128  # both models read one store, so sentences are cut as for this length

WORDS = (
    *("experiment=quickstart", "model=bert_tiny", "objective.next_sentence=false"),
    *("train.steps=1000", "schedule.warmup_fraction=0.1", "batch.global_size=16"),
    *("eval.every=0", "eval.samples=512", "runtime.dtype=bfloat16", "optimizer.lr=3e-4"),
)
MODEL_WORDS = {
    "bert": ("objective.sequence_length=128", "objective.max_predictions=20"),
    "gpt2": ("objective.sequence_length=64", "batch.global_size=8"),
}

Run = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One run.  `words` are the settings that the command line adds to those of the model."""

    model: str
    format: str
    seed: int
    words: tuple[str, ...]
    kernel: str = "auto"

    def config(self) -> Config:
        """Its configuration, in the terms of `came-train`."""
        words = [*WORDS, *MODEL_WORDS[self.model], f"run.seed={self.seed}", *self.words]
        return compose(words, world_size=1)

    def key(self) -> Run:
        """What tells it from other runs."""
        setting = setting_of(self.config())
        return {"model": self.model, "format": self.format, "seed": self.seed, "setting": setting}


def open_data(config: Config) -> Prepared:
    """The tokens that both models learn from."""
    return _prepared(config.data, needs_of(config.objective, TOKEN_LENGTH))


_prepared = cache(prepare)


def run(job: Job) -> Run:
    """Train once, on one thread; returns the line of `--runs`."""
    torch.set_num_threads(1)
    started = time.monotonic()
    config = job.config()
    learner = MODELS[job.model](config, open_data(config))
    optimizer = CAME(
        learner.module.parameters(),
        betas=config.optimizer.betas,  # type: ignore[arg-type]
        eps=config.optimizer.eps,  # type: ignore[arg-type]
        clip_threshold=config.optimizer.clip_threshold,
        weight_decay=config.optimizer.weight_decay,
        momentum=job.format,  # type: ignore[arg-type]
        kernel=job.kernel,  # type: ignore[arg-type]
    )
    train(learner, optimizer, config)
    plan: Any = list(optimizer._plans.values())[-1][1]
    return {
        **job.key(),
        "loss": heldout_loss(learner, config),
        "seconds": round(time.monotonic() - started, 1),
        "kernel": plan.kernel.__name__.rpartition(".")[2],  # the one that "auto" found
        "code": code_digest(),
        **git_state(),
    }


def train(learner: Learner, optimizer: CAME, config: Config) -> None:
    steps, size = config.train.steps, config.batch.global_size
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.schedule, step, steps, config.optimizer.lr)
        batch = learner.train(np.arange((step - 1) * size, step * size))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.runtime.dtype == "bfloat16"):
            total, count = learner.loss(batch)
        (total / count).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def heldout_loss(learner: Learner, config: Config) -> float:
    """Nats for each token asked for, in float32, over the same sequences in every run."""
    learner.module.eval()
    sums, size = np.zeros(2), config.batch.global_size
    for start in range(0, config.eval.samples, size):
        positions = np.arange(start, min(start + size, config.eval.samples))
        total, count = learner.loss(learner.heldout(positions))
        sums += total.item(), count
    return float(sums[0] / sums[1])


def setting_of(config: Config) -> Run:
    """What is equal in runs that are compared; `data` names the tokens themselves."""
    data, model, optimizer = open_data(config), config.model, config.optimizer
    return {
        **{"layers": model.layers, "hidden": model.hidden, "dropout": model.dropout},
        **{"length": config.objective.sequence_length, "batch": config.batch.global_size},
        **{"steps": config.train.steps, "warmup": config.schedule.warmup_fraction},
        **{
            "lr": optimizer.lr,
            "betas": list(optimizer.betas),
            "weight_decay": optimizer.weight_decay,
        },
        **{"dtype": config.runtime.dtype, "heldout": config.eval.samples},
        **{"vocabulary": data.tokenizer.get_vocab_size(), "data": data.fingerprint[:16]},
    }


def code_digest() -> str:
    """Names the sources of the optimizer, also where they differ from the commit."""
    root, digest = Path(came.__file__).parent, hashlib.sha256()
    for file in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def finish(jobs: Sequence[Job], file: Path, num_processes: int) -> list[Run]:
    """Do the jobs that no line of `file` answers; returns the runs of all of them."""
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    keys = [job.key() for job in jobs]
    done = {keys.index(key): line for line in lines if (key := _key_in(line)) in keys}
    todo = [job for place, job in enumerate(jobs) if place not in done]
    runs = list(done.values())
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when a process starts
    file.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, job) for job in todo]):
            runs.append(future.result())
            with open(file, "a") as stream:
                stream.write(json.dumps(runs[-1]) + "\n")
            told = ("model", "format", "seed", "loss", "seconds")
            print(f"{len(runs)}/{len(jobs)}", *(runs[-1][name] for name in told), flush=True)
    return runs


def _key_in(line: Run) -> Run:
    return {name: line[name] for name in ("model", "format", "seed", "setting")}


def summary(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """One row for each model and format; `difference` is to float32 with the same seed."""
    losses: dict[tuple[str, str], dict[int, float]] = {}
    for line in runs:
        losses.setdefault((line["model"], line["format"]), {})[line["seed"]] = line["loss"]
    for (model, name), by_seed in sorted(losses.items()):
        base = losses.get((model, BASELINE), {})
        pairs = [by_seed[seed] - base[seed] for seed in sorted(by_seed.keys() & base.keys())]
        difference, error = mean(pairs), deviation(pairs) / sqrt(max(1, len(pairs)))
        yield {
            **{"model": model, "format": name, "runs": len(by_seed)},
            **{"mean": mean([*by_seed.values()]), "deviation": deviation([*by_seed.values()])},
            **{"difference": difference, "standard_error": error},
            "passes": difference <= max(ALLOWED_NATS, ALLOWED_ERRORS * error),
        }


def by_setting(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs in order, and the settings of each model once."""
    settings = {line["model"]: line["setting"] for line in runs}
    bare = [{name: value for name, value in line.items() if name != "setting"} for line in runs]
    bare.sort(key=lambda line: (line["model"], line["format"], line["seed"]))
    return {"settings": settings, "runs": bare}


def mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else nan


def deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else nan


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The summary as Markdown; float32 is compared with nothing."""
    heads = "model|momentum|runs|held-out loss|deviation|minus float32|standard error|"
    lines = [f"| {heads.replace('|', ' | ')} |", "|---" * 8 + "|"]
    for row in rows:
        cells = [row["model"], row["format"], str(row["runs"])]
        cells += [f"{row['mean']:.4f}", f"{row['deviation']:.4f}"]
        verdict = "passes" if row["passes"] else "fails" if row["format"] in GATED else "costs"
        paired = [f"{row['difference']:+.4f}", f"{row['standard_error']:.4f}", verdict]
        cells += ["", "", ""] if row["format"] == BASELINE else paired
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 up")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--kernel", choices=("auto", "eager", "cpu"), default="auto")
    parser.add_argument("--runs", type=Path, default=Path("runs/momentum_quality.jsonl"))
    parser.add_argument("--json", type=Path, help="runs and summary go here, too")
    parser.add_argument("words", nargs="*", help="key=value, as for came-train")
    return parser.parse_intermixed_args(words)


def main(words: Sequence[str] | None = None) -> None:
    options = parse(words)
    jobs = [
        Job(model, name, seed, tuple(options.words), options.kernel)
        for seed in range(options.seeds)
        for model in options.models
        for name in options.formats
    ]
    runs = finish(jobs, options.runs, options.jobs)
    rows = list(summary(runs))
    print(table(rows))
    if options.json:
        content = {"versions": versions(), "summary": rows, **by_setting(runs)}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
