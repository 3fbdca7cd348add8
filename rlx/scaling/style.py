"""The style of every figure: colours, axes, ticks, keys.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart. A recipe has one
colour in all figures of a study (`recipe_colors`); seeds are shades of it; grey marks what the data
do not determine.
Numbers are written 0.58, shares 90 %, compute 3 x 10^10.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter
from numpy.typing import NDArray

Color = str | tuple[float, float, float]

LETTER = 0.065  # inches, the width of a letter of keys and notes, about
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, FAINT, RULE, SHADE = "#333333", "#8a8a8a", "#e6e6e6", "#eeeeee"
DASHES = (0, (4, 2))
DPI = 150


# ------------------------------------------------------------------ colours


def recipe_colors(names: Iterable[str]) -> dict[str, str]:
    """A colour for each recipe, in order; one for all if there are more recipes than colours."""
    distinct = list(dict.fromkeys(names))
    if len(distinct) > len(COLORS):
        return dict.fromkeys(distinct, COLORS[0])
    return dict(zip(distinct, COLORS, strict=False))


def shade(color: str, i: int, n: int) -> tuple[float, float, float]:
    """The i-th of n shades of a colour, the first unchanged, the last half way to white."""
    mix = 0.5 * i / max(n - 1, 1)
    r, g, b = to_rgb(color)
    return (r + (1 - r) * mix, g + (1 - g) * mix, b + (1 - b) * mix)


def natural(text: str) -> list[tuple[bool, float, str]]:
    """Sort key that puts 9 before 10."""
    return [
        (part.isdigit(), float(part) if part.isdigit() else 0.0, part)
        for part in re.split(r"(\d+)", text)
    ]


# ------------------------------------------------------------------ figures and axes


def canvas(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


def panel_grid(n: int) -> tuple[Figure, NDArray]:
    """A figure with n panels that share their axes, and the grid of these."""
    columns = n if n <= 3 else 2 if n == 4 else min(math.ceil(math.sqrt(n)), 5)
    rows = math.ceil(n / columns)
    width, height = {1: (6.8, 4.8), 2: (5.0, 4.6)}.get(columns, (3.7, 3.4))
    figure = canvas(columns * width, rows * height)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for ax in grid.flat[n:]:
        ax.set_visible(False)
    return figure, grid


def label_outside(grid: NDArray, n: int, x: str, y: str) -> None:
    """Labels of a grid of n shared panels: below the lowest of each column, left of each row."""
    columns = grid.shape[1]
    for i, ax in enumerate(grid.flat[:n]):
        if i + columns >= n:  # also above an empty cell
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(x, fontsize=9)
    for ax in grid[:, 0]:
        ax.set_ylabel(y, fontsize=9)


def tidy(ax: Axes, rules: Literal["x", "y"] | None = "y") -> None:
    """Two spines, small labels, faint rules across one axis."""
    if rules:
        ax.grid(axis=rules, color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def rows_axis(ax: Axes, y_N: Sequence[float] | NDArray, labels: Sequence[str]) -> None:
    """A labelled row at each height; rules across the values."""
    ax.set_yticks(y_N, labels, fontsize=8)
    ax.set_ylim(min(y_N) - 0.6, max(y_N) + 0.6)
    tidy(ax, "x")
    ax.tick_params(axis="y", length=0)


# ------------------------------------------------------------------ ticks


def log_ticks(ax: Axes) -> None:
    """Ticks of a log axis of compute, fewer per decade if it spans more decades."""
    low, high = ax.get_xlim()
    spans = {0.9: (1.0, 2.0, 3.0, 5.0, 7.0), 1.7: (1.0, 2.0, 5.0), 3.2: (1.0, 3.0)}
    decades = math.log10(high / low)
    subs = next((subs for span, subs in spans.items() if decades < span), (1.0,))
    ax.xaxis.set_major_locator(LogLocator(subs=subs))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(tick))


def ratio_ticks(ax: Axes) -> None:
    """Ticks of a log axis of ratios around 1, at least three."""
    low, high = ax.get_xlim()
    sets: tuple[tuple[float, ...], ...] = (
        (0.1, 1, 10),
        (0.1, 0.2, 0.5, 1, 2, 5, 10),
        (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10),
        (0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.4),
    )
    reach = math.log(high / low)
    ticks = sets[0 if reach > 7 else 1 if reach > 3 else 2 if reach > 0.9 else 3]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")


def percent_ticks(axis: Axis) -> None:
    """0.9 as 90 %."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))


def percent(share: float) -> str:
    """0.9 as 90 %."""
    return f"{100 * share:g} %"


def tick(value: float, _: int = 0) -> str:
    """1000 as 1k, 50000 as 50k, 2e12 as 2 x 10^12."""
    if value >= 1e6:
        exponent = math.floor(math.log10(value) + 1e-9)
        mantissa = value / 10**exponent
        digits = "" if abs(mantissa - 1) < 1e-6 else rf"{mantissa:.3g}\times "
        return rf"${digits}10^{{{exponent}}}$"
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


# ------------------------------------------------------------------ words and keys


def title(figure: Figure, words: str) -> None:
    if words:
        figure.suptitle(words, fontsize=11, x=0.01, ha="left", color=INK)


def panel_title(ax: Axes, words: str) -> None:
    ax.set_title(words, fontsize=9, loc="left", color=INK)


def note(figure: Figure, words: str) -> None:
    """Small print below a figure, in lines as wide as it is."""
    lines = textwrap.fill(words, int(figure.get_figwidth() / LETTER))
    figure.supxlabel(lines, fontsize=8, color=INK, x=0.01, ha="left")


def level(ax: Axes, value: float, words: str, color: Color = INK, *, beside: bool = False) -> None:
    """A known pass rate, such as an exact ceiling: a thin line with a label.

    The label is above its left end, where curves are low, or beside its right end.
    """
    ax.axhline(value, color=color, linewidth=0.8, zorder=1)
    ax.text(
        1.01 if beside else 0.01, value, words, transform=ax.get_yaxis_transform(),
        ha="left", va="center" if beside else "bottom", fontsize=8, color=color,
    )  # fmt: skip


def dot(color: Color, **options: Any) -> Line2D:
    """A mark for a key."""
    style: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markersize": 4.5,
        "markeredgewidth": 0.8,
    }
    aliases = {"ms": "markersize", "mfc": "markerfacecolor", "lw": "linewidth"}
    style |= {aliases.get(key, key): value for key, value in options.items()}
    return Line2D([], [], color=color, **style)


def key_above(
    ax: Axes, handles: Sequence, labels: Sequence[str], words: str = "", columns: int = 1
) -> None:
    """Title and key above the axes, clear of the curves; a tuple of marks is drawn side by side."""
    ax.legend(
        handles,
        labels,
        title=words or None,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        alignment="left",
        ncols=columns,
        frameon=False,
        fontsize=8,
        title_fontsize=9,
        borderaxespad=0.2,
        handlelength=2.2,
    )


def key_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """The key, in as many columns as fit the figure."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_figwidth() / (LETTER * longest + 0.6)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def rate_limits(values: Iterable[float]) -> tuple[float, float]:
    """Limits of an axis of pass rates that shows all the values."""
    x = np.asarray(list(values), float)
    x = x[np.isfinite(x)]
    pad = 0.04 * (x.max() - x.min()) + 1e-3
    return x.min() - pad, x.max() + pad
