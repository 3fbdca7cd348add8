"""How well forecasts did, and what a study would find: coverage by horizon, chance of a verdict."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from scipy.stats import beta

from rlx.errors import InputError
from rlx.scaling.backtest import LEAST, PROB, Backtest
from rlx.scaling.plot.shared import Floats, check_prob
from rlx.scaling.style import (
    COLORS,
    FAINT,
    INK,
    SHADE,
    canvas,
    dot,
    key_below,
    label_outside,
    log_ticks,
    panel_grid,
    panel_title,
    percent,
    percent_ticks,
    tidy,
)

DASHES = ("-", "--", ":")  # of designs beyond the first colours


def calibration(backtest: Backtest, *, prob: float = 0.9) -> Figure:
    """Share of later evaluations inside their forecast intervals, by horizon C / C_seen.

    A panel per curve, a line per origin of the forecasts. Runs have the same weight, and the bars
    are `prob` intervals of a share with one trial per run, Beta(1/2 + k, 1/2 + R - k), k = coverage
    R. Open points lie below the coverage that `Backtest.evidence` requires over all origins; the
    shaded horizons are those that it trusts.

    Raises:
        InputError: prob is out of range.

    Source: the interval is Jeffreys', Brown, Cai and DasGupta 2001 (Stat. Sci. 16:101), Sec. 3.
    """
    check_prob(prob)
    keys = ["curve", "origin", "horizon"]
    points = backtest.points.drop(columns="horizon").rename(columns={"band": "horizon"})
    R = points.groupby(keys).agg(R=("run", "nunique")).reset_index()
    scores = backtest.scores.merge(R, on=keys)
    scores["lo"], scores["hi"] = jeffreys(scores["coverage"], scores["R"], prob)
    scores["rare"] = scores["coverage"] < LEAST
    names, origins = scores["curve"].unique(), np.sort(scores["origin"].unique())
    figure = canvas(1.6 + 3.4 * len(names), 4.0)
    grid = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(grid, names, strict=True):
        _coverage(ax, scores[scores["curve"] == name], origins)
        trust, evidence = backtest.trust(name), backtest.evidence(name)
        ax.axvspan(1, trust, color=SHADE, linewidth=0, zorder=0)
        words = f"trusted to {trust:.3g}" if trust > 1 else evidence["verdict"].iloc[0]
        panel_title(ax, f"{name}: {words}")
        ax.set_xlabel(r"horizon, $C / C_\mathrm{seen}$", fontsize=9)
    grid[0].set_xlim(1, scores["horizon"].max() * 1.4)
    grid[0].set_ylim(min(0.5, scores["lo"].min() - 0.03), 1.03)
    percent_ticks(grid[0].yaxis)
    grid[0].set_ylabel(f"evaluations inside their {percent(PROB)} interval", fontsize=9)
    for ax in grid:
        log_ticks(ax)
    handles: list[Artist] = [
        dot(color, linestyle="-", lw=0.9, label=f"from {percent(origin)} of compute")
        for origin, color in zip(origins, cycle(COLORS), strict=False)
    ]
    if scores["rare"].any():
        handles.append(dot(FAINT, mfc="white", label="covered too rarely"))
    handles += [
        Line2D([], [], color=INK, linewidth=0.8, label="nominal"),
        Patch(color=SHADE, label="trusted horizons"),
    ]
    key_below(figure, handles)
    return figure


def _coverage(ax: Axes, scores: pd.DataFrame, origins: Floats) -> None:
    """Coverage of one curve's forecasts, with the origins side by side."""
    ax.set_xscale("log")
    ax.axhline(PROB, color=INK, linewidth=0.8, zorder=1)
    for i, origin in enumerate(origins):
        rows, color = scores[scores["origin"] == origin], COLORS[i % len(COLORS)]
        rows = rows.sort_values("horizon")
        x = rows["horizon"] * 1.05 ** (i - (len(origins) - 1) / 2)
        ax.vlines(x, rows["lo"], rows["hi"], color=color, linewidth=1.2, zorder=2)
        ax.plot(x, rows["coverage"], color=color, linewidth=0.9, zorder=2)
        for rare, fill in ((False, color), (True, "white")):
            own = rows["rare"] == rare
            ax.plot(x[own], rows["coverage"][own], "o", color=color, mfc=fill, ms=5, zorder=3)
    tidy(ax)


