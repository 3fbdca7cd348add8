"""What the data leave open: draws of the asymptote against C_mid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import gaussian_kde

from rlx.errors import InputError
from rlx.scaling.plot.shared import Floats, colors, interval, labels
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.style import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    Color,
    canvas,
    dot,
    key_below,
    log_ticks,
    shade,
    tidy,
    title,
)


def ridge(
    fit: ScalingFit, recipes: str | Sequence[str] | None = None, *, prob: float = 0.9
) -> Figure:
    """Draws of the curve's asymptote against C_mid: the ridge that short runs leave undetermined.

    The outlines hold half and `prob` of the density of (log C_mid, asymptote), by a normal kernel.
    A vertical line marks each recipe's last fitted compute: in the draws left of it half of the
    gain has been seen.

    Args:
        fit: a posterior.
        recipes: one name or several, at most six; default the six highest asymptotes.
        prob: share of the density inside the outer outline.

    Raises:
        InputError: an unknown recipe, more than six, or prob out of range.
        NotConverged: the fit has not converged and is not `unsafe`.
    """
    A, C_mid = fit.param("asymptote"), fit.param("C_mid")
    names = [recipes] if isinstance(recipes, str) else recipes
    if names is None:
        names = [fit.recipes[j] for j in np.argsort(-interval(A.values, prob)[1])[: len(COLORS)]]
    if not 0 < len(names) <= len(COLORS):
        raise InputError("recipes", len(names), "cannot be told apart", "name one to six")
    index = [fit.index("recipe", name) for name in names]
    figure = canvas(6.4, 5.0)
    ax = figure.subplots()
    last_J, names_J, handles = fit.last_compute("recipe"), labels(fit), []
    draws = [tuple(d.values.reshape(-1, len(names_J))[:, j] for d in (C_mid, A)) for j in index]
    ax.set_xscale("log")
    tints = _tints([colors(fit)[j] for j in index])
    for j, (x, y), color in zip(index, draws, tints, strict=True):
        few = slice(None, None, max(1, len(x) // 500))
        ax.plot(x[few], y[few], ".", color=color, ms=2.5, alpha=0.35, mew=0, zorder=2)
        shared = np.isclose(last_J[index], last_J[j]).sum() > 1
        line = INK if shared else color
        ax.axvline(last_J[j], color=line, linewidth=1.0, linestyle=DASHES, zorder=1)
        corr = np.corrcoef(np.log(x), y)[0, 1]
        handles.append(dot(color, label=f"{names_J[j]}:  correlation {corr:.2f}"))
    ax.autoscale(False)  # the limits fit the points, not the grid of the outlines
    for (x, y), color in zip(draws, tints, strict=True):
        _outlines(ax, np.log(x), y, color, (prob, 0.5))
    tidy(ax)
    log_ticks(ax)
    ax.set_xlabel(rf"$C_\mathrm{{mid}}$, {fit.evals.compute_label}", fontsize=9)
    ax.set_ylabel("asymptote of the curve (pass rate)", fontsize=9)
    handles += [
        Line2D([], [], color=FAINT, linewidth=1.2, label=f"50 % and {100 * prob:g} % of the draws"),
        Line2D([], [], color=FAINT, linewidth=1.0, linestyle=DASHES, label="last fitted compute"),
    ]
    title(figure, fit.evals.title)
    key_below(figure, handles)
    return figure


def _tints(own: Sequence[str]) -> list[Color]:
    """Colours of the recipes; shades where several, at other levels of an axis, share a colour."""
    seen: list[str] = []
    tints: list[Color] = []
    for color in own:
        tints.append(shade(color, seen.count(color), own.count(color)))
        seen.append(color)
    return tints


def _outlines(ax: Axes, x: Floats, y: Floats, color: Color, probs: Sequence[float]) -> None:
    """Contours of the highest densities of (x, y) that hold `probs`; x is drawn as exp(x)."""
    density = gaussian_kde(np.stack([x, y]), lambda kde: 1.5 * kde.scotts_factor())
    heights = np.quantile(density(density.dataset), [1 - p for p in probs])
    side = [np.linspace(v.min() - 0.2 * np.ptp(v), v.max() + 0.2 * np.ptp(v), 80) for v in (x, y)]
    grid_x, grid_y = np.meshgrid(*side)
    z = density(np.stack([grid_x.ravel(), grid_y.ravel()])).reshape(grid_x.shape)
    ax.contour(np.exp(grid_x), grid_y, z, levels=heights, colors=[color], linewidths=1.2, zorder=3)
