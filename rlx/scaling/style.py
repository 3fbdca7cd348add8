"""The look of every figure: colours, axes, ticks.

Colours are those of Okabe and Ito, told apart under colour blindness.
"""

from __future__ import annotations

import math
import re
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT, RULE = "#333333", "#8a8a8a", "#e6e6e6"
DASHES = (0, (4, 2))


def natural(text: str) -> list[tuple[bool, float, str]]:
    """Sort key that puts 9 before 10."""
    return [
        (part.isdigit(), float(part) if part.isdigit() else 0.0, part)
        for part in re.split(r"(\d+)", text)
    ]


def shade(color: str, i: int, n: int) -> tuple[float, float, float]:
    """The i-th of n shades of a colour, the first unchanged, the last half way to white."""
    mix = 0.5 * i / max(n - 1, 1)
    r, g, b = to_rgb(color)
    return (r + (1 - r) * mix, g + (1 - g) * mix, b + (1 - b) * mix)


def panel_grid(n: int) -> tuple[Figure, NDArray]:
    """A figure with n panels of shared axes, and the grid of its axes."""
    columns = n if n <= 3 else 2 if n == 4 else min(math.ceil(math.sqrt(n)), 5)
    rows = math.ceil(n / columns)
    width, height = {1: (6.8, 4.8), 2: (5.0, 4.6)}.get(columns, (3.7, 3.4))
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=150)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in grid.flat[n:]:
        ax.set_visible(False)
    return figure, grid


def tidy(ax: Axes, rules: Literal["x", "y"] | None = "y") -> None:
    """Two spines, small labels, faint rules across one axis."""
    if rules:
        ax.grid(axis=rules, color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def log_ticks(ax: Axes) -> None:
    """Ticks of a log axis: the more decades it spans, the fewer in each."""
    low, high = ax.get_xlim()
    spans = {0.9: (1.0, 2.0, 3.0, 5.0, 7.0), 1.7: (1.0, 2.0, 5.0), 3.2: (1.0, 3.0)}
    decades = math.log10(high / low)
    subs = next((subs for span, subs in spans.items() if decades < span), (1.0,))
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(tick))


def tick(value: float, _: int) -> str:
    """1000 as 1k, 50000 as 50k, 2e12 as 2 x 10^12."""
    if value >= 1e6:
        exponent = math.floor(math.log10(value) + 1e-9)
        mantissa = value / 10**exponent
        digits = "" if abs(mantissa - 1) < 1e-6 else rf"{mantissa:g}\times "
        return rf"${digits}10^{{{exponent}}}$"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
