"""The tables of the page, as words: final metrics, settings, runs, ledger, fidelity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trainers.reports.bars import BARS, in_units, is_measured
from trainers.reports.groups import Group, Section, differing
from trainers.reports.paper import PAPER_NAMES, Figure
from trainers.reports.rates import sweeps
from trainers.reports.runs import Run
from trainers.reports.series import GUESSED
from trainers.reports.spread import Spread, last


@dataclass(frozen=True)
class Table:
    """Rows of cells. `numbers` are the columns that stand right; a row of one cell is a heading."""

    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    numbers: frozenset[int] = frozenset()


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


_FINAL: dict[str, tuple[str, Callable[[float], str]]] = {
    **{name: (words, _percent) for name, words in GUESSED.items()},
    "eval/loss": ("held-out loss, nats", "{:.4f}".format),
    "eval/perplexity": ("perplexity of a token", "{:,.2f}".format),
    "eval/word_perplexity": ("perplexity of a word", "{:,.2f}".format),
    "eval/nsp_accuracy": ("next sentence told right", _percent),
}
_NONE = "-"


def final_table(section: Section, paper: Figure | None) -> Table:
    """n, mean and spread of each held-out metric at the end of the runs, and the paper's.

    The best of a sweep of learning rates is marked, by each metric for itself.
    """
    rows: list[tuple[str, ...]] = []
    for name, (words, form) in _FINAL.items():
        found = [(group, Spread.of(last(group.repetitions, name))) for group in section.groups]
        if not any(spread for _, spread in found):
            continue
        rows.append((words[0].upper() + words[1:],))
        best = {id(sweep.best(name)) for sweep in sweeps(section)}
        rows += [
            (f"{group.label}{' (best)' if id(group) in best else ''}", *_cells(group, spread, form))
            for group, spread in found
        ]
        if paper is not None and paper.metric == name:
            rows += _papers(paper, form)
    head = ("", "n", "mean", "std", "lowest", "highest")
    return Table(head, rows, frozenset(range(1, len(head))))


def cost_table(section: Section) -> Table:
    """State, memory and time of each group."""
    rows: list[tuple[str, ...]] = []
    for name, (title, measure) in BARS.items():
        if is_measured(section, name):
            form = partial(in_units, name)
            rows.append((title,))
            rows += [(g.label, *_cells(g, measure(g), form)) for g in section.groups]
    head = ("", "n", "mean", "std", "lowest", "highest")
    return Table(head, rows, frozenset(range(1, len(head))))


def _cells(group: Group, spread: Spread | None, form: Callable[[float], str]) -> tuple[str, ...]:
    if spread is None:
        return ("0", *[_NONE] * 4)
    n = str(spread.n) if spread.n == len(group.runs) else f"{spread.n} of {len(group.runs)}"
    std = _NONE if spread.std is None else form(spread.std)
    return n, form(spread.mean), std, form(spread.low), form(spread.high)


def _papers(paper: Figure, form: Callable[[float], str]) -> list[tuple[str, ...]]:
    return [
        (
            f"{PAPER_NAMES[optimizer]}, paper, step {int(series.steps[-1]):,}",
            *("1", form(series.last), _NONE, _NONE, _NONE),
        )
        for optimizer, series in paper.curves.items()
    ]


def settings_table(section: Section) -> Table | None:
    """The settings that are not the same in all groups; None if there is one group."""
    keys = differing([group.settings for group in section.groups])
    if not keys:
        return None
    rows = [
        (key, *(_value(group.settings.get(key)) for group in section.groups))
        for key in sorted(keys)
    ]
    head = ("", *(group.label for group in section.groups))
    return Table(head, rows, frozenset(range(1, len(head))))


def _value(value: Any) -> str:
    return _NONE if value is None else str(value)


def runs_table(section: Section) -> Table:
    """Every run, finished or not."""
    rows = []
    for group in section.groups:
        for run in group.runs:
            rows.append(
                (
                    *(run.name, group.label, _value(run.seed), run.flaw or "finished"),
                    f"{run.last_step:,}",
                    str(len(run.starts)) if run.starts else _NONE,
                    *_origin(run),
                )
            )
    head = ("run", "group", "seed", "state", "steps", "starts", "commit", "device", "started")
    return Table(head, rows, frozenset({2, 4, 5}))


def _origin(run: Run) -> tuple[str, str, str]:
    newest = run.starts[-1] if run.starts else {}
    commit = str(newest.get("commit") or _NONE)[:10]
    if newest.get("dirty"):
        commit += " with changes"
    device = str(newest.get("device") or _NONE)
    if world := newest.get("world_size"):
        device += f"; {world} rank(s)"
    started = str(newest.get("started") or _NONE)
    return commit, device, started[:16].replace("T", " ")  # to the minute


def starts_table(run: Run) -> Table:
    """The command and versions of each start of a run."""
    rows = []
    for start in run.starts:
        versions = start.get("versions")
        told = {"python": start.get("python"), **(versions if isinstance(versions, dict) else {})}
        words = ", ".join(f"{name} {version}" for name, version in told.items() if version)
        rows.append((_value(start.get("command")), words))
    return Table(("command", "versions"), rows)


def ledger_table(section: Section) -> Table:
    """The sums of each group's ledger."""
    rows = []
    for group in section.groups:
        ledger = next((run.ledger for run in group.runs if run.ledger), None)
        if ledger is not None:
            numbers, state = ledger["num_params"], ledger["state_bytes"]
            sums = (numbers, state, ledger["replicated_bytes"])
            each = f"{state / numbers:.3f}" if numbers else _NONE
            rows.append((group.label, *(f"{size:,}" for size in sums), each))
    head = ("", "numbers trained", "bytes of state", "of these on every rank", "bytes a number")
    return Table(head, rows, frozenset(range(1, len(head))))


def shapes_table(ledger: dict[str, Any]) -> Table:
    """Parameters of one shape and rule together, largest state first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in ledger["params"]:
        shape = " x ".join(str(size) for size in row["shape"]) or "scalar"
        found.setdefault((shape, str(row["rule"])), []).append(row)
    several = sorted(found.items(), key=lambda item: -_bytes(item[1]))
    rows = [
        (shape, rule, f"{len(params):,}", f"{_bytes(params):,}")
        for (shape, rule), params in several
    ]
    return Table(("shape", "rule", "parameters", "bytes of state"), rows, frozenset({2, 3}))


def _bytes(params: Sequence[dict[str, Any]]) -> int:
    return sum(row["state_bytes"] for row in params)


def notes(section: Section) -> list[str]:
    """What a reader must know before believing a mean."""
    found = []
    if len(section.drawn) < len(section.groups):
        found.append(
            f"pictures show {len(section.drawn)} of {len(section.groups)} settings: where only the "
            "learning rate differs, that with the most runs, among equals the lowest loss"
        )
    for group in section.groups:
        flawed = [f"{run.name}: {run.flaw}" for run in group.runs if run.flaw]
        if flawed:
            found.append(f"{group.label}: not in means and spreads: {'; '.join(flawed)}")
        seeds = [run.seed for run in group.repetitions]
        if len(set(map(repr, seeds))) < len(seeds):
            told = ", ".join(map(str, seeds))
            found.append(
                f"{group.label}: seeds {told}: runs of one seed are no independent repetitions"
            )
        if len(group.repetitions) == 1:
            found.append(f"{group.label}: one run, so its spread is not known")
    devices = {str(run.starts[-1].get("device")) for run in section.runs if run.starts}
    if len(devices) > 1:
        found.append("times of a step are not comparable: the runs had different devices")
    return found
