"""How our pictures look, by day and by night."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

# As their authors spell them; a run without a known optimizer is drawn in ink.
OPTIMIZERS = {
    "came": "CAME",
    "adamw": "AdamW",
    "adafactor": "Adafactor",
    "lamb": "LAMB",
    "sm3": "SM3",
}
MARKERS = "osD^v"  # in their order
FURTHER_MARKERS = "PX*hp"  # of their further groups


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb.

    Those of the optimizers differ in lightness too, so that they can be told apart in grey, and
    without red, green or blue (tests/trainers/reports/test_style.py).
    """

    name: str
    paper: str  # what is drawn on
    ink: str
    middle: str
    pale: str
    optimizers: Mapping[str, str] = field(default_factory=dict)

    def of(self, optimizer: str) -> str:
        """The colour of an optimizer."""
        return self.optimizers.get(optimizer, self.middle)


LIGHT = Theme(
    *("light", "#ffffff", "#22262d", "#666d78", "#e6e9ed"),
    MappingProxyType(
        {
            "came": "#1c6bb8",
            "adamw": "#c7641a",
            "adafactor": "#17572f",
            "lamb": "#5c1458",
            "sm3": "#9093a0",
        }
    ),
)
DARK = Theme(
    *("dark", "#14171c", "#e4e7ec", "#9aa2ae", "#2b3038"),
    MappingProxyType(
        {
            "came": "#6ea5f5",
            "adamw": "#f0a860",
            "adafactor": "#b4ecc4",
            "lamb": "#bb56ae",
            "sm3": "#8b8d96",
        }
    ),
)
THEMES = (LIGHT, DARK)


def rc(theme: Theme) -> dict[str, Any]:
    """The theme in matplotlib's words, for `rc_context`."""
    return {
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "text.color": theme.ink,
        "text.parse_math": False,  # a dollar in a name is a dollar
        "axes.labelcolor": theme.middle,
        "axes.edgecolor": theme.middle,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.titlesize": 10.5,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.pale,
        "xtick.color": theme.middle,
        "ytick.color": theme.middle,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "xtick.minor.size": 0,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.handlelength": 1.4,
    }
