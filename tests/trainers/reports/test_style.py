"""The optimizers' colours can be told apart, whoever looks and however it is printed."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from trainers.reports.style import MARKERS, OPTIMIZERS, THEMES, Theme

# Machado, Oliveira, Fernandes (2009), severity 1, on linear RGB
SIGHT = {
    "full": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> np.ndarray:
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB: its distances are about those that are seen; 2 is just visible."""
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it: 3 is what it asks of graphics, 4.5 of text."""
    low, high = sorted(float(TO_XYZ[1] @ linear(color)) for color in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_colours(theme: Theme) -> None:
    assert theme.optimizers.keys() == OPTIMIZERS.keys() and len(OPTIMIZERS) <= len(MARKERS)
    for name, matrix in SIGHT.items():
        seen = {key: lab(np.array(matrix) @ linear(c)) for key, c in theme.optimizers.items()}
        for one, other in combinations(seen, 2):
            assert np.linalg.norm(seen[one] - seen[other]) > 18, (name, one, other)
    grey = {key: lab(linear(color))[0] for key, color in theme.optimizers.items()}
    for one, other in combinations(grey, 2):
        assert abs(grey[one] - grey[other]) > 6, (one, other)
    for color in theme.optimizers.values():
        assert contrast(color, theme.paper) > 3
    assert contrast(theme.middle, theme.paper) > 4.5 and contrast(theme.ink, theme.paper) > 7
