"""Figure of `python -m experiments.calibration`: coverage, rankings and errors of posteriors.

Drawn from calibration.csv and pairs.csv by `python -m analysis.all only=calibration`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.drawing import Drawing
from experiments.calibration import CURVES, HORIZONS, VARIANTS
from rlx.scaling.style import (
    COLORS,
    FAINT,
    INK,
    SHADE,
    canvas,
    dot,
    panel_title,
    percent_ticks,
    ratio_ticks,
    rows_axis,
    tidy,
)

TICKS = [("A_recipe", np.nan), *(("curve_run", horizon) for horizon in HORIZONS)]
BAND = (0.86, 0.94)  # of coverage
CURVE_COLORS = dict(zip(CURVES, COLORS, strict=False))
TITLES = {name: name.replace("_", " ") for name in VARIANTS} | {
    "well": "sigmoid, three seeds",
    "one_seed": "sigmoid, one seed",
    "short": "sigmoid, short",
}
IN_FAMILY = ("well", "one_seed", "short")  # truths that are sigmoids
GROUPS = {  # of runs: marker, filled, what it is called
    "all": ("o", True, "all runs"),
    "trusted": ("s", False, "studies whose backtest\ntrusts the horizon"),
    "unflagged": ("D", False, "runs that the check does\nnot name as departed"),
}
RIVALS = {"rmse_point": ("least squares", "x"), "rmse_last": ("last value", "|")}
FEW = 0.97  # "unflagged" is not drawn where it holds this share of all runs or more


def draw(calibration: pd.DataFrame, pairs: pd.DataFrame) -> Figure:
    """Coverage by horizon of each variant, reliability of rankings, errors against the grid fit."""
    variants = [name for name in VARIANTS if name in set(calibration["variant"])]
    figure = canvas(11, 10.5)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.7, 1), hspace=0.04)
    panels = top.subplots(2, 4, sharex=True, sharey="row")
    for ax, variant in zip(panels.flat, variants, strict=False):
        _draw_coverage(ax, calibration[calibration["variant"] == variant], variant)
    for ax in panels.flat[len(variants) :]:
        ax.axis("off")
    for row, least in zip(panels, (0.5, 0.0), strict=True):  # the second row is much lower
        row[0].set_ylim(least, 1.04)
        percent_ticks(row[0].yaxis)
    _draw_key(panels[1, 3], calibration)
    top.supylabel("90 % intervals that hold the truth", fontsize=9)
    top.supxlabel(
        "A: ceiling of a recipe;  1x to 10x: pass rate of a run at that many times the compute",
        fontsize=9,
    )
    left, right = bottom.subplots(1, 2)
    _draw_reliability(left, pairs)
    _draw_errors(right, calibration, variants)
    return figure


def _draw_coverage(ax: Axes, rows: pd.DataFrame, variant: str) -> None:
    ax.axhspan(*BAND, color=SHADE, linewidth=0)
    ax.axhline(0.9, color=FAINT, linewidth=0.8, zorder=1)
    for c, (curve, color) in enumerate(CURVE_COLORS.items()):
        for g, (group, (marker, filled, _)) in enumerate(GROUPS.items()):
            part = rows[(rows["curve"] == curve) & (rows["runs"] == group)]
            if group == "unflagged":
                part = part[part["share"] < FEW]
            part = part.set_index(["quantity", "horizon"]).reindex(TICKS)
            x = np.arange(len(TICKS)) + (c - 0.5) * 0.4 + (g - 1) * 0.12
            face = {"markerfacecolor": color if filled else "white", "markersize": 4}
            se = part["coverage_se"].fillna(0)
            ax.errorbar(x, part["coverage"], se, fmt=marker, color=color, elinewidth=1, **face)
    ax.set_xticks(range(len(TICKS)), ["A", *(f"{h:g}x" for h in HORIZONS)])
    ax.set_xlim(-0.6, len(TICKS) - 0.4)
    ax.tick_params(labelbottom=True)
    panel_title(ax, TITLES[variant])
    tidy(ax)


def _draw_key(ax: Axes, calibration: pd.DataFrame) -> None:
    handles = [dot(color, label=f"{curve} fitted") for curve, color in CURVE_COLORS.items()]
    for group, (marker, filled, label) in GROUPS.items():
        if (calibration["runs"] == group).any():
            face = {"mfc": INK if filled else "white", "ms": 5}
            handles.append(dot(INK, marker=marker, label=label, **face))
    handles.append(Patch(color=SHADE, label="86 to 94 %"))
    ax.legend(handles=handles, loc="center left", frameon=False, fontsize=8, labelspacing=0.8)


def _draw_reliability(ax: Axes, pairs: pd.DataFrame) -> None:
    """Share of correctly ranked pairs per bin of P, pooled over sigmoid and over other truths."""
    ax.plot([0.5, 1], [0.5, 1], color=FAINT, linewidth=1)
    inside = pairs["variant"].isin(IN_FAMILY)
    binned = pairs["P"].notna() & pairs["rule"].str.contains(" to ")
    for c, (curve, color) in enumerate(CURVE_COLORS.items()):
        groups = ((inside, color, "sigmoid truths"), (~inside, "white", "other truths"))
        for g, (mask, face, label) in enumerate(groups):
            points = _pooled(pairs[mask & binned & (pairs["curve"] == curve)])
            x = points["P"] + (2 * c + g - 1.5) * 0.004
            style = {"color": color, "markerfacecolor": face, "elinewidth": 1, "markersize": 5}
            y, se = points["right"], points["right_se"]
            ax.errorbar(x, y, se, fmt="o", label=f"{curve}, {label}", **style)
    ax.set_xlabel("P of the likelier order of two ceilings", fontsize=9)
    ax.set_ylabel("share of pairs in that order", fontsize=9)
    panel_title(ax, "are rankings calibrated?")
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    tidy(ax)


def _pooled(pairs: pd.DataFrame) -> pd.DataFrame:
    """Bins of P pooled over variants, treated as independent."""
    n = pairs["pairs"]
    sums = pd.DataFrame({"rule": pairs["rule"], "n": n, "P": n * pairs["P"]})
    sums["right"] = n * pairs["right"]
    sums["right_se"] = (n * pairs["right_se"].fillna(0)) ** 2
    sums = sums.groupby("rule").sum()
    sums["right_se"] **= 0.5
    return sums[["P", "right", "right_se"]].div(sums["n"], axis=0)


def _draw_errors(ax: Axes, calibration: pd.DataFrame, variants: list[str]) -> None:
    """RMSE of the pass rate at 4 C_max over that of the grid fit, all runs."""
    rows = calibration[(calibration["quantity"] == "curve_run") & (calibration["runs"] == "all")]
    rows = rows[rows["horizon"] == 4]
    y = -np.arange(len(variants))
    for c, (curve, color) in enumerate(CURVE_COLORS.items()):
        part = rows[rows["curve"] == curve].set_index("variant").reindex(variants)
        ax.plot(part["ratio"], y - 0.2 * (c - 0.5), "o", color=color, markersize=5, label=curve)
    part = rows.drop_duplicates("variant").set_index("variant").reindex(variants)
    for name, (label, marker) in RIVALS.items():
        ratio = part[name] / part["rmse_grid"]
        ax.plot(ratio, y, marker, color=INK, markersize=6, label=label)
    ax.axvline(1, color=FAINT, linewidth=1)
    ax.set_xscale("log")
    ratio_ticks(ax)
    rows_axis(ax, y, [TITLES[name] for name in variants])
    ax.set_xlabel("RMSE over that of the paper's grid fit", fontsize=9)
    panel_title(ax, "error of the forecast at 4x the compute seen")
    ax.legend(frameon=False, fontsize=8, loc="lower left")


def figures(results: Path) -> dict[str, Drawing]:
    def redraw() -> Figure:
        folder = results / "calibration"
        return draw(pd.read_csv(folder / "calibration.csv"), pd.read_csv(folder / "pairs.csv"))

    source = "calibration/{calibration,pairs}.csv, by python -m experiments.calibration"
    return {"calibration/calibration": Drawing(redraw, source)}
