"""Pictures of a posterior, each a matplotlib Figure.

    from rlx.scaling import plot

    plot.curves(fit, held_out=evals).savefig("curves.png")   # points, bands, forecast
    plot.ceilings(fit)                                       # recipes ranked by A
    plot.effects([fit.effects("loss")])                      # ceiling movers, efficiency shapers
    plot.ridge(fit)                                          # what the data leave open: A, C_mid
    plot.calibration(fit.backtest())                         # how past forecasts did
    plot.power(sc.power())                                   # what a study would find

Intervals are equal-tailed. Colours are those of Okabe and Ito, told apart under colour blindness;
grey is what the data do not say. No figure touches pyplot; none needs JAX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, gaussian_kde

from rlx.errors import InputError
from rlx.scaling.backtest import LEAST, PROB, Backtest
from rlx.scaling.data import Evals, short_names
from rlx.scaling.paths import HORIZON
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.style import (
    COLORS,
    DASHES,
    FAINT,
    INK,
    log_ticks,
    natural,
    panel_grid,
    shade,
    tidy,
)

Floats = NDArray[np.float64]
Color = str | tuple[float, float, float]

SEEN, AHEAD, NEW = 0.40, 0.22, 0.14  # opacity of the bands
OVERLAID = 4  # recipes that share a panel; more get panels of their own
CEILING = f"pass rate at {HORIZON:g}x the compute seen"
GRID_POINTS = 80  # of a drawn curve
MAX_CELLS = 10_000_000  # draws x curves x points at once
MARGIN_A, MARGIN_COMPUTE = 0.02, 0.10  # differences that count, as in fit.effects


# ------------------------------------------------------------------ curves


def curves(
    fit: ScalingFit,
    *,
    held_out: Evals | None = None,
    horizon: float = 4.0,
    by: str = "run",
    prob: float = 0.9,
) -> Figure:
    """Pass rate against compute: evaluations, the posterior of the curve, the forecast.

    A panel per level of the study's axes, and per recipe where a level has more than OVERLAID.
    Filled points are fitted, open ones held out, crosses come after a run left its curve. The
    dark band holds R(C) with probability `prob`; beyond the last fitted compute (shaded) it is
    paler and the median dashed. The palest band holds new evaluations, R(C) + wander + noise: of
    a run beyond its data, or of a new seed of a recipe.

    Args:
        fit: a posterior.
        held_out: evaluations of the fitted runs; those beyond the fitted compute are drawn.
        horizon: how far the forecast goes, C / (last fitted C), above 1.
        by: a curve per "run", or one per "recipe", of its typical seed.
        prob: of the bands.

    Raises:
        InputError: horizon or prob is out of range, `by` is unknown, or held_out has other runs.
        NotConverged: as every question to the fit.
    """
    if not horizon > 1:
        raise InputError("horizon", horizon, "not beyond the data", "give C / C_max above 1")
    scene = _scene(fit, held_out, horizon, by, prob)
    panels = _panels(scene)
    figure, grid = panel_grid(len(panels))
    for ax, (name, recipes) in zip(grid.flat, panels, strict=False):
        _curve_panel(ax, scene, name, recipes)
    shared = grid.flat[0]
    values = [*fit.evals.frame["value"], *scene.later["value"], *_truths(fit)]
    values += scene.curve_QNC[:, scene.drawn_NC].ravel().tolist()
    pad = 0.04 * (max(values) - min(values)) + 1e-3
    shared.set_ylim(min(values) - pad, max(values) + pad)
    shared.set_xlim(scene.compute_C[0] / 1.15, max([*scene.later["compute"], *scene.end_N]))
    for i, ax in enumerate(grid.flat[: len(panels)]):
        log_ticks(ax)
        if i + grid.shape[1] >= len(panels):  # also above an empty cell
            ax.tick_params(labelbottom=True)
            ax.set_xlabel(fit.evals.compute_label, fontsize=9)
    for ax in grid[:, 0]:
        ax.set_ylabel(fit.evals.value_label, fontsize=9)
    _title(figure, fit.evals.title)
    _legend_below(figure, _curve_key(scene))
    return figure


@dataclass(frozen=True)
class _Scene:
    """What the panels of `curves` share. Q: lower, median, upper; N: runs or recipes."""

    fit: ScalingFit
    by: str
    prob: float
    seen: pd.DataFrame  # fitted evaluations
    later: pd.DataFrame  # others
    compute_C: Floats
    curve_QNC: Floats
    new_QNC: Floats  # of new evaluations
    last_N: Floats  # last fitted compute
    end_N: Floats  # of the forecast
    A_QJ: Floats
    base: list[str]  # recipes without the levels of their axes
    level: list[str]  # of each recipe's axes, "key=value, key=value"
    status: dict[str, str]  # of recipes if by is recipe, else of runs

    @property
    def drawn_NC(self) -> NDArray[np.bool_]:
        return self.compute_C <= self.end_N[:, None] * (1 + 1e-9)


def _scene(fit: ScalingFit, held_out: Evals | None, horizon: float, by: str, prob: float) -> _Scene:
    names, last_N = fit.names(by), fit.last_compute(by)
    positive = fit.evals.frame["compute"].loc[lambda C: C > 0]
    ends = (positive.min(), horizon * last_N.max())
    compute_C = np.unique(np.r_[np.geomspace(*ends, GRID_POINTS), last_N, horizon * last_N])
    sizes = fit.tree["posterior"].sizes
    cells = sizes["chain"] * sizes["draw"] * len(names) * len(compute_C)
    pieces = np.array_split(compute_C, math.ceil(cells / MAX_CELLS))
    curve_QNC = [_interval(fit.curve(piece, by).values, prob) for piece in pieces]
    new_QNC = [_interval(fit.predict(piece, by).values, prob) for piece in pieces]
    base, level = _cells(fit)
    seen, later = _split(fit, held_out)
    return _Scene(
        fit=fit,
        by=by,
        prob=prob,
        seen=seen,
        later=later,
        compute_C=compute_C,
        curve_QNC=np.concatenate(curve_QNC, -1),
        new_QNC=np.concatenate(new_QNC, -1),
        last_N=last_N,
        end_N=horizon * last_N,
        A_QJ=_interval(fit.param("A").values, prob),
        base=base,
        level=level,
        status=dict(zip(names, fit.status(by), strict=True)),
    )


def _cells(fit: ScalingFit) -> tuple[list[str], list[str]]:
    """Of each recipe: its short name, and the levels of its axes, "key=value, key=value"."""
    levels = fit.levels
    base = levels["recipe"].tolist()
    axes = [[f"{axis}={level}" for level in levels[axis]] for axis in fit.evals.axes]
    level = [", ".join(of_recipe) for of_recipe in zip(*axes, strict=True)] or [""] * len(base)
    return [short_names(base)[name] for name in base], level


def _labels(fit: ScalingFit) -> list[str]:
    """Of each recipe, both in one."""
    return [", ".join(filter(None, names)) for names in zip(*_cells(fit), strict=True)]


def _split(fit: ScalingFit, held_out: Evals | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluations up to each run's last fitted compute, and the later ones."""
    frames = [fit.evals.frame]
    if held_out is not None:
        unknown = [run for run in held_out.runs if run not in fit.runs]
        if unknown:
            remedy = f"use runs among {', '.join(fit.runs[:8])}"
            raise InputError("held_out", ", ".join(unknown), "not in this fit", remedy)
        frames.append(held_out.frame)
    last = dict(zip(fit.runs, fit.last_compute("run") * (1 + 1e-9), strict=True))
    seen = frames[0][frames[0]["compute"] <= frames[0]["run"].map(last)]
    rows = pd.concat(frames).drop_duplicates(["run", "compute"])
    return seen, rows[rows["compute"] > rows["run"].map(last)]


