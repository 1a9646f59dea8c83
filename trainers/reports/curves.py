"""The picture of a run: loss and accuracy, learning rate and speed, over the steps."""

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from trainers.reports.series import GUESSED, Row, Series, guessed
from trainers.reports.style import LIGHT, rc

# Light alone: README shows it, and a page around it chooses no other.
_COLORS = LIGHT.optimizers
BLUE, ORANGE, GREEN, VIOLET = (_COLORS[name] for name in ("came", "adamw", "adafactor", "lamb"))
_WIDEST = 70  # letters of the title
INK, MIDDLE = LIGHT.ink, LIGHT.middle


def draw(rows: Sequence[Row], title: str, subtitle: str = "") -> Figure:
    """Loss and accuracy above, learning rate and speed below, over the steps."""
    with rc_context(rc(LIGHT)):
        # Inches, and as shares: above stand two lines, each for itself, as either may be long.
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, rect=(0, 0, 1, 0.905))
        figure = Figure(figsize=(10, 6.2), layout=layout)
        words = title if len(title) <= _WIDEST else f"{title[: _WIDEST - 3]}..."
        figure.text(0.012, 0.962, words, va="center", fontsize=14, fontweight="bold")
        figure.text(0.012, 0.92, subtitle, va="center", color=MIDDLE)
        grid = figure.add_gridspec(2, 2, height_ratios=(2.3, 1))
        panels = (_draw_loss, _draw_accuracy, _draw_rate, _draw_speed)
        for place, panel in enumerate(panels):
            axes = figure.add_subplot(grid[place // 2, place % 2])
            panel(axes, rows)
            _finish(axes, max(row["step"] for row in rows), is_lowest=place >= 2)
        return figure


def _draw_loss(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title("Loss")
    if training := Series.of(rows, "train/loss"):
        _draw_smooth(axes, training, BLUE, f"training  {training.smooth().last:.2f}")
    if held_out := Series.of(rows, "eval/loss"):
        perplexity = Series.of(rows, "eval/perplexity")
        words = f"  (perplexity {perplexity.last:,.1f})" if perplexity else ""
        _draw_line(axes, held_out, ORANGE, f"held out  {held_out.last:.2f}{words}")
    _legend(axes, "upper right")


def _draw_accuracy(axes: Axes, rows: Sequence[Row]) -> None:
    name = guessed(rows)
    axes.set_title(f"{GUESSED[name].capitalize()}, held out")
    if accuracy := Series.of(rows, name):
        _draw_line(axes, accuracy, GREEN, f"model  {accuracy.last:.1%}")
    if commonest := Series.of(rows, "eval/commonest_token_accuracy"):
        label = f"always the commonest token  {commonest.last:.1%}"
        style = (0, (4, 3))
        axes.axhline(commonest.last, color=MIDDLE, linewidth=1.3, linestyle=style, label=label)
    highest = max([*accuracy.values, *commonest.values, 0.01])
    axes.set_ylim(0, 1.25 * highest)  # room for the legend above the curve
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend(axes, "upper left")


def _draw_rate(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title("Learning rate")
    if rate := Series.of(rows, "train/lr"):
        axes.fill_between(rate.steps, rate.values, color=VIOLET, alpha=0.10, linewidth=0)
        _draw_line(axes, rate, VIOLET)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(
        lambda rate, _: f"{rate:.1e}".replace("e-0", "e-") if rate else "0"
    )


def _draw_speed(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_title("Tokens per second")
    if speed := Series.of(rows, "train/tokens_per_second"):
        _draw_smooth(axes, speed, INK)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_smooth(axes: Axes, series: Series, color: str, label: str | None = None) -> None:
    """The moving mean, and behind it, pale, what was measured."""
    axes.plot(series.steps, series.values, color=color, alpha=0.22, linewidth=0.9)
    smooth = series.smooth()
    marker = "o" if series.steps.size == 1 else None
    axes.plot(smooth.steps, smooth.values, color=color, label=label, marker=marker, markersize=4)


def _draw_line(axes: Axes, series: Series, color: str, label: str | None = None) -> None:
    """A line with a dot for each measurement, while these can be told apart."""
    marker = "o" if series.steps.size <= 60 else None
    axes.plot(series.steps, series.values, color=color, label=label, marker=marker, markersize=4)


def _legend(axes: Axes, place: str) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc=place)


def _finish(axes: Axes, last_step: int, *, is_lowest: bool) -> None:
    axes.set_xlim(0, max(last_step, 1) * 1.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(3 if is_lowest else 6))
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    if is_lowest:
        axes.set_xlabel("step")
    if not axes.has_data():
        axes.set_yticks([])
        middle = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.5, "not measured", color=MIDDLE, **middle)
