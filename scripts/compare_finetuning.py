"""Pretrained against untrained, CAME against AdamW: a fine-tuning whose learning rates are chosen.

    python -m scripts.compare_finetuning model=bert/ task=sst2 data=SST-2/train.tsv,SST-2/dev.tsv

Words are those of came-finetune; weights, optimizer, learning rate and folder are not to be given.
A tenth of the training file, at most 500 rows of GLUE or a tenth of SQuAD's articles, is held back,
and of the rest goes what shares a text with it.  Each of the four learns with one seed at three
learning rates, a factor of 3 apart, and at one more while the best is at the edge, up to six; by
the mean of the task's metrics on what is held back the rate is chosen.  With it the seeds (seeds=,
3) are run and judged on the dev file, which no choice has seen.  Started again it goes on.

<out>/train, <out>/held_back                         the training file in two
<out>/rates/<weights>_<optimizer>_<lr>/results.json  the choice
<out>/<weights>_<optimizer>/results.json             the result
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from scripts.reproduction.order import best_rate, missing_rates
from scripts.reproduction.plan import Contestant, Plan, Task
from trainers import durable
from trainers.errors import NonFiniteError, RunError
from trainers.failures import ends_with_reader
from trainers.finetuning.questions import read_questions
from trainers.finetuning.results import read_results, table
from trainers.finetuning.settings import compose_finetune
from trainers.finetuning.tables import read_table
from trainers.finetuning.tasks import GLUE
from trainers.finetuning.tasks import Task as GlueTask

FINETUNE = (sys.executable, "-m", "trainers.finetune")
HELD_BACK = 500  # rows, at most, and a tenth of them

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


@ends_with_reader
def main(words: list[str] | None = None) -> int:
    options = _parse(words)
    for signum in (signal.SIGINT, signal.SIGTERM):  # also in the background; the fine-tuning too
        signal.signal(signum, signal.default_int_handler)
    try:
        comparison = prepare(options.words, options.out)
        chosen = [compare(comparison, contestant) for contestant in CONTESTANTS]
        print(table([read_results(comparison.out / c.name) for c in CONTESTANTS]), end="")
    except BrokenPipeError:
        raise  # nobody reads on
    except (OSError, RuntimeError, ValueError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        return 130
    print("\n".join(chosen))
    return 0


def prepare(words: Sequence[str], out: Path | None) -> Comparison:
    """Write the training file in two, unless that was done before.

    Raises ValueError for words that are not to be given or lack, ConfigError for those that
    came-finetune refuses, OSError and DataError for files, the dev file among them.
    """
    given = {word.partition("=")[0].lstrip("+") for word in words}
    if taken := [key for key in OURS if key in given]:
        raise ValueError(f"{', '.join(taken)}: this script sets that itself (--out for out)")
    config = compose_finetune(words)
    train, _, dev = map(Path, (config.data or "").partition(","))
    if not (train.is_file() and dev.is_file()):
        raise ValueError(f"data={config.data} must be TRAIN_FILE,DEV_FILE: two files")
    out = out or Path("runs/compare_finetuning") / config.task
    if "," in str(out):
        raise ValueError(f"--out {out}: a comma parts the two files of data=")
    if config.is_squad:
        halves = split_articles(train, answerable=config.task == "squad_v1")
        read_questions(dev, answerable=config.task == "squad_v1")
    else:
        halves = split_table(train, GLUE[config.task])
        read_table(dev, GLUE[config.task])
    paths = [out / f"{name}{train.suffix}" for name in ("train", "held_back")]
    _write_halves(paths, [half.encode() for half in halves])
    rest = tuple(word for word in words if not word.startswith(("data=", "+data=")))
    return Comparison(rest, paths[0], paths[1], dev, out)


def _write_halves(paths: Sequence[Path], halves: Sequence[bytes]) -> None:
    """Raises ValueError where another file stands already: it may be the one that was given."""
    for path, half in zip(paths, halves, strict=True):
        if path.exists() and path.read_bytes() != half:
            raise ValueError(f"{path} is there, with other content: name another folder with --out")
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    for path, half in zip(paths, halves, strict=True):
        if not path.exists():
            durable.write_bytes(path, half)


def split_table(file: Path, task: GlueTask) -> tuple[str, str]:
    """Rows to learn, and rows held back that lie evenly among them, of a task of GLUE.

    A row goes whose text stands word for word within one that is held back, or holds one: SST-2's
    training file has the phrases of its sentences too.  Raises ValueError and DataError.
    """
    texts = [tuple(f" {t} " for t in s.texts if t.strip()) for s in read_table(file, task)]
    content = file.read_bytes().decode("utf-8-sig")  # every carriage return is kept
    lines = [line for line in content.split("\n") if line.strip()]
    head, rows = lines[: len(lines) - len(texts)], lines[len(lines) - len(texts) :]
    if len(head) > 1:
        raise ValueError(f"{file} has rows of several lines: give a .tsv, as GLUE publishes them")
    at = dict.fromkeys(_evenly(len(rows), HELD_BACK))
    held = [text for i in at for text in texts[i]]
    together = "\n".join(held)

    def shares(text: str) -> bool:
        return text in together or any(other in text for other in held)

    learned = [row for i, row in enumerate(rows) if i not in at and not any(map(shares, texts[i]))]
    if not learned:
        raise ValueError(f"{file}: every row shares a text with one of those held back")
    print(f"{len(learned)} rows to learn, {len(at)} held back; the rest shares texts with them")
    return tuple(  # type: ignore[return-value]
        "".join(f"{line}\n" for line in [*head, *part]) for part in (learned, [rows[i] for i in at])
    )


def split_articles(file: Path, answerable: bool) -> tuple[str, str]:
    """Articles of SQuAD to learn, and those held back.

    Raises DataError for what is not SQuAD, ValueError where one of the two has no question.
    """
    read_questions(file, answerable)
    tree = json.loads(file.read_text(encoding="utf-8-sig"))
    at = set(_evenly(len(tree["data"]), len(tree["data"])))
    halves = [[a for i, a in enumerate(tree["data"]) if (i in at) == held] for held in (0, 1)]
    for half, use in zip(halves, ("to be learned", "to be held back"), strict=True):
        if not any(paragraph["qas"] for article in half for paragraph in article["paragraphs"]):
            raise ValueError(f"{file}: of {len(tree['data'])} articles no question is {use}")
    return tuple(json.dumps({**tree, "data": half}) for half in halves)  # type: ignore[return-value]


def compare(comparison: Comparison, contestant: Contestant) -> str:
    """Choose the rate and run the seeds; says what each rate came to.

    Raises RuntimeError when a fine-tuning fails, or diverges at every rate or with some seed.
    """
    tried: dict[int, float | None] = {}  # in this order, by which the first of equals is the best
    while rates := missing_rates(PLAN, CHOICE, tried):
        for rate in rates:
            lr = _lr(contestant, rate)
            folder = comparison.out / "rates" / f"{contestant.name}_{lr:g}"
            found = _finetune(comparison, contestant, lr, comparison.held_back, folder, ["seeds=1"])
            tried[rate] = mean(found["seeds"]["0"]["metrics"].values()) if found else None
    if (best := best_rate(CHOICE, tried)) is None:
        raise RuntimeError(f"{contestant.name} diverged at every rate")
    lr = _lr(contestant, best)
    if not _finetune(
        comparison, contestant, lr, comparison.dev, comparison.out / contestant.name, []
    ):
        raise RuntimeError(f"{contestant.name} diverged with some seed at optimizer.lr={lr:g}")
    shown = (
        f"{_lr(contestant, rate):g}: {'diverged' if value is None else f'{value:.2%}'}"
        for rate, value in sorted(tried.items())
    )
    edge = " (edge)" if best in (min(tried), max(tried)) else ""
    return f"{contestant.name}: {lr:g}{edge} of  {', '.join(shown)}"


def _finetune(
    comparison: Comparison,
    contestant: Contestant,
    lr: float,
    judged_by: Path,
    folder: Path,
    more: Sequence[str],
) -> dict[str, Any] | None:
    """The content of results.json; None if it diverged, which is tried again at a next start."""
    words = (
        *(*comparison.words, *contestant.words, f"data={comparison.train},{judged_by}"),
        *(*more, f"optimizer.lr={lr:g}"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    print(f"start  {folder}", flush=True)
    with (folder / "run.log").open("a", encoding="utf-8") as log:
        ended = subprocess.run(
            [*FINETUNE, *words, f"out={folder}"], stdout=log, stderr=log, check=False
        ).returncode
    if ended == NonFiniteError.exit_code:
        return None
    if ended:
        raise RuntimeError(f"{folder} ended with {ended}: {_reason(folder / 'run.log')}")
    return read_results(folder)


def _reason(log: Path) -> str:
    """What came-finetune's last line says, or where to read on."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        return str(json.loads(lines[-1])["reason"])
    except (IndexError, ValueError, KeyError, TypeError):
        return f"read {log}"


def _lr(contestant: Contestant, rate: int) -> float:
    return float(f"{contestant.lr * PLAN.factor**rate:.2g}")


def _evenly(count: int, most: int) -> list[int]:
    """Places of what is held back of `count`: a tenth, one at least and `most` at most."""
    held = max(1, min(most, count // 10))
    return [i * count // held for i in range(held)]


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", nargs="+", metavar="key=value", help="for came-finetune")
    parser.add_argument(
        "--out",
        type=lambda path: Path(path).expanduser(),
        help="runs/compare_finetuning/<task>; other settings need another one",
    )
    return parser.parse_intermixed_args(words)


if __name__ == "__main__":
    sys.exit(main())