def _panels(scene: _Scene) -> list[tuple[str, list[int]]]:
    """(name, recipes) of each panel."""
    panels = []
    for level in sorted(set(scene.level), key=natural):
        recipes = [j for j, own in enumerate(scene.level) if own == level]
        if len(recipes) <= OVERLAID:
            panels.append((level, recipes))
        else:
            panels += [(", ".join(filter(None, (scene.base[j], level))), [j]) for j in recipes]
    return panels


def _curve_panel(ax: Axes, scene: _Scene, name: str, recipes: list[int]) -> None:
    """The recipes of one panel, their exact ceilings, and a legend above the axes."""
    handles: list[Artist | tuple[Artist, ...]] = []
    labels, spans = [], []
    every = list(dict.fromkeys(scene.base))
    for i, j in enumerate(recipes):
        color = COLORS[every.index(scene.base[j]) if len(every) <= len(COLORS) else i]
        runs = scene.fit.runs_of(j)
        shades = [shade(color, k, len(runs)) for k in range(len(runs))]
        own = {j: color}
        if scene.by == "run":
            own = {scene.fit.runs.index(run): s for run, s in zip(runs, shades, strict=True)}
        for n, tint in own.items():
            _band(ax, scene, n, tint, len(own))
            spans.append((scene.last_N[n], scene.end_N[n]))
        for run, tint in zip(runs, shades, strict=True):
            _points(ax, scene, run, tint)
        handles.append(tuple(_dot(tint) for tint in shades))
        lead = "" if len(recipes) == 1 and scene.base[j] in name else f"{scene.base[j]}:  "
        lo, mid, hi = scene.A_QJ[:, j]
        lines = [
            f"{lead}{mid:.3f} [{lo:.3f}, {hi:.3f}] at {HORIZON:g}x the compute",
            *_warnings(scene, j),
        ]
        labels.append("\n".join(lines))
    truths = _truths(scene.fit, recipes)
    for truth in truths:
        ax.axhline(truth, color=INK, linewidth=0.8, zorder=1)
    if truths:
        handles.append(Line2D([], [], color=INK, linewidth=0.8))
        labels.append(f"exact ceiling {', '.join(f'{truth:.3f}' for truth in truths)}")
    for span in spans:
        ax.axvspan(*span, color=FAINT, alpha=0.14 / len(spans), linewidth=0, zorder=0)
    ax.set_xscale("log")
    tidy(ax)
    ax.legend(
        handles,
        labels,
        title=name or None,
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


def _band(ax: Axes, scene: _Scene, n: int, color: Color, layers: int) -> None:
    """Curve n: its band and median where fitted and where forecast, and new evaluations.

    As many `layers` of forecasts, one over the other, are as dark as one would be alone.
    """
    C, (lo, mid, hi) = scene.compute_C, scene.curve_QNC[:, n]
    seen = scene.last_N[n] >= C
    ahead = (scene.last_N[n] <= C) & scene.drawn_NC[n]
    new = ahead if scene.by == "run" else scene.drawn_NC[n]
    below, _, above = scene.new_QNC[:, n]
    ax.fill_between(C[new], below[new], above[new], color=color, alpha=_layer(NEW, layers), lw=0)
    ax.fill_between(C[seen], lo[seen], hi[seen], color=color, alpha=SEEN, lw=0)
    ax.fill_between(C[ahead], lo[ahead], hi[ahead], color=color, alpha=_layer(AHEAD, layers), lw=0)
    ax.plot(C[seen], mid[seen], color=color, linewidth=1.3, zorder=4)
    ax.plot(C[ahead], mid[ahead], color=color, linewidth=1.3, linestyle=DASHES, zorder=4)


def _layer(opacity: float, layers: int) -> float:
    """Opacity of each of some layers that together have `opacity`."""
    return 1 - (1 - opacity) ** (1 / layers)


def _points(ax: Axes, scene: _Scene, run: str, color: Color) -> None:
    """Evaluations of a run; a log axis has no 0, so C = 0 is a mark on its left edge."""
    seen, later = (rows[rows["run"] == run] for rows in (scene.seen, scene.later))
    dense = len(seen) + len(later) > 100
    style: dict[str, Any] = {"linestyle": "none", "color": color, "zorder": 3}
    style |= {"markersize": 2.2 if dense else 3.6, "markeredgewidth": 0.8}
    style |= {"alpha": 0.45 if dense else 1.0}
    after = "x" if run in scene.fit.departed else "o"
    for rows, marker, fill in ((seen[seen["compute"] > 0], "o", color), (later, after, "white")):
        ax.plot(rows["compute"], rows["value"], marker=marker, mfc=fill, **style)
    start = seen.loc[seen["compute"] == 0, "value"]
    if len(start):
        edge = ax.get_yaxis_transform()
        style |= {"markersize": 5, "zorder": 4, "alpha": 1.0}
        ax.plot(0, start.iloc[0], ">", transform=edge, clip_on=False, **style)


def _warnings(scene: _Scene, j: int) -> list[str]:
    """Lines on what a recipe's curves may not be used for."""
    runs = scene.fit.runs_of(j)
    gone = [run for run in runs if run in scene.fit.departed]
    lines = [f"departed: {_seeds(scene, gone)}"] if gone else []
    if scene.by == "recipe":
        status = scene.status[scene.fit.recipes[j]]
        return lines + ([status] if status not in ("ok", "departed") else [])
    vague = [run for run in runs if scene.status[run] not in ("ok", "departed")]
    if len(runs) == len(vague) == 1:
        lines.append(scene.status[runs[0]])
    elif vague:
        where = "" if vague == runs else f": {_seeds(scene, vague)}"
        lines.append(f"ceiling not identified{where}")
    return lines


def _seeds(scene: _Scene, runs: list[str]) -> str:
    """ "seeds 0, 2", or the names of the runs where seeds are unknown."""
    by_run = scene.fit.evals.frame.drop_duplicates("run").set_index("run")["seed"]
    seeds = [f"{by_run[run]:g}" if isinstance(by_run[run], float) else by_run[run] for run in runs]
    if any(seed in ("", "nan") for seed in seeds):
        return ", ".join(runs)
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"


def _curve_key(scene: _Scene) -> list[Artist]:
    """What the marks mean; only those that the figure shows."""
    percent, gone = f"{100 * scene.prob:g} %", scene.later["run"].isin(list(scene.fit.departed))
    marks: list[Artist] = []
    if (scene.seen["compute"] == 0).any():
        marks.append(_dot(FAINT, marker=">", label="C = 0"))
    marks.append(_dot(FAINT, label="fitted"))
    if not gone.all():
        marks.append(_dot(FAINT, mfc="white", label="held out"))
    if gone.any():
        marks.append(_dot(FAINT, marker="x", label="after departure"))
    line: dict[str, Any] = {"color": FAINT, "linewidth": 1.6}
    marks += [
        Line2D([], [], label="curve, median", **line),
        Patch(color=FAINT, alpha=0.60, linewidth=0, label=f"curve, {percent}"),
        Line2D([], [], label="forecast, median", linestyle=DASHES, **line),
        Patch(color=FAINT, alpha=0.34, linewidth=0, label=f"forecast, {percent}"),
    ]
    new = "new evaluation" if scene.by == "run" else "new seed"
    return [*marks, Patch(color=FAINT, alpha=0.16, linewidth=0, label=f"{new}, {percent}")]


# ------------------------------------------------------------------ ceilings


def ceilings(fit: ScalingFit, *, prob: float = 0.9) -> Figure:
    """Recipes ranked by ceiling, the pass rate at the horizon (`parameters.param`): interval,
    median, seeds, exact ceiling, P(highest).

    A recipe whose ceiling the data do not identify, or of which a run departed, is grey, with the
    reason beside it. P(highest) is fit.prob_best().

    Raises:
        InputError: prob is out of range.
        NotConverged: as every question to the fit.
    """
    A_QJ = _interval(fit.param("A").values, prob)
    A_R = _interval(fit.param("A", "run").values, prob)[1]
    status, best = fit.status("recipe"), fit.prob_best().values
    order = np.argsort(A_QJ[1])  # the highest is drawn last, on top
    figure = Figure(figsize=(9.0, 1.5 + 0.42 * len(order)), layout="constrained", dpi=150)
    ax, bars = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    labels = _labels(fit)
    for y, j in enumerate(order):
        color = COLORS[0] if status[j] == "ok" else FAINT
        lo, mid, hi = A_QJ[:, j]
        ax.plot([lo, hi], [y, y], color=color, linewidth=2.4, solid_capstyle="butt", zorder=2)
        ax.plot(mid, y, "o", color=color, markersize=6.5, zorder=3)
        runs = [fit.runs.index(run) for run in fit.runs_of(j)]
        if len(runs) > 1:
            ax.plot(A_R[runs], np.full(len(runs), y - 0.24), "|", color=color, ms=5, mew=1.2)
        for truth in _truths(fit, [int(j)]):
            ax.plot(truth, y, "D", mfc="none", mec=INK, ms=7, mew=1.0, zorder=4)
        bars.barh(y, best[j], height=0.5, color=color)
        text = f"{best[j]:.2f}" + ("" if status[j] == "ok" else f"   {status[j]}")
        bars.annotate(
            text, (best[j], y), (4, 0), textcoords="offset points", va="center", fontsize=8
        )
    tidy(ax, "x")
    tidy(bars, None)
    ax.set_yticks(range(len(order)), [labels[j] for j in order])
    ax.set_ylim(-0.6, len(order) - 0.4)
    ax.set_xlabel(f"{fit.evals.value_label} at {HORIZON:g}x the compute seen", fontsize=9)
    bars.set_xlim(0, 1)
    bars.set_xlabel("P(highest ceiling)", fontsize=9)
    bars.tick_params(left=False, labelleft=False)
    _title(figure, fit.evals.title)
    _legend_below(figure, _ceiling_key(fit, status, prob))
    return figure


def _ceiling_key(fit: ScalingFit, status: list[str], prob: float) -> list[Artist]:
    color = COLORS[0] if "ok" in status else FAINT
    marks: list[Artist] = [
        _dot(color, linestyle="-", linewidth=2.4, label=f"recipe, median and {100 * prob:g} %")
    ]
    if len(fit.runs) > len(fit.recipes):
        marks.append(_dot(color, marker="|", markeredgewidth=1.2, label="seeds, medians"))
    if _truths(fit):
        marks.append(_dot(INK, marker="D", mfc="none", ms=7, label="exact ceiling"))
    if any(s != "ok" for s in status):
        marks.append(Patch(color=FAINT, label="not to be trusted"))
    return marks


# ------------------------------------------------------------------ the ridge


def ridge(
    fit: ScalingFit, recipes: str | Sequence[str] | None = None, *, prob: float = 0.9
) -> Figure:
    """Draws of the curve's asymptote against C_mid: the ridge along which short runs are undecided.

    The outlines hold half and `prob` of the density of (log C_mid, asymptote), by a normal kernel.
    A vertical line marks each recipe's last fitted compute: left of it half of the gain has been
    seen.

    Args:
        fit: a posterior.
        recipes: one name or several, at most six; default the six highest asymptotes.
        prob: of the outer outline.

    Raises:
        InputError: an unknown recipe, more than six, or prob out of range.
        NotConverged: as every question to the fit.
    """
    A, C_mid = fit.param("asymptote"), fit.param("C_mid")
    names = [recipes] if isinstance(recipes, str) else recipes
    if names is None:
        names = [fit.recipes[j] for j in np.argsort(-_interval(A.values, prob)[1])[: len(COLORS)]]
    if not 0 < len(names) <= len(COLORS):
        raise InputError("recipes", len(names), "cannot be told apart", "name one to six")
    index = [fit.index("recipe", name) for name in names]
    figure = Figure(figsize=(6.4, 5.0), layout="constrained", dpi=150)
    ax = figure.subplots()
    last_J, labels, handles = fit.last_compute("recipe"), _labels(fit), []
    draws = [tuple(d.values.reshape(-1, len(labels))[:, j] for d in (C_mid, A)) for j in index]
    ax.set_xscale("log")
    for j, (x, y), color in zip(index, draws, COLORS, strict=False):
        few = slice(None, None, max(1, len(x) // 500))
        ax.plot(x[few], y[few], ".", color=color, ms=2.5, alpha=0.35, mew=0, zorder=2)
        shared = np.isclose(last_J[index], last_J[j]).sum() > 1
        line = INK if shared else color
        ax.axvline(last_J[j], color=line, linewidth=1.0, linestyle=DASHES, zorder=1)
        corr = np.corrcoef(np.log(x), y)[0, 1]
        handles.append(_dot(color, label=f"{labels[j]}:  correlation {corr:.2f}"))
    ax.autoscale(False)  # the points decide, not the grid of the outlines
    for (x, y), color in zip(draws, COLORS, strict=False):
        _outlines(ax, np.log(x), y, color, (prob, 0.5))
    tidy(ax)
    log_ticks(ax)
    ax.set_xlabel(rf"$C_\mathrm{{mid}}$, {fit.evals.compute_label}", fontsize=9)
    ax.set_ylabel("asymptote of the curve (pass rate)", fontsize=9)
    handles += [
        Line2D([], [], color=FAINT, linewidth=1.2, label=f"50 % and {100 * prob:g} % of the draws"),
        Line2D([], [], color=FAINT, linewidth=1.0, linestyle=DASHES, label="last fitted compute"),
    ]
    _title(figure, fit.evals.title)
    _legend_below(figure, handles)
    return figure


def _outlines(ax: Axes, x: Floats, y: Floats, color: str, probs: Sequence[float]) -> None:
    """Contours of the highest densities of (x, y) that hold `probs`; x is drawn as exp(x)."""
    density = gaussian_kde(np.stack([x, y]), lambda kde: 1.5 * kde.scotts_factor())
    heights = np.quantile(density(density.dataset), [1 - p for p in probs])
    side = [np.linspace(v.min() - 0.2 * np.ptp(v), v.max() + 0.2 * np.ptp(v), 80) for v in (x, y)]
    grid_x, grid_y = np.meshgrid(*side)
    z = density(np.stack([grid_x.ravel(), grid_y.ravel()])).reshape(grid_x.shape)
    ax.contour(np.exp(grid_x), grid_y, z, levels=heights, colors=[color], linewidths=1.2, zorder=3)


# ------------------------------------------------------------------ decisions and their record


def effects(
    tables: pd.DataFrame | Sequence[pd.DataFrame],
    *,
    margin_A: float = MARGIN_A,
    margin_compute: float = MARGIN_COMPUTE,
) -> Figure:
    """Forest plot of design choices: what each does to the ceiling and to the compute.

    Left, the change of the ceiling at the horizon. Right, on a log axis, the compute to reach the
    same pass rate over what the reference needs (compute_ratio) and, thin, the compute to reach
    80 % of its own gain (pace_ratio). Differences inside the shaded margins do not count; an arrow
    is an interval that does not end, where a curve never arrives.

    Args:
        tables: of fit.effects, one per axis.
        margin_A: half-width of the left margin, a pass rate; as given to fit.effects.
        margin_compute: of the right margin: 0.1 spans 1 / 1.1 to 1.1; likewise.

    Raises:
        InputError: no row to draw.
    """
    parts = [tables] if isinstance(tables, pd.DataFrame) else list(tables)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    if table.empty:
        raise InputError("tables", "", "no effect to draw", "give tables of fit.effects")
    group_N = (table["axis"] != table["axis"].shift()).cumsum().to_numpy()
    y_N = -(np.arange(len(table)) + 0.5 * (group_N - 1))
    figure = Figure(figsize=(9.6, 1.9 + 0.45 * -y_N[-1]), layout="constrained", dpi=150)
    left, right = figure.subplots(1, 2, sharey=True)
    colors = [VERDICTS[verdict] for verdict in table["verdict"]]
    _forest(left, table, {"dA": 0.0}, y_N, colors, (-margin_A, margin_A))
    right.set_xscale("log")
    wide = 1 + margin_compute
    _forest(right, table, {"compute_ratio": 0.0, "pace_ratio": 0.22}, y_N, colors, (1 / wide, wide))
    log_ticks(right)
    rows = table[["axis", "level", "reference"]].astype(str)
    left.set_yticks(y_N, [f"{r.axis}: {r.level} vs {r.reference}" for r in rows.itertuples()])
    left.set_ylim(y_N[-1] - 0.6, y_N[0] + 0.6)
    left.set_xlabel(f"change of the {CEILING}", fontsize=9)
    right.set_xlabel("compute, level / reference", fontsize=9)
    edge = right.get_yaxis_transform()
    for y, verdict, color in zip(y_N, table["verdict"], colors, strict=True):
        right.text(1.03, y, verdict, transform=edge, va="center", fontsize=8, color=color)
    lo, _, hi = (float(c.rpartition("_q")[2]) for c in _quantile_columns(table, "dA"))
    handles = [
        _dot(
            INK,
            linestyle="-",
            lw=2.4,
            label=f"ceiling; compute to the same pass rate ({hi - lo:g} %)",
        ),
        _dot(INK, linestyle="-", lw=0.9, mfc="white", label="compute to 80 % of its own gain"),
        Patch(
            color=FAINT, alpha=0.3, label=f"margins, {margin_A:g} and {100 * margin_compute:g} %"
        ),
    ]
    _legend_below(figure, handles)
    return figure


VERDICTS = {
    "ceiling mover": COLORS[0],
    "efficiency shaper": COLORS[1],
    "both": COLORS[2],
    "neither": INK,
    "undecided": FAINT,
}


def _forest(
    ax: Axes,
    table: pd.DataFrame,
    below: dict[str, float],
    y_N: Floats,
    colors: list[str],
    margin: tuple[float, float],
) -> None:
    """Intervals of quantities, each drawn `below` its row, the first bold, and their margin."""
    log = ax.get_xscale() == "log"
    columns = [column for name in below for column in _quantile_columns(table, name)]
    ends = np.append(table[columns].to_numpy(float).ravel(), margin)
    ends = ends[np.isfinite(ends) & ((ends > 0) | (not log))]
    low, high = ends.min(), ends.max()
    pad = (high / low) ** 0.06 if log else 0.06 * (high - low)
    ax.set_xlim((low / pad, high * pad) if log else (low - pad, high + pad))
    ax.axvspan(*margin, color=FAINT, alpha=0.15, linewidth=0)
    ax.axvline(1 if log else 0, color=INK, linewidth=0.8)
    for name, down in below.items():
        q_NQ = table[_quantile_columns(table, name)].to_numpy(float)
        for q_Q, y, color in zip(q_NQ, y_N - down, colors, strict=True):
            if not np.isnan(q_Q).any():
                _stretch(ax, q_Q, y, color, bold=down == 0)
    tidy(ax, "x")
    ax.tick_params(axis="y", length=0)


def _stretch(ax: Axes, q_Q: Floats, y: float, color: str, *, bold: bool) -> None:
    """An interval and its median; an end outside the axis is an arrow at its edge."""
    left, right = ax.get_xlim()
    lo, mid, hi = q_Q
    width, size, fill = (2.4, 6.0, color) if bold else (0.9, 3.6, "white")
    ax.plot(np.clip((lo, hi), left, right), (y, y), color=color, lw=width, solid_capstyle="butt")
    if left <= mid <= right:
        ax.plot(mid, y, "o", color=color, mfc=fill, markersize=size, zorder=3)
    for beyond, at, marker in ((lo < left, left, "<"), (hi > right, right, ">")):
        if beyond:
            ax.plot(at, y, marker, color=color, mfc=fill, ms=size, clip_on=False, zorder=3)


def _quantile_columns(table: pd.DataFrame, name: str) -> list[str]:
    """Lower, median and upper column of a quantity."""
    columns = [c for c in table if re.fullmatch(rf"{name}_q[\d.]+", str(c))]
    return sorted(map(str, columns), key=lambda c: float(c.rpartition("_q")[2]))


def calibration(backtest: Backtest, *, prob: float = 0.9) -> Figure:
    """Share of later evaluations inside their forecast intervals, by horizon C / C_seen.

    A panel per curve, a line per origin of the forecasts. Runs weigh the same, and the bars are
    `prob` intervals of a share with one trial per run, Beta(1/2 + k, 1/2 + R - k), k = coverage R.
    Open points lie below the coverage that `Backtest.evidence` asks for over all origins; the
    shaded horizons are those that it trusts.

    Raises:
        InputError: prob is out of range.

    Source: the interval is Jeffreys', Brown, Cai and DasGupta 2001 (Stat. Sci. 16:101), Sec. 3.
    """
    _check_prob(prob)
    keys = ["curve", "origin", "horizon"]
    points = backtest.points.drop(columns="horizon").rename(columns={"band": "horizon"})
    R = points.groupby(keys).agg(R=("run", "nunique")).reset_index()
    scores = backtest.scores.merge(R, on=keys)
    scores["lo"], scores["hi"] = jeffreys(scores["coverage"], scores["R"], prob)
    scores["rare"] = scores["coverage"] < LEAST
    names, origins = scores["curve"].unique(), np.sort(scores["origin"].unique())
    figure = Figure(figsize=(1.6 + 3.4 * len(names), 4.0), layout="constrained", dpi=150)
    grid = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)[0]
    for ax, name in zip(grid, names, strict=True):
        _coverage(ax, scores[scores["curve"] == name], origins)
        trust, evidence = backtest.trust(name), backtest.evidence(name)
        ax.axvspan(1, trust, color=FAINT, alpha=0.15, linewidth=0, zorder=0)
        words = f"trusted to {trust:.3g}" if trust > 1 else evidence["verdict"].iloc[0]
        ax.set_title(f"{name}: {words}", fontsize=9, loc="left", color=INK)
        ax.set_xlabel(r"horizon, $C / C_\mathrm{seen}$", fontsize=9)
    grid[0].set_xlim(1, scores["horizon"].max() * 1.4)
    grid[0].set_ylim(min(0.5, scores["lo"].min() - 0.03), 1.03)
    grid[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    grid[0].set_ylabel(f"evaluations inside their {100 * PROB:g} % interval", fontsize=9)
    for ax in grid:
        log_ticks(ax)
    handles: list[Artist] = [
        _dot(color, linestyle="-", lw=0.9, label=f"from {100 * origin:g} % of compute")
        for origin, color in zip(origins, COLORS, strict=False)
    ]
    if scores["rare"].any():
        handles.append(_dot(FAINT, mfc="white", label="covered too rarely"))
    handles += [
        Line2D([], [], color=INK, linewidth=0.8, label="nominal"),
        Patch(color=FAINT, alpha=0.3, label="trusted horizons"),
    ]
    _legend_below(figure, handles)
    return figure


def _coverage(ax: Axes, scores: pd.DataFrame, origins: Floats) -> None:
    """Coverage of one curve's forecasts; origins stand side by side."""
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

    A panel per difference, a line per design of seeds and evaluations: what normal posteriors
    would give, with the share of the simulated studies (points, +- one Monte Carlo error) and the
    share whose verdict is wrong (crosses, where there are any). Where there is no difference every
    verdict is wrong.

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
        ax.set_title(f"{quantity}: {'equal' if null else apart}", fontsize=9, loc="left", color=INK)
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("compute of a run / horizon", fontsize=9)
    for (seeds, points), color in zip(designs, COLORS, strict=False):
        label = f"{seeds} seed{'s' * (seeds > 1)}" + f" x {points} evaluations" * several
        handles.append(Line2D([], [], color=color, linewidth=1.2, label=f"expected, {label}"))
    handles.append(_dot(INK, linestyle="none", label="right in simulated studies, +- 1 s.e."))
    handles.append(_dot(INK, linestyle="none", marker="x", label="wrong"))
    grid.flat[0].set_xscale("log")
    grid.flat[0].set_ylim(-0.04, 1.04)
    grid.flat[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    log_ticks(grid.flat[0])
    for ax in grid[:, 0]:
        ax.set_ylabel("studies with a verdict", fontsize=9)
    _legend_below(figure, handles)
    return figure


def _power_panel(ax: Axes, rows: pd.DataFrame, designs: list[tuple[int, int]], hoped: str) -> None:
    """One difference; designs stand side by side."""
    for i, ((seeds, points), color) in enumerate(zip(designs, COLORS, strict=False)):
        own = rows[(rows["seeds"] == seeds) & (rows["points"] == points)].sort_values("share")
        x = own["share"] * 1.03 ** (i - (len(designs) - 1) / 2)
        ax.plot(x, own["expected"], color=color, linewidth=1.2)
        if hoped == "right":
            ends = (own["right"] + sign * own["mcse"] for sign in (-1, 1))
            ax.vlines(x, *(end.clip(0, 1) for end in ends), color=color, linewidth=0.9)
            ax.plot(x, own["right"], "o", color=color, markersize=4, clip_on=False)
        wrong = own["wrong"].where((own["wrong"] > 0) | (hoped == "wrong"))
        ax.plot(x, wrong, "x", color=color, markersize=5, clip_on=False)
    tidy(ax)


def jeffreys(share_N: ArrayLike, trials_N: ArrayLike, prob: float) -> tuple[Floats, Floats]:
    """Ends [N] of the equal-tailed interval of a share; a share of 0 or 1 is inside its own."""
    share_N, trials_N = np.asarray(share_N, float), np.asarray(trials_N, float)
    k, tail = share_N * trials_N, (1 - prob) / 2
    lo, hi = (beta.ppf(q, k + 0.5, trials_N - k + 0.5) for q in (tail, 1 - tail))
    return np.where(share_N == 0, 0.0, lo), np.where(share_N == 1, 1.0, hi)


# ------------------------------------------------------------------ shared


def _interval(x: Floats, prob: float) -> Floats:
    """Lower, median and upper quantile [3, ...] over the first two dimensions, chain and draw."""
    _check_prob(prob)
    return np.quantile(x, ((1 - prob) / 2, 0.5, (1 + prob) / 2), axis=(0, 1))


def _check_prob(prob: float) -> None:
    if not 0 < prob < 1:
        raise InputError("prob", prob, "not in (0, 1)", "give 0.9 for a 90 % interval")


def _truths(fit: ScalingFit, recipes: Sequence[int] | None = None) -> list[float]:
    """Exact ceilings that are known, of all runs or of those of some recipes."""
    truth_R = fit.constant("truth")
    if recipes is not None:
        truth_R = truth_R[np.isin(fit.recipe_of_run, recipes)]
    return sorted({round(float(x), 6) for x in truth_R[np.isfinite(truth_R)]})


def _dot(color: Color, **options: Any) -> Line2D:
    style: dict[str, Any] = {
        "marker": "o",
        "linestyle": "none",
        "markersize": 4.5,
        "markeredgewidth": 0.8,
    }
    aliases = {"ms": "markersize", "mfc": "markerfacecolor", "lw": "linewidth"}
    style |= {aliases.get(key, key): value for key, value in options.items()}
    return Line2D([], [], color=color, **style)


def _title(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", color=INK)


def _legend_below(figure: Figure, handles: Sequence[Artist]) -> None:
    """The key, in as many columns as fit the figure; a letter of it is 0.065 inches wide."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_figwidth() / (0.065 * longest + 0.6)))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
