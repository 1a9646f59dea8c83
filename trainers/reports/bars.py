"""Bars with their values: bytes of state, peak memory, seconds a step, for each group."""

from collections.abc import Callable, Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.layout_engine import ConstrainedLayoutEngine

from trainers.reports.compare import SIZE, color_of, two_lines
from trainers.reports.groups import Group, Section
from trainers.reports.spread import Spread, last, middle
from trainers.reports.style import Theme, rc

PEAK = "train/peak_memory"


def state_bytes(group: Group) -> Spread | None:
    """Bytes of one copy of the optimizer's state, by the ledgers of the group."""
    return Spread.of([run.ledger["state_bytes"] for run in group.runs if run.ledger])


def peak_memory(group: Group) -> Spread | None:
    """Bytes, at most, on rank 0; None where no run has logged it."""
    return Spread.of(last(group.runs, PEAK))


def step_time(group: Group) -> Spread | None:
    """Seconds of an optimizer step: of each run the median, without its first logged steps."""
    return Spread.of(middle(group.runs, "train/seconds"))


BARS: dict[str, tuple[str, Callable[[Group], Spread | None]]] = {
    "state": ("Optimizer state, one copy", state_bytes),
    "memory": ("Peak memory of rank 0", peak_memory),
    "time": ("Time of a step", step_time),
}


def in_units(name: str, value: float) -> str:
    """The value of a bar, in words."""
    if name == "time":
        return f"{value:,.2f} s" if value >= 1 else f"{1000 * value:,.0f} ms"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{value / size:,.2f} {unit}"
    return f"{value:,.0f} bytes"


def is_measured(section: Section, name: str) -> bool:
    """Whether any group has a value for the bars `name`."""
    return any(BARS[name][1](group) for group in section.groups)


def draw_bars(section: Section, name: str, theme: Theme) -> Picture:
    """A bar for each group from zero to its mean, with lowest and highest."""
    title, measure = BARS[name]
    found = [(group, measure(group)) for group in section.drawn]
    with rc_context(rc(theme)):
        size = (SIZE[0], 0.9 + 0.36 * len(found))
        picture = Picture(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        axes = picture.add_subplot()
        axes.set_title(title)
        _draw(axes, found, name, theme)
        return picture


def _draw(
    axes: Axes, found: Sequence[tuple[Group, Spread | None]], name: str, theme: Theme
) -> None:
    top = max(spread.high for _, spread in found if spread)
    for place, (group, spread) in enumerate(found):
        if spread is None:
            axes.text(0, place, " not recorded", va="center", color=theme.middle, fontsize=8.5)
            continue
        axes.barh(place, spread.mean, height=0.62, color=color_of(group, theme))
        if spread.high > spread.low:
            ends = [[spread.mean - spread.low], [spread.high - spread.mean]]
            axes.errorbar(spread.mean, place, xerr=ends, color=theme.ink, linewidth=1, capsize=2)
        words = f"  {in_units(name, spread.mean)}"
        axes.text(spread.high, place, words, va="center", color=theme.ink, fontsize=8.5)
    axes.set_yticks(range(len(found)), [two_lines(group.label) for group, _ in found])
    axes.tick_params(axis="y", labelcolor=theme.ink)
    axes.set_ylim(len(found) - 0.5, -0.5)  # a bar without a value keeps its place
    axes.set_xlim(0, 1.25 * top or 1)
    axes.set_xticks([])  # the values stand at the bars
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
