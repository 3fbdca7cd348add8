"""Every run of a study with its point fit, in one figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from rlx.scaling.data import Evals, short_names
from rlx.scaling.run_fits import RunFit
from rlx.scaling.style import COLORS, DASHES, FAINT, INK, natural, shade, tick, tidy

CROWDED_POINTS = 400  # a panel with more points is split into one panel per recipe
STYLE = {"markersize": 4.5, "markeredgewidth": 0.8, "linestyle": "none"}


def report(evals: Evals, fits: Sequence[RunFit], path: Path | str, *, holdout: float) -> None:
    """Points, fitted curves and forecasts of a study, one panel per value of its axes.

    Filled points are fitted, open ones held out; a curve is solid up to the last fitted compute
    and dashed over the shaded region beyond it, which is darker where more runs are forecast. A
    recipe has a colour and its seeds shades of it. A panel with more recipes than colours, or with
    too many points to tell apart, is split into one panel per recipe.

    Args:
        evals: the evaluations.
        fits: rlx.scaling.run_fits.fit_study of their frame.
        path: where the PNG goes.
        holdout: share of compute held out, for the key.
    """
    frame = evals.frame
    panels = _panels(frame, fits)
    n = len(panels)
    columns = n if n <= 3 else 2 if n == 4 else min(math.ceil(math.sqrt(n)), 5)
    rows = math.ceil(n / columns)
    width, height = {1: (6.4, 4.8), 2: (5.0, 4.6)}.get(columns, (3.7, 3.3))
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=150)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    names = short_names([fit.recipe for fit in fits])
    colors = _colors(panels)
    for ax, (name, group) in zip(grid.flat, panels, strict=False):
        _panel(ax, frame, group, {fit.recipe: names[fit.recipe] for fit in group}, colors, name)
    for ax in grid.flat[n:]:
        ax.set_visible(False)
    for i, ax in enumerate(grid.flat[:n]):  # a panel above an empty cell shows its own axis
        if i + columns >= n:
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(evals.compute_label, fontsize=9)
    _limits(grid[0, 0], frame, fits)
    for ax in grid[:, 0]:
        ax.set_ylabel(evals.value_label, fontsize=9)
    if evals.title:
        figure.suptitle(evals.title, fontsize=11, x=0.01, ha="left", color=INK)
    handles = _key(frame, fits, holdout)
    key_columns = len(handles) if columns > 1 else 3
    figure.legend(
        handles=handles, loc="outside lower center", ncols=key_columns, frameon=False, fontsize=8
    )
    figure.savefig(path)


def _panels(frame: pd.DataFrame, fits: Sequence[RunFit]) -> list[tuple[str, list[RunFit]]]:
    """(name, runs) of each panel: by axes, and by recipe as well where that is crowded."""
    points = frame["run"].value_counts()
    by_axes = _group(fits, lambda fit: fit.axes)
    names = short_names([fit.recipe for fit in fits])
    panels = []
    for axes, group in sorted(by_axes.items(), key=lambda item: natural(item[0])):
        by_recipe = _group(group, lambda fit: fit.recipe)
        total = sum(points[fit.run] for fit in group)
        if len(by_recipe) == 1 or len(by_recipe) <= len(COLORS) and total <= CROWDED_POINTS:
            panels.append((axes, group))
        else:
            for recipe, runs in by_recipe.items():
                panels.append((axes, runs) if not axes else (f"{axes}, {names[recipe]}", runs))
    return panels


def _group(fits: Sequence[RunFit], key) -> dict[str, list[RunFit]]:
    groups: dict[str, list[RunFit]] = {}
    for fit in fits:
        groups.setdefault(key(fit), []).append(fit)
    return groups


def _colors(panels: list[tuple[str, list[RunFit]]]) -> dict[str, str]:
    """A colour per recipe, the same in every panel; one colour where recipes have own panels."""
    recipes = list(dict.fromkeys(fit.recipe for _, group in panels for fit in group))
    if len(recipes) > len(COLORS):
        return dict.fromkeys(recipes, COLORS[0])
    return dict(zip(recipes, COLORS, strict=False))


def _panel(
    ax: Axes,
    frame: pd.DataFrame,
    group: list[RunFit],
    names: dict[str, str],
    colors: dict[str, str],
    title: str,
) -> None:
    """Every run of one panel, its exact ceilings, and a legend above the axes."""
    handles, labels = [], []
    for recipe, runs in _group(group, lambda fit: fit.recipe).items():
        shades = [shade(colors[recipe], i, len(runs)) for i in range(len(runs))]
        for fit, color in zip(runs, shades, strict=True):
            _run(ax, frame[frame["run"] == fit.run], fit, color, len(group))
        handles.append(tuple(Line2D([], [], color=c, marker="o", **STYLE) for c in shades))
        separator = ":  " if len(names[recipe]) < 30 else ":\n"
        labels.append(f"{names[recipe]}{separator}A = {', '.join(map(_ceiling, runs))}")
    truths = sorted({round(fit.truth, 3) for fit in group if not math.isnan(fit.truth)})
    for truth in truths:
        ax.axhline(truth, color=INK, linewidth=0.8, zorder=1)
    if truths:
        handles.append(Line2D([], [], color=INK, linewidth=0.8))
        labels.append(f"exact ceiling {', '.join(f'{truth:.3f}' for truth in truths)}")
    ax.legend(
        handles,
        labels,
        title=title or None,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        alignment="left",
        frameon=False,
        fontsize=8,
        title_fontsize=9,
        borderaxespad=0.2,
        handlelength=2.2,
    )
    ax.set_xscale("log")
    tidy(ax)


def _ceiling(fit: RunFit) -> str:
    if fit.fit is None:
        return "no fit"
    return f"{fit.fit.A:.3f}" + "*" * (fit.status != "ok")


def _run(ax: Axes, rows: pd.DataFrame, fit: RunFit, color, n_runs: int) -> None:
    """Points and curve of one of the n runs of a panel."""
    C, y = rows["compute"].to_numpy(), rows["value"].to_numpy()
    dense = len(C) > 100
    style = STYLE | {"markersize": 2.2 if dense else 4.5 if n_runs <= 2 else 3.6}
    alpha = 0.45 if dense else 1.0
    seen = (C > 0) & (C <= fit.C_fit)
    ax.plot(C[seen], y[seen], marker="o", color=color, alpha=alpha, zorder=3, **style)
    later = C > fit.C_fit
    ax.plot(
        C[later], y[later], marker="o", color=color, mfc="white", alpha=alpha, zorder=3, **style
    )
    if (C == 0).any():  # a log axis has no 0: mark the level on its left edge
        edge = ax.get_yaxis_transform()
        ax.plot(0, y[C == 0][0], ">", color=color, transform=edge, clip_on=False, zorder=4, ms=5)
    if later.any():
        ax.axvspan(
            fit.C_fit or C[C > 0].min(),
            C.max(),
            color=FAINT,
            alpha=0.16 / n_runs,
            linewidth=0,
            zorder=0,
        )
    if fit.fit is None:
        return
    ink = tuple(0.75 * channel for channel in to_rgb(color)) if dense else color
    for lo, hi, dashes in ((C[C > 0].min(), fit.C_fit, "-"), (fit.C_fit, C.max(), DASHES)):
        if 0 < lo < hi:
            line = np.geomspace(lo, hi, 200)
            ax.plot(line, fit.fit.at(line), color=ink, linewidth=1.4, linestyle=dashes, zorder=5)


def _limits(ax: Axes, frame: pd.DataFrame, fits: Sequence[RunFit]) -> None:
    """Limits and ticks of the shared axes."""
    C = frame.loc[frame["compute"] > 0, "compute"]
    lo, hi = C.min() / 1.25, C.max() * 1.15
    ax.set_xlim(lo, hi)
    levels = [*frame["value"], *(fit.truth for fit in fits if not math.isnan(fit.truth))]
    pad = 0.05 * (max(levels) - min(levels)) + 1e-3
    ax.set_ylim(min(levels) - pad, max(levels) + pad)
    if hi / lo < 300:  # few decades: label 1, 2 and 5 of each
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(tick))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _key(frame: pd.DataFrame, fits: Sequence[RunFit], holdout: float) -> list[Line2D | Patch]:
    """What filled, open, solid, dashed and shaded mean; only what the figure shows."""
    line = {"color": FAINT, "linewidth": 1.6}
    marks: list[Line2D | Patch] = []
    if (frame["compute"] == 0).any():
        marks.append(Line2D([], [], color=FAINT, marker=">", label="C = 0", **STYLE))
    seen = (
        "fitted"
        if holdout == 0
        else f"fitted (C ≤ {1 - holdout:g} C_max)".replace("_max", "$_{max}$")
    )
    marks.append(Line2D([], [], color=FAINT, marker="o", label=seen, **STYLE))
    marks.append(Line2D([], [], label="fit", **line))
    if holdout:
        marks.append(
            Line2D([], [], color=FAINT, marker="o", mfc="white", label="held out", **STYLE)
        )
        marks.append(Line2D([], [], linestyle=DASHES, label="forecast", **line))
        marks.append(Patch(color=FAINT, alpha=0.16, linewidth=0, label="forecast region"))
    if any(fit.fit is not None and fit.status != "ok" for fit in fits):
        marks.append(Line2D([], [], linestyle="none", label="* ceiling not determined"))
    return marks