def power(table: pd.DataFrame) -> Figure:
    """Chance of the right verdict against compute per run, from a table of rlx.scaling.power.

    A panel per difference. Lines, one per design of seeds and evaluations: the chance if posteriors
    were normal. Points: the share of simulated studies with the right verdict, +- one Monte Carlo
    error. Crosses: the share with a wrong verdict, if any. If the recipes are equal, every verdict
    is wrong.

    Raises:
        InputError: no row to draw.
    """
    if table.empty:
        raise InputError("table", "", "no design to draw", "give a table of sc.power")
    panels = sorted({(str(q), float(d)) for q, d in table[["quantity", "difference"]].to_numpy()})
    figure, grid = panel_grid(len(panels))
    designs = sorted({(int(s), int(p)) for s, p in table[["seeds", "points"]].to_numpy()})
    several = table["points"].nunique() > 1
    handles: list[Artist] = []
    for ax, (quantity, difference) in zip(grid.flat, panels, strict=False):
        rows = table[(table["quantity"] == quantity) & (table["difference"] == difference)]
        null = difference == (0 if quantity == "ceiling" else 1)
        _power_panel(ax, rows, designs, "wrong" if null else "right")
        apart = f"{difference:g} apart" if quantity == "ceiling" else f"{difference:g}x apart"
        panel_title(ax, f"{quantity}: {'equal' if null else apart}")
    for i, (seeds, points) in enumerate(designs):
        label = f"{seeds} seed{'s' * (seeds > 1)}" + f" x {points} evaluations" * several
        handles.append(Line2D([], [], **_line(i), label=f"expected, {label}"))
    n = sorted({int(x) for x in table["studies"]})
    many = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    handles.append(
        dot(INK, linestyle="none", label=f"right in {many} simulated studies, +- 1 s.e.")
    )
    handles.append(dot(INK, linestyle="none", marker="x", label="wrong"))
    grid.flat[0].set_xscale("log")
    grid.flat[0].set_ylim(-0.04, 1.04)
    percent_ticks(grid.flat[0].yaxis)
    log_ticks(grid.flat[0])
    label_outside(grid, len(panels), "compute of a run / horizon", "studies with a verdict")
    key_below(figure, handles)
    return figure


def _line(i: int) -> dict[str, Any]:
    """The style of design i."""
    turn, color = divmod(i, len(COLORS))
    return {"color": COLORS[color], "linestyle": DASHES[turn % len(DASHES)], "linewidth": 1.2}


def _power_panel(ax: Axes, rows: pd.DataFrame, designs: list[tuple[int, int]], hoped: str) -> None:
    """One difference, with the designs side by side."""
    for i, (seeds, points) in enumerate(designs):
        own, color = rows[(rows["seeds"] == seeds) & (rows["points"] == points)], _line(i)["color"]
        own = own.sort_values("share")
        x = own["share"] * 1.03 ** (i - (len(designs) - 1) / 2)
        ax.plot(x, own["expected"], **_line(i))
        if hoped == "right":
            ends = (own["right"] + sign * own["mcse"] for sign in (-1, 1))
            ax.vlines(x, *(end.clip(0, 1) for end in ends), color=color, linewidth=0.9)
            ax.plot(x, own["right"], "o", color=color, markersize=4, clip_on=False)
        wrong = own["wrong"].where((own["wrong"] > 0) | (hoped == "wrong"))
        ax.plot(x, wrong, "x", color=color, markersize=5, clip_on=False)
    tidy(ax)


def jeffreys(share_N: ArrayLike, trials_N: ArrayLike, prob: float) -> tuple[Floats, Floats]:
    """Ends [N] of the equal-tailed interval of a share; that of a share of 0 or 1 includes it."""
    share_N, trials_N = np.asarray(share_N, float), np.asarray(trials_N, float)
    k, tail = share_N * trials_N, (1 - prob) / 2
    lo, hi = (beta.ppf(q, k + 0.5, trials_N - k + 0.5) for q in (tail, 1 - tail))
    return np.where(share_N == 0, 0.0, lo), np.where(share_N == 1, 1.0, hi)
