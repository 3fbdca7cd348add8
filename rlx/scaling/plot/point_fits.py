"""Every run of a study with its fit by least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rlx.scaling.data import Evals, short_names
from rlx.scaling.run_fits import RunFit
from rlx.scaling.style import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    Color,
    dot,
    key_above,
    key_below,
    label_outside,
    log_ticks,
    natural,
    panel_grid,
    percent,
    rate_limits,
    recipe_colors,
    shade,
    tidy,
    title,
)

CROWDED_POINTS = 400  # a panel with more points is split into one panel per recipe


def points(evals: Evals, fits: Sequence[RunFit], *, holdout: float) -> Figure:
    """Points, fitted curves and forecasts of a study, one panel per value of its axes.

    Filled points are fitted, open ones held out; a curve is solid up to the last fitted compute
    and dashed over the shaded region beyond it, which is darker where more runs are forecast. Each
    recipe has a colour, and its seeds have shades of it. A panel with more recipes than colours, or
    with too many points to tell apart, is split into one panel per recipe.

    Args:
        evals: the evaluations.
        fits: rlx.scaling.run_fits.fit_study of their frame.
        holdout: share of compute held out, for the key.
    """
    frame, panels = evals.frame, _panels(evals.frame, fits)
    figure, grid = panel_grid(len(panels))
    colors = recipe_colors(fit.recipe for _, group in panels for fit in group)
    names = short_names([fit.recipe for fit in fits])
    for ax, (name, group) in zip(grid.flat, panels, strict=False):
        _panel(ax, frame, group, names, colors, name)
    C, shared = frame.loc[frame["compute"] > 0, "compute"], grid.flat[0]
    shared.set_xlim(C.min() / 1.25, C.max() * 1.15)
    shared.set_ylim(*rate_limits([*frame["value"], *(fit.truth for fit in fits)]))
    for ax in grid.flat[: len(panels)]:
        log_ticks(ax)
    label_outside(grid, len(panels), evals.compute_label, evals.value_label)
    title(figure, evals.title)
    key_below(figure, _key(frame, fits, holdout))
    return figure


def _panels(frame: pd.DataFrame, fits: Sequence[RunFit]) -> list[tuple[str, list[RunFit]]]:
    """(name, runs) of each panel: by axes, and by recipe as well where that is crowded."""
    count = frame["run"].value_counts()
    by_axes = _group(fits, lambda fit: fit.axes)
    names = short_names([fit.recipe for fit in fits])
    panels = []
    for axes, group in sorted(by_axes.items(), key=lambda item: natural(item[0])):
        by_recipe = _group(group, lambda fit: fit.recipe)
        total = sum(count[fit.run] for fit in group)
        if len(by_recipe) == 1 or len(by_recipe) <= len(COLORS) and total <= CROWDED_POINTS:
            panels.append((axes, group))
        else:
            for recipe, runs in by_recipe.items():
                panels.append((axes, runs) if not axes else (f"{axes}, {names[recipe]}", runs))
    return panels


def _group(fits: Sequence[RunFit], key: Callable[[RunFit], str]) -> dict[str, list[RunFit]]:
    groups: dict[str, list[RunFit]] = {}
    for fit in fits:
        groups.setdefault(key(fit), []).append(fit)
    return groups


def _panel(
    ax: Axes,
    frame: pd.DataFrame,
    group: list[RunFit],
    names: dict[str, str],
    colors: dict[str, str],
    name: str,
) -> None:
    """Every run of one panel, its exact ceilings, and a key above the axes."""
    handles: list[Artist | tuple[Artist, ...]] = []
    words = []
    for recipe, runs in _group(group, lambda fit: fit.recipe).items():
        shades = [shade(colors[recipe], i, len(runs)) for i in range(len(runs))]
        for fit, color in zip(runs, shades, strict=True):
            _run(ax, frame[frame["run"] == fit.run], fit, color, len(group))
        handles.append(tuple(dot(color) for color in shades))
        separator = ":  " if len(names[recipe]) < 30 else ":\n"
        words.append(f"{names[recipe]}{separator}A = {', '.join(map(_ceiling, runs))}")
    truths = sorted({round(fit.truth, 3) for fit in group if not math.isnan(fit.truth)})
    for truth in truths:
        ax.axhline(truth, color=INK, linewidth=0.8, zorder=1)
    if truths:
        handles.append(Line2D([], [], color=INK, linewidth=0.8))
        words.append(f"exact ceiling {', '.join(f'{truth:.3f}' for truth in truths)}")
    key_above(ax, handles, words, name)
    ax.set_xscale("log")
    tidy(ax)


def _ceiling(fit: RunFit) -> str:
    if fit.fit is None:
        return "no fit"
    return f"{fit.fit.A:.3f}" + "*" * (fit.status != "ok")


def _run(ax: Axes, rows: pd.DataFrame, fit: RunFit, color: Color, n_runs: int) -> None:
    """Points and curve of one of the n runs of a panel."""
    C, y = rows["compute"].to_numpy(), rows["value"].to_numpy()
    dense = len(C) > 100
    style: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": color, "zorder": 3}
    style |= {"markersize": 2.2 if dense else 3.6, "markeredgewidth": 0.8}
    style |= {"alpha": 0.45 if dense else 1.0}
    seen, later = (C > 0) & (C <= fit.C_fit), C > fit.C_fit
    ax.plot(C[seen], y[seen], **style)
    ax.plot(C[later], y[later], mfc="white", **style)
    if (C == 0).any():  # a log axis has no 0: mark the level on its left edge
        edge = ax.get_yaxis_transform()
        ax.plot(0, y[C == 0][0], ">", color=color, transform=edge, clip_on=False, zorder=4, ms=5)
    if later.any():
        first = fit.C_fit or C[C > 0].min()
        ax.axvspan(first, C.max(), color=FAINT, alpha=0.16 / n_runs, linewidth=0, zorder=0)
    if fit.fit is None:
        return
    ink = tuple(0.75 * channel for channel in to_rgb(color)) if dense else color
    for lo, hi, dashes in ((C[C > 0].min(), fit.C_fit, "-"), (fit.C_fit, C.max(), DASHES)):
        if 0 < lo < hi:
            line = np.geomspace(lo, hi, 200)
            ax.plot(line, fit.fit.at(line), color=ink, linewidth=1.4, linestyle=dashes, zorder=5)


def _key(frame: pd.DataFrame, fits: Sequence[RunFit], holdout: float) -> list[Artist]:
    """What the marks mean; only those that the figure shows."""
    line: dict[str, Any] = {"color": FAINT, "linewidth": 1.6}
    marks: list[Artist] = []
    if (frame["compute"] == 0).any():
        marks.append(dot(FAINT, marker=">", label="at C = 0"))
    upto = f" (first {percent(1 - holdout)} of compute)" if holdout else ""
    marks += [dot(FAINT, label=f"fitted{upto}"), Line2D([], [], label="fit", **line)]
    if holdout:
        marks.append(dot(FAINT, mfc="white", label="held out"))
        marks.append(Line2D([], [], linestyle=DASHES, label="forecast", **line))
        marks.append(Patch(color=FAINT, alpha=0.16, linewidth=0, label="forecast region"))
    if any(fit.fit is not None and fit.status != "ok" for fit in fits):
        marks.append(Line2D([], [], linestyle="none", label="* ceiling not determined"))
    return marks
