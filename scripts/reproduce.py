"""The paper's experiments at a smaller scale: every optimizer, its learning rate swept, some seeds.

    python -m scripts.reproduce cpu                  hours on two cores; the same words go on
    python -m scripts.reproduce cpu --beyond         also what the paper does not compare
    python -m scripts.reproduce gpu --minutes 9      for nine minutes, then saves and leaves
    python -m scripts.reproduce cpu --task gpt2      that alone, or several: --task again
    python -m scripts.reproduce cpu --keep docs/reproduction/cpu     metrics and settings alone
    python -m scripts.reproduce cpu --table --out docs/reproduction/cpu

A plan is scripts/reproduction/<name>.yaml.  `key=value` words go to every came-train, and are
stronger than the plan's; only the learning rate, the seed and the folder stay its own.
"""

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from scripts.reproduction.drive import drive, read_beside, read_results
from scripts.reproduction.keep import keep
from scripts.reproduction.plan import PLANS, Plan, chosen, read_plan
from scripts.reproduction.tables import tables
from trainers.failures import ends_with_reader


@ends_with_reader
def main(words: list[str] | None = None) -> int:
    options = _parse(words)
    try:
        return _run(options)
    except BrokenPipeError:
        raise  # nobody reads the table any more
    except (OSError, RuntimeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    plan = read_plan(PLANS / f"{options.plan}.yaml")
    plan = chosen(plan, options.task, options.beyond or options.table)
    plan = replace(plan, overrides=tuple(options.overrides), jobs=options.jobs or plan.jobs)
    out = options.out or Path("runs/reproduce") / options.plan
    if options.table or options.keep:
        if options.keep:
            print(f"{keep(out, options.keep)} finished runs kept in {options.keep}")
        if options.table:
            _print_tables(plan, out)
        return 0
    for signum in (signal.SIGINT, signal.SIGTERM):  # also in the background: the runs are to save
        signal.signal(signum, signal.default_int_handler)
    try:
        done = drive(plan, out, options.minutes)
    except KeyboardInterrupt:
        done = False
    _print_tables(plan, out)
    print("all done" if done else "not all done: the same command goes on")
    return 0 if done else 75


def _print_tables(plan: Plan, out: Path) -> None:
    print(tables(plan, read_results(plan, out), read_beside(plan, out)))


def _parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    plans = sorted(path.stem for path in PLANS.glob("*.yaml"))
    parser.add_argument("plan", choices=plans)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--task", action="append", help="of the plan, this alone; several times")
    parser.add_argument(
        "--beyond", action="store_true", help="future work and ideas too: `beyond` of the plan"
    )
    parser.add_argument("--out", type=_path, help="runs/reproduce/<plan>")
    parser.add_argument("--jobs", type=_count, help="runs at a time, in place of the plan's")
    parser.add_argument("--minutes", type=float, default=0.0, help="then stop; 0 = never")
    parser.add_argument("--keep", type=_path, metavar="DIR", help="copy metrics and settings")
    parser.add_argument("--table", action="store_true", help="print what is done")
    return parser.parse_intermixed_args(words)


def _path(word: str) -> Path:
    return Path(word).expanduser()  # as came-train does: a shell leaves it in --out=~/runs


def _count(word: str) -> int:
    if (count := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{count} is not at least 1")
    return count


if __name__ == "__main__":
    sys.exit(main())
