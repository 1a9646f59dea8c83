"""Pictures of several groups of runs: curves with their spread, the paper's curves beside them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure as Picture
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from trainers.reports.groups import Group, Section
from trainers.reports.paper import PAPER_NAMES, Figure
from trainers.reports.series import GUESSED, Series
from trainers.reports.spread import Band, last
from trainers.reports.style import FURTHER_MARKERS, MARKERS, OPTIMIZERS, Theme, rc

SIZE = (4.8, 3.4)  # inches: wide enough for a column of a page, and legible on a telephone
_COMMONEST = "eval/commonest_token_accuracy"
# Beyond this ratio of lengths the shorter run would be a dot: steps are drawn on a log scale.
_LONGER = 5
_WIDEST = 28  # letters of a line of a label
_HIGH = (0.175, 0.31)  # inches of a label of one line, and of two
_NEAR = 0.9  # of the axes' width: what ends there is joined to its label
_AROUND = 0.7  # inches above and below the axes
_DASHES, _DOTS = (0, (4, 2)), (0, (1, 2))


@dataclass(frozen=True)
class Line:
    """A curve ready to be drawn; `x` are steps, or fractions of the run."""

    label: str
    color: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    marker: str | None = None
    style: tuple[int, tuple[int, ...]] | str = "-"
    weight: float = 1.8
    ink: str | None = None  # of the label, where the line is too pale for letters


def metrics_of(section: Section) -> list[str]:
    """The held-out curves that a section has measured: an accuracy, the loss."""
    names = [*GUESSED, "eval/loss"]
    return [name for name in names if any(Series.of(run.rows, name) for run in section.runs)]


def draw_curves(
    section: Section, metric: str, theme: Theme, *, paper: Figure | None, as_fraction: bool
) -> Picture:
    """`metric` over the steps, or over the fraction of the run that is done."""
    lines = list(_ours(section, metric, theme, as_fraction))
    if paper is not None:
        lines += _papers(paper, theme, as_fraction)
    form = "{:.1%}".format if metric in GUESSED else "{:.2f}".format
    labels = [two_lines(line.label, form(line.y[-1])) for line in lines]
    inches = [_HIGH["\n" in label] for label in labels]
    height = max(SIZE[1], _AROUND + sum(inches))  # that no label reaches the title
    with rc_context(rc(theme)):
        layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
        picture = Picture(figsize=(SIZE[0], height), layout=layout)
        axes = picture.add_subplot()
        for line in lines:
            _draw(axes, line)
        lengths = [group.runs[0].steps for group in section.drawn]
        lengths += [paper.steps] if paper is not None else []
        _scale_x(axes, lines, lengths, as_fraction)
        _scale_y(axes, metric, section, lines, theme)
        _label(axes, lines, labels, [high / (height - _AROUND) for high in inches])
        return picture


def color_of(group: Group, theme: Theme) -> str:
    """The optimizer's colour, paler for each further group of it."""
    share = min(0.2 * group.place, 0.6)
    here, there = np.array(to_rgb(theme.of(group.optimizer))), np.array(to_rgb(theme.paper))
    return to_hex(here + (there - here) * share)


def marker_of(group: Group) -> str:
    """The optimizer's marker, another for each further group of it."""
    kinds = list(OPTIMIZERS)
    first = kinds.index(group.optimizer) if group.optimizer in kinds else 0
    if not group.place:
        return MARKERS[first]
    return FURTHER_MARKERS[(first + group.place - 1) % len(FURTHER_MARKERS)]


def _ours(section: Section, metric: str, theme: Theme, as_fraction: bool) -> Iterator[Line]:
    for group in section.drawn:
        color, marker = color_of(group, theme), marker_of(group)
        several = [s for run in group.repetitions if (s := Series.of(run.rows, metric))]
        if band := Band.of(several):
            x = band.steps / group.runs[0].steps if as_fraction else band.steps
            low, high = (band.low, band.high) if band.n > 1 else (None, None)
            shown = marker if band.steps.size <= 40 else None
            yield Line(
                group.label, color, x, band.mean, low, high, shown, ink=theme.of(group.optimizer)
            )
        for run in group.runs:
            if run.flaw is not None and (series := Series.of(run.rows, metric)):
                x = series.steps / run.steps if as_fraction else series.steps
                label = f"unfinished {group.label}"
                yield Line(label, color, x, series.values, style=_DOTS, weight=1.3)


def _papers(paper: Figure, theme: Theme, as_fraction: bool) -> Iterator[Line]:
    for optimizer, series in paper.curves.items():
        x = series.steps / paper.steps if as_fraction else series.steps
        label = f"paper: {PAPER_NAMES[optimizer]}"
        yield Line(label, theme.of(optimizer), x, series.values, style=_DASHES, weight=1.4)


