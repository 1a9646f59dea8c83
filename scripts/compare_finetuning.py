"""Pretrained against untrained, CAME against AdamW: a fine-tuning whose learning rates are chosen.

    python -m scripts.compare_finetuning model=bert/ task=sst2 data=SST-2/train.tsv,SST-2/dev.tsv

Words are those of came-finetune; weights, optimizer, learning rate and folder are not to be given.
A tenth of the training file, at most 1,000 samples, is held back, and each of the four learns the
rest with one seed at three learning rates, a factor of 3 apart, and at one more while the best is
at the edge; by the mean of the task's metrics there the rate is chosen. With it the seeds (seeds=,
3) are run and judged on the dev file, which no choice has seen. Started again it goes on.

<out>/train, <out>/held_back                         the training file in two
<out>/rates/<weights>_<optimizer>_<lr>/results.json  the choice
<out>/<weights>_<optimizer>/results.json             the result
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from scripts.reproduction.order import best_rate, missing_rates
from scripts.reproduction.plan import Contestant, Plan, Task
from trainers.errors import NonFiniteError
from trainers.finetuning.results import read_results, table

FINETUNE = (sys.executable, "-m", "trainers.finetune")
HELD_BACK = 1000  # samples, at most, and a tenth of them

CHOICE = Task("", "", "max:mean", (), ())
PLAN = Plan(jobs=1, seeds=1, factor=3.0, max_rates=6, words=(), tasks=(CHOICE,))
CONTESTANTS = tuple(
    Contestant(f"{weights}_{optimizer}", (f"untrained={untrained}", f"optimizer={optimizer}"), lr)
    for weights, untrained in (("pretrained", "false"), ("untrained", "true"))
    for optimizer, lr in (("came", 1e-4), ("adamw", 5e-4))
)
OURS = ("untrained", "optimizer", "optimizer.lr", "out")


@dataclass(frozen=True)
class Comparison:
    """One task: the words that all four are given, what they learn, and what they are judged by."""

    words: tuple[str, ...]
    train: Path
    held_back: Path
    dev: Path
    out: Path


def main(words: list[str] | None = None) -> int:
    options = _parse(words)
    try:
        comparison = prepare(options.words, options.out)
        with ThreadPoolExecutor(options.jobs) as pool:  # each waits for processes
            rates = list(pool.map(lambda c: compare(comparison, c), CONTESTANTS))
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table([read_results(comparison.out / c.name) for c in CONTESTANTS]), end="")
    for contestant, tried in zip(CONTESTANTS, rates, strict=True):
        shown = (f"{lr:g}: {'diverged' if v is None else f'{v:.2%}'}" for lr, v in tried.items())
        print(f"{contestant.name}, chosen from  {', '.join(shown)}")
    return 0


def prepare(words: Sequence[str], out: Path) -> Comparison:
    """Write the training file in two. Raises ValueError for words that are not to be given."""
    given = dict(word.partition("=")[::2] for word in words)
    if taken := [key for key in OURS if key in given]:
        raise ValueError(f"{', '.join(taken)}: this script sets that itself (--out for out)")
    train, comma, dev = given.get("data", "").partition(",")
    if not comma:
        raise ValueError("data=TRAIN_FILE,DEV_FILE is needed")
    if Path(train).suffix not in (".tsv", ".json"):
        raise ValueError(f"data={train}: a .tsv of GLUE or a .json of SQuAD can be cut in two")
    learned, held = split(Path(train).read_bytes(), articles=Path(train).suffix == ".json")
    out.mkdir(parents=True, exist_ok=True)
    halves = [out / f"{name}{Path(train).suffix}" for name in ("train", "held_back")]
    for path, content in zip(halves, (learned, held), strict=True):
        path.write_bytes(content)
    rest = tuple(word for word in words if not word.startswith("data="))
    return Comparison(rest, halves[0], halves[1], Path(dev), out)


def split(content: bytes, articles: bool = False) -> tuple[bytes, bytes]:
    """Samples to learn, and samples held back, which lie evenly among them.

    They are rows of a table whose first line has names, or whole `articles` of SQuAD's JSON.
    """
    if articles:
        tree = json.loads(content)
        at = _evenly(len(tree["data"]))
        halves = [[a for i, a in enumerate(tree["data"]) if (i in at) == held] for held in (0, 1)]
        return _json({**tree, "data": halves[0]}), _json({**tree, "data": halves[1]})
    head, *rows = content.splitlines(keepends=True)
    at = _evenly(len(rows))
    return tuple(  # type: ignore[return-value]
        head + b"".join(row for i, row in enumerate(rows) if (i in at) == held) for held in (0, 1)
    )


def compare(comparison: Comparison, contestant: Contestant) -> dict[float, float | None]:
    """Choose the rate, run the seeds; what each rate came to, lowest first, None: diverged.

    Raises RuntimeError when a fine-tuning fails in any way but divergence.
    """
    tried: dict[int, float | None] = {}
    while rates := missing_rates(PLAN, CHOICE, dict(sorted(tried.items()))):
        for rate in rates:
            lr = _lr(contestant, rate)
            folder = comparison.out / "rates" / f"{contestant.name}_{lr:g}"
            found = _finetune(comparison, contestant, lr, comparison.held_back, folder, ["seeds=1"])
            tried[rate] = found and mean(found["seeds"]["0"]["metrics"].values())
    best = best_rate(CHOICE, tried)
    folder = comparison.out / contestant.name
    if best is None or not _finetune(
        comparison, contestant, _lr(contestant, best), comparison.dev, folder, []
    ):
        raise RuntimeError(
            f"{contestant.name}: diverged at {'every' if best is None else 'its'} lr"
        )
    return {_lr(contestant, rate): tried[rate] for rate in sorted(tried)}


def _finetune(
    comparison: Comparison,
    contestant: Contestant,
    lr: float,
    judged_by: Path,
    folder: Path,
    more: Sequence[str],
) -> dict[str, Any] | None:
    """The content of results.json; None if it diverged."""
    words = (*comparison.words, *contestant.words, f"data={comparison.train},{judged_by}")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"start  {folder}", flush=True)
    with (folder / "run.log").open("a", encoding="utf-8") as log:
        ended = subprocess.run(
            [*FINETUNE, *words, *more, f"optimizer.lr={lr:g}", f"out={folder}"],
            stdout=log,
            stderr=log,
            check=False,
        ).returncode
    if ended == NonFiniteError.exit_code:
        return None
    if ended:
        raise RuntimeError(f"{folder} ended with {ended}: read {folder / 'run.log'}")
    return read_results(folder)


def _lr(contestant: Contestant, rate: int) -> float:
    return float(f"{contestant.lr * PLAN.factor**rate:.2g}")


def _evenly(count: int) -> set[int]:
    """Places of what is held back of `count`."""
    held = max(1, min(HELD_BACK, count // 10))
    return {i * count // held for i in range(held)}


def _json(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree).encode()


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="key=value", help="for came-finetune")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_finetuning"))
    parser.add_argument("--jobs", type=int, default=1, help="fine-tunings at a time")
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    sys.exit(main())
