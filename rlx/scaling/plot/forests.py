"""Forest plots: recipes ranked by ceiling, and effects of design choices, drawn by `forest`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from rlx.errors import InputError
from rlx.scaling.effects import MARGIN_A, MARGIN_COMPUTE
from rlx.scaling.paths import HORIZON
from rlx.scaling.plot.shared import CEILING, Floats, colors, conditions, interval, labels, truths
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.style import (
    FAINT,
    INK,
    SHADE,
    Color,
    canvas,
    dot,
    key_below,
    percent,
    ratio_ticks,
    rows_axis,
    tidy,
    title,
)

# ------------------------------------------------------------------ ceilings


def ceilings(fit: ScalingFit, *, prob: float = 0.9) -> Figure:
    """Recipes ranked by ceiling, the pass rate at the horizon (`parameters.param`): interval,
    median, seeds, exact ceiling, P(highest).

    A recipe whose ceiling the data do not identify, or with a run that departed, is grey, with the
    reason beside it. P(highest) is among the recipes at the same levels of the axes other than
    `ablation`; without such axes it is fit.prob_best().

    Raises:
        InputError: prob is out of range.
        NotConverged: the fit has not converged and is not `unsafe`.
    """
    A_QJ = interval(fit.param("A").values, prob)
    A_R = interval(fit.param("A", "run").values, prob)[1]
    status, (best, among) = fit.status("recipe"), _best(fit)
    order = np.argsort(A_QJ[1])  # the highest is drawn last, on top
    figure = canvas(9.0, 1.5 + 0.42 * len(order))
    ax, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    names, own = labels(fit), colors(fit)
    for y, j in enumerate(order):
        color = own[j] if status[j] == "ok" else FAINT
        stretch(ax, A_QJ[:, j], y, color)
        runs = [fit.runs.index(run) for run in fit.runs_of(j)]
        if len(runs) > 1:
            ax.plot(A_R[runs], np.full(len(runs), y - 0.24), "|", color=color, ms=5, mew=1.2)
        for truth in truths(fit, [int(j)]):
            ax.plot(truth, y, "D", mfc="none", mec=INK, ms=7, mew=1.0, zorder=4)
        bars.barh(y, best[j], height=0.5, color=color)
        text = f"{best[j]:.2f}" + ("" if status[j] == "ok" else f"   {status[j]}")
        bars.annotate(
            text, (best[j], y), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    tidy(bars, None)
    rows_axis(ax, range(len(order)), [names[j] for j in order])
    ax.set_xlabel(f"{fit.evals.value_label} at {HORIZON:g}x the compute seen", fontsize=9)
    bars.set_xlim(0, 1)
    bars.set_xlabel(f"P(highest{among})", fontsize=9)
    bars.tick_params(left=False, labelleft=False)
    title(figure, fit.evals.title)
    key_below(figure, _ceiling_key(fit, status, prob))
    return figure


def _best(fit: ScalingFit) -> tuple[Floats, str]:
    """P(highest ceiling) of each recipe among those at its levels, and the end of its label."""
    at, A_XJ = np.array(conditions(fit)), fit.param("A").values.reshape(-1, len(fit.recipes))
    best_J = np.zeros(len(at))
    for here in (np.flatnonzero(at == level) for level in set(at)):
        best_J[here] = np.bincount(A_XJ[:, here].argmax(1), minlength=len(here)) / len(A_XJ)
    return best_J, " of its level" if len(set(at)) > 1 else " ceiling"


def _ceiling_key(fit: ScalingFit, status: list[str], prob: float) -> list[Artist]:
    color = INK if "ok" in status else FAINT
    marks: list[Artist] = [
        dot(color, linestyle="-", linewidth=2.4, label=f"recipe, median and {percent(prob)}")
    ]
    if len(fit.runs) > len(fit.recipes):
        marks.append(dot(color, marker="|", markeredgewidth=1.2, label="seeds, medians"))
    if truths(fit):
        marks.append(dot(INK, marker="D", mfc="none", ms=7, label="exact ceiling"))
    if any(s != "ok" for s in status):
        marks.append(Patch(color=FAINT, label="not reliable"))
    return marks


# ------------------------------------------------------------------ effects


def effects(
    tables: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    margin_A: float = MARGIN_A,
    margin_compute: float = MARGIN_COMPUTE,
) -> Figure:
    """Forest plot of design choices: what each does to the ceiling and to the compute.

    Left, the change of the ceiling at the horizon. Right, on a log axis, the compute to reach the
    same pass rate over what the reference needs (compute_ratio) and, thin, the compute to reach
    80 % of its own gain (pace_ratio). Differences inside the shaded margins do not count. An arrow
    marks an interval that goes on beyond the axis, because a curve may never reach the pass rate.

    Args:
        tables: from fit.effects, one per axis.
        margin_A: half-width of the left margin, a pass rate, as given to fit.effects.
        margin_compute: the same for the right margin; 0.1 spans 1 / 1.1 to 1.1.

    Raises:
        InputError: no row to draw.
    """
    parts = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if table.empty:
        raise InputError("tables", "", "no effect to draw", "give tables of fit.effects")
    group_N = (table["axis"] != table["axis"].shift()).cumsum().to_numpy()
    y_N = -(np.arange(len(table)) + 0.5 * (group_N - 1))
    figure = canvas(9.6, 1.9 + 0.45 * -y_N[-1])
    left, right = figure.subplots(1, 2, sharey=True)
    tints = [FAINT if verdict == "undecided" else INK for verdict in table["verdict"]]
    forest(left, table, {"dA": 0.0}, y_N, tints, margin_A)
    right.set_xscale("log")
    below = {"compute_ratio": 0.0, "pace_ratio": 0.22}
    forest(right, table, below, y_N, tints, margin_compute)
    rows = table[["axis", "level", "reference"]].astype(str)
    rows_axis(left, y_N, [f"{r.axis}: {r.level} vs {r.reference}" for r in rows.itertuples()])
    left.set_xlabel(f"change of the {CEILING}", fontsize=9)
    right.set_xlabel("compute, level / reference", fontsize=9)
    edge = right.get_yaxis_transform()
    for y, verdict, color in zip(y_N, table["verdict"], tints, strict=True):
        right.text(1.03, y, verdict, transform=edge, va="center", fontsize=8, color=color)
    lo, _, hi = (float(c.rpartition("_q")[2]) for c in quantile_columns(table, "dA"))
    share = f" ({percent((hi - lo) / 100)})"
    handles = [
        dot(INK, linestyle="-", lw=2.4, label=f"ceiling; compute to the same pass rate{share}"),
        dot(
            INK, linestyle="-", lw=0.9, mfc="white", label=f"compute to 80 % of its own gain{share}"
        ),
        Patch(color=SHADE, label=f"margins, {margin_A:g} and {percent(margin_compute)}"),
    ]
    key_below(figure, handles)
    return figure


# ------------------------------------------------------------------ parts of both


def forest(
    ax: Axes,
    table: pd.DataFrame,
    below: dict[str, float],
    y_N: Floats,
    tints: Sequence[Color],
    margin: float,
) -> None:
    """Intervals of quantities, and the margin. `below`: how far below its row each is drawn.

    An interval at its row (0) is bold. The margin spans -margin to margin, on a log axis
    1 / (1 + margin) to 1 + margin; the axis shows at least 2.5 times as much, so that the margin is
    not mistaken for the background.
    """
    log = ax.get_xscale() == "log"
    wide = 1 + margin
    inside = (1 / wide, wide) if log else (-margin, margin)
    columns = [column for name in below for column in quantile_columns(table, name)]
    around = (wide**-2.5, wide**2.5) if log else (-2.5 * margin, 2.5 * margin)
    ends = np.append(table[columns].to_numpy(float).ravel(), around)
    ends = ends[np.isfinite(ends) & ((ends > 0) | (not log))]
    low, high = ends.min(), ends.max()
    pad = (high / low) ** 0.06 if log else 0.06 * (high - low)
    ax.set_xlim((low / pad, high * pad) if log else (low - pad, high + pad))
    ax.axvspan(*inside, color=SHADE, linewidth=0)
    ax.axvline(1 if log else 0, color=INK, linewidth=0.8)
    for name, down in below.items():
        q_NQ = table[quantile_columns(table, name)].to_numpy(float)
        for q_Q, y, color in zip(q_NQ, y_N - down, tints, strict=True):
            if not np.isnan(q_Q).any():
                stretch(ax, q_Q, y, color, bold=down == 0, clip=True)
    if log:
        ratio_ticks(ax)
    tidy(ax, "x")
    ax.tick_params(axis="y", length=0)


def stretch(
    ax: Axes, q_Q: Floats, y: float, color: Color, *, bold: bool = True, clip: bool = False
) -> None:
    """An interval and its median; with `clip`, an end outside the axis is an arrow at its edge."""
    lo, mid, hi = q_Q
    left, right = ax.get_xlim() if clip else (-np.inf, np.inf)
    width, size, fill = (2.4, 6.0, color) if bold else (0.9, 3.6, "white")
    ax.plot(np.clip((lo, hi), left, right), (y, y), color=color, lw=width, solid_capstyle="butt")
    if left <= mid <= right:
        ax.plot(mid, y, "o", color=color, mfc=fill, markersize=size, zorder=3)
    for beyond, at, marker in ((lo < left, left, "<"), (hi > right, right, ">")):
        if beyond:
            ax.plot(at, y, marker, color=color, mfc=fill, ms=size, clip_on=False, zorder=3)


def quantile_columns(table: pd.DataFrame, name: str) -> list[str]:
    """Lower, median and upper column of a quantity."""
    columns = [c for c in table if re.fullmatch(rf"{name}_q[\d.]+", str(c))]
    return sorted(map(str, columns), key=lambda c: float(c.rpartition("_q")[2]))