def _draw(axes: Axes, line: Line) -> None:
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=line.color, alpha=0.2, linewidth=0)
    marker = line.marker or ("o" if line.x.size == 1 else None)
    axes.plot(
        *(line.x, line.y),
        color=line.color,
        linestyle=line.style,
        linewidth=line.weight,
        marker=marker,
        markersize=3.6,
        clip_on=False,
    )


def _scale_x(axes: Axes, lines: Sequence[Line], lengths: Sequence[int], as_fraction: bool) -> None:
    """`lengths` are the steps that whole runs have, whatever came of them."""
    ends = [float(line.x[-1]) for line in lines]
    if as_fraction:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel("share of the run")
    elif max(lengths) > _LONGER * min(lengths) and min(ends) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(float(line.x[line.x > 0][0]) for line in lines), max(ends))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        axes.set_xlabel("step (log scale)")
    else:
        axes.set_xlim(0, max([*ends, 1]))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        axes.set_xlabel("step")


def _scale_y(
    axes: Axes, metric: str, section: Section, lines: Sequence[Line], theme: Theme
) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(6))
    if metric not in GUESSED:
        axes.set_title("Held-out loss (nats)")
        return
    axes.set_title(f"{GUESSED[metric].capitalize()}, held out")
    tops = [line.y if line.high is None else line.high for line in lines]
    commonest = last(section.runs, _COMMONEST)
    if commonest:
        mean = float(np.mean(commonest))
        axes.axhline(mean, color=theme.middle, linewidth=1.0, linestyle=_DOTS)
        words = f"always the commonest token {mean:.1%}"
        place = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 7.5}
        axes.annotate(words, (0, mean), xycoords=axes.get_yaxis_transform(), **place)
        tops.append(np.array(commonest))
    axes.set_ylim(0, 1.08 * max(float(top.max()) for top in tops) or 0.01)
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def two_lines(label: str, value: str = "") -> str:
    """A label for a picture: the name and a value, and below what else tells it from others.

    Where that is too long for a line the last setting, the learning rate, is kept.
    """
    name, _, rest = label.partition(", ")
    others, comma, rate = rest.rpartition(", ")
    end = f"{comma}{rate}"
    below = _cut(_cut(others, _WIDEST - len(end)) + end)
    return "\n".join(line for line in (f"{_cut(name)}  {value}".rstrip(), below) if line)


def _cut(words: str, widest: int = _WIDEST) -> str:
    return words if len(words) <= widest else f"{words[: max(widest - 3, 0)]}..."


def _label(
    axes: Axes, lines: Sequence[Line], labels: Sequence[str], sizes: Sequence[float]
) -> None:
    """Each line's name and last value at the right edge, as high as its end, if there is room.

    `sizes` are heights of the labels, as shares of the axes.
    """
    shares = axes.transData + axes.transAxes.inverted()
    ends = [shares.transform((line.x[-1], line.y[-1])) for line in lines]
    places = spread_out([float(end[1]) for end in ends], sizes)
    for line, label, height, end in zip(lines, labels, places, ends, strict=True):
        if end[0] > _NEAR or not line.marker:  # from farther off it would pass for a curve
            axes.annotate(
                "",
                (line.x[-1], line.y[-1]),
                xytext=(1.03, height),
                textcoords="axes fraction",
                annotation_clip=False,
                arrowprops={
                    **{"arrowstyle": "-", "color": line.color, "linewidth": 0.6},
                    **{"shrinkA": 0, "shrinkB": 1},
                },
            )
        if line.marker:  # tells two lines of one optimizer apart
            place = {"transform": axes.transAxes, "clip_on": False}
            axes.scatter(1.05, height, s=13, marker=line.marker, color=line.color, **place)
        axes.text(
            *(1.07 if line.marker else 1.035, height, label),
            va="center",
            fontsize=8,
            linespacing=1.1,
            color=line.ink or line.color,
            transform=axes.transAxes,
        )


def spread_out(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """`heights` moved as little as it takes for labels so high not to touch, their order kept.

    They stay inside [0, 1] while there is room: above stands the title, below are the steps. By
    squares that is isotonic regression: less what lies below it, no label wishes to be lower than
    the one before.
    """
    order = np.argsort(heights, kind="stable")
    high = np.array(sizes)[order]
    below = np.concatenate([[0.0], np.cumsum((high[:-1] + high[1:]) / 2)])
    blocks: list[list[float]] = []  # neighbours that touch
    for wish in np.array(heights)[order] - below:
        blocks.append([wish])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    found = np.empty(len(order))
    lowest = high[0] / 2
    found[order] = np.clip(placed, lowest, max(lowest, 1 - below[-1] - high[-1] / 2)) + below
    return [float(place) for place in found]
