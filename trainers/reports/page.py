"""One page for several runs: an HTML file that needs nothing beside it, and its pictures."""

import io
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure as Picture

from trainers import durable
from trainers.errors import ConfigError, StorageError
from trainers.reports import tables
from trainers.reports.bars import BARS, draw_bars, is_measured
from trainers.reports.compare import draw_curves, metrics_of
from trainers.reports.groups import Group, Section, sort_runs
from trainers.reports.paper import Figure
from trainers.reports.rates import draw_rates, swept_metric
from trainers.reports.runs import Run
from trainers.reports.series import GUESSED
from trainers.reports.style import DARK, LIGHT, THEMES

PAGE_FILE = "index.html"
_DPI = 220  # two dots for each of a page's


@dataclass(frozen=True)
class Shown:
    """A picture on the page: its PNG by theme, and what it says to who cannot see it."""

    name: str
    words: str
    pngs: dict[str, bytes]

    def uri(self, theme: str) -> str:
        """The picture inside its own address."""
        return f"data:image/png;base64,{b64encode(self.pngs[theme]).decode()}"


def write_page(
    runs: Sequence[Run], out: Path, *, paper: Figure | None = None, empty: Sequence[Path] = ()
) -> Path:
    """Write `out`/index.html and the PNGs; returns the page's path.

    `empty` are folders that were named and hold no run.

    Raises ConfigError if no run measures what the paper's figure shows, StorageError if `out`
    cannot be written.
    """
    sections = sort_runs(runs)
    if paper is not None and not any(_comparable(section, paper) for section in sections):
        raise ConfigError(
            f"--paper shows {paper.metric} of {paper.objective}, which none of the runs measures: "
            "leave it out, or name runs that do"
        )
    shown = [_section(section, index, paper) for index, section in enumerate(sections, start=1)]
    loader = FileSystemLoader(Path(__file__).parent)
    # Names, labels and fidelity reports come from files: nothing reaches the page unescaped.
    environment = Environment(
        *(),
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        *(),
        sections=shown,
        num_runs=len(runs),
        num_unfinished=sum(run.flaw is not None for run in runs),
        paper=paper,
        empty=[path.resolve().name for path in empty],
        light=LIGHT,
        dark=DARK,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for section in shown:
            for picture in (*section["curves"], *section["bars"]):
                for theme, png in picture.pngs.items():
                    ending = "" if theme == LIGHT.name else f"-{theme}"
                    durable.write_bytes(out / f"{picture.name}{ending}.png", png)
        durable.write_text(out / PAGE_FILE, page)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error}") from error
    return out / PAGE_FILE


def _comparable(section: Section, paper: Figure) -> bool:
    asked = {run.settings.get("objective.name") for run in section.runs}
    return asked == {paper.objective} and paper.metric in metrics_of(section)


def _section(section: Section, index: int, paper: Figure | None) -> dict[str, Any]:
    beside = paper if paper is not None and _comparable(section, paper) else None
    runs = [run for group in section.groups for run in group.runs]
    return {
        "title": section.title,
        "notes": tables.notes(section),
        "curves": [*_curves(section, index, beside), *_rates(section, index)],
        "bars": list(_bars(section, index)),
        "final": tables.final_table(section, beside),
        "cost": tables.cost_table(section),
        "settings": tables.settings_table(section),
        "runs": tables.runs_table(section),
        "starts": [(run.name, tables.starts_table(run)) for run in runs if run.starts],
        "ledger": tables.ledger_table(section),
        "ledgers": list(_ledgers(section.groups)),
        "fidelity": _fidelity(runs),
        "paper": beside,
    }


def _curves(section: Section, index: int, paper: Figure | None) -> Iterator[Shown]:
    for metric in metrics_of(section):
        beside = paper if paper is not None and paper.metric == metric else None
        kind = "accuracy" if metric in GUESSED else "loss"
        for as_fraction, over in ((False, "steps"), (True, "fraction")):
            draw = partial(draw_curves, section, metric, paper=beside, as_fraction=as_fraction)
            words = f"{GUESSED.get(metric, 'held-out loss')} over the {over} of training"
            yield _shown(f"{index}-{kind}-{over}", words, draw)


def _rates(section: Section, index: int) -> Iterator[Shown]:
    if metric := swept_metric(section):
        words = f"{GUESSED.get(metric, 'held-out loss')} at the end over the learning rate"
        yield _shown(f"{index}-rates", words, partial(draw_rates, section, metric))


def _bars(section: Section, index: int) -> Iterator[Shown]:
    for name, (title, _) in BARS.items():
        if is_measured(section, name):
            yield _shown(f"{index}-{name}", title, partial(draw_bars, section, name))


def _shown(name: str, words: str, draw: Callable[..., Picture]) -> Shown:
    pngs = {}
    for theme in THEMES:
        file = io.BytesIO()
        draw(theme=theme).savefig(file, format="png", dpi=_DPI)
        pngs[theme.name] = file.getvalue()
    return Shown(name, words, pngs)


def _ledgers(groups: Sequence[Group]) -> Iterator[tuple[str, tables.Table]]:
    for group in groups:
        ledger = next((run.ledger for run in group.runs if run.ledger), None)
        if ledger is not None and ledger["params"]:
            yield group.label, tables.shapes_table(ledger)


def _fidelity(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Each report once, with the names of the runs that have it."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.fidelity:
            found.setdefault(run.fidelity, []).append(run.name)
    return [(", ".join(names), text) for text, names in found.items()]
