"""A sweep of learning rates: what each of them came to, a line for each optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log10

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, PercentFormatter

from trainers.reports.compare import SIZE, color_of, marker_of, metrics_of
from trainers.reports.groups import Group, Section
from trainers.reports.series import GUESSED
from trainers.reports.spread import last
from trainers.reports.style import Theme, rc

RATE = "optimizer.lr"
_TICK_APART = 0.12  # of the width


@dataclass(frozen=True)
class Sweep:
    """Groups that differ in their learning rate alone, from the lowest to the highest."""

    label: str
    groups: tuple[Group, ...]

    def ends(self, metric: str) -> list[tuple[Group, float, list[float]]]:
        """Learning rate and last values of each group that came to its end."""
        found = [(g, g.settings[RATE], last(g.repetitions, metric)) for g in self.groups]
        return [(group, rate, values) for group, rate, values in found if values]

    def best(self, metric: str) -> Group | None:
        """The group whose mean is best; None with fewer than two to choose from."""
        found = [(_mean(values), group) for group, _, values in self.ends(metric)]
        if len(found) < 2:
            return None
        choose = max if is_share(metric) else min
        return choose(found, key=lambda one: one[0])[1]


def is_share(metric: str) -> bool:
    """Whether more of a metric is better: accuracies; of a loss or a perplexity it is less."""
    return metric.endswith("_accuracy")


def sweeps(section: Section) -> list[Sweep]:
    """All sweeps of more than one learning rate, in the order of the groups."""
    found: dict[str, list[Group]] = {}
    for group in section.groups:
        rate = group.settings.get(RATE)
        if isinstance(rate, int | float) and rate > 0:
            apart = {key: value for key, value in group.settings.items() if key != RATE}
            found.setdefault(repr(sorted(apart.items())), []).append(group)
    several = [some for some in found.values() if len(some) > 1]
    return [
        Sweep(_label(some[0]), tuple(sorted(some, key=lambda group: group.settings[RATE])))
        for some in several
    ]


def swept_metric(section: Section) -> str | None:
    """What the picture of the section's sweeps shows: the loss, else an accuracy; None for none."""
    for metric in reversed(metrics_of(section)):
        if any(sweep.best(metric) for sweep in sweeps(section)):
            return metric
    return None


def draw_rates(section: Section, metric: str, theme: Theme) -> Picture:
    """The last value of `metric` over the learning rate: seeds as dots, lines through the means."""
    shown = [sweep for sweep in sweeps(section) if sweep.best(metric)]
    with rc_context(rc(theme)):
        picture = Picture(figsize=SIZE, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        axes = picture.add_subplot()
        axes.set_xscale("log")
        for index, sweep in enumerate(shown):
            optimizer = sweep.groups[0].optimizer
            before = sum(one.groups[0].optimizer == optimizer for one in shown[:index])
            _draw(axes, sweep, metric, replace(sweep.groups[0], place=before), theme)
        _scale(axes, sorted({rate for sweep in shown for _, rate, _ in sweep.ends(metric)}))
        what = GUESSED.get(metric, "held-out loss, nats")
        axes.set_title(f"{what[0].upper()}{what[1:]}, at the end")
        if is_share(metric):
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        picture.legend(loc="outside lower left", fontsize=8)
        return picture


def _draw(axes: Axes, sweep: Sweep, metric: str, look: Group, theme: Theme) -> None:
    """`look` is a group with the colour and marker of the line."""
    color, best = color_of(look, theme), sweep.best(metric)
    rates, means = [], []
    for group, rate, values in sweep.ends(metric):
        rates.append(rate)
        means.append(_mean(values))
        axes.plot([rate] * len(values), values, ".", color=color, alpha=0.6, markersize=5)
        if group is best:
            value = f"{means[-1]:.2%}" if is_share(metric) else f"{means[-1]:.3f}"
            label = f"{sweep.label}: best {in_words(rate)}, {value}"
            ring = {"markersize": 10, "markerfacecolor": "none", "markeredgecolor": theme.ink}
            axes.plot(rate, means[-1], "o", **ring)
    axes.plot(rates, means, color=color, marker=marker_of(look), markersize=4.5, label=label)


def _scale(axes: Axes, rates: Sequence[float]) -> None:
    axes.xaxis.set_major_locator(FixedLocator(ticks_of(rates)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda rate, _: in_words(rate))
    axes.set_xlabel("learning rate (log scale)")


def ticks_of(rates: Sequence[float]) -> list[float]:
    """The learning rates that were tried, from low to high, without those too close to be read."""
    apart = _TICK_APART * log10(rates[-1] / rates[0])
    found = [rates[0]]
    for rate in rates[1:]:
        if log10(rate / found[-1]) >= apart:
            found.append(rate)
    return found


def in_words(rate: float) -> str:
    """0.00016 -> "1.6e-4"."""
    digits, _, exponent = f"{rate:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _label(group: Group) -> str:
    parts = group.label.split(", ")
    return ", ".join(part for part in parts if not part.startswith("lr "))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
