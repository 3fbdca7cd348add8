"""Pass rate against compute: evaluations, the posterior of the curve, and the forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.forecast import bands
from rlx.scaling.paths import HORIZON
from rlx.scaling.plot.shared import Floats, apart, cells, colors, interval, truths
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.style import (
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
    shade,
    tidy,
    title,
)

SEEN, AHEAD, NEW = 0.40, 0.22, 0.14  # opacity of the bands
OVERLAID = 4  # recipes that share a panel; more get panels of their own
GRID_POINTS = 80  # of a drawn curve


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
        horizon: how far the forecast goes at least, C / (last fitted C), above 1; it covers all of
            held_out.
        by: a curve per "run", or one per "recipe", of its typical seed.
        prob: of the bands.

    Raises:
        InputError: horizon or prob is out of range, `by` is unknown, or held_out has other runs.
        NotConverged: the fit has not converged and is not `unsafe`.
    """
    if not horizon > 1:
        raise InputError("horizon", horizon, "not beyond the data", "give C / C_max above 1")
    scene = _scene(fit, held_out, horizon, by, prob)
    panels = _panels(scene)
    figure, grid = panel_grid(len(panels))
    for ax, (name, recipes) in zip(grid.flat, panels, strict=False):
        _curve_panel(ax, scene, name, recipes)
    shared = grid.flat[0]
    values = [*fit.evals.frame["value"], *scene.later["value"], *truths(fit)]
    values += scene.curve_QNC[:, scene.drawn_NC].ravel().tolist()
    shared.set_ylim(*rate_limits(values))
    shared.set_xlim(scene.compute_C[0] / 1.15, 1.03 * scene.end_N.max())
    for ax in grid.flat[: len(panels)]:
        log_ticks(ax)
    label_outside(grid, len(panels), fit.evals.compute_label, fit.evals.value_label)
    title(figure, fit.evals.title)
    key_below(figure, _curve_key(scene))
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
    color: list[str]  # of each recipe
    status: dict[str, str]  # of recipes if by is recipe, else of runs

    @property
    def drawn_NC(self) -> NDArray[np.bool_]:
        return self.compute_C <= self.end_N[:, None] * (1 + 1e-9)


def _scene(fit: ScalingFit, held_out: Evals | None, horizon: float, by: str, prob: float) -> _Scene:
    names, last_N = fit.names(by), fit.last_compute(by)
    positive = fit.evals.frame["compute"].loc[lambda C: C > 0]
    seen, later = _split(fit, held_out)
    end_N = np.maximum(horizon * last_N, _ends(fit, later, by))
    ends = (positive.min(), end_N.max())
    compute_C = np.unique(np.r_[np.geomspace(*ends, GRID_POINTS), last_N, end_N])
    base, level = cells(fit)
    return _Scene(
        fit=fit,
        by=by,
        prob=prob,
        seen=seen,
        later=later,
        compute_C=compute_C,
        curve_QNC=bands(fit, compute_C, by, prob),
        new_QNC=bands(fit, compute_C, by, prob, new=True),
        last_N=last_N,
        end_N=end_N,
        A_QJ=interval(fit.param("A").values, prob),
        base=base,
        level=level,
        color=colors(fit),
        status=dict(zip(names, fit.status(by), strict=True)),
    )


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


def _ends(fit: ScalingFit, later: pd.DataFrame, by: str) -> Floats:
    """Largest compute [N] of the evaluations in `later` of a run, or of a recipe's runs; else 0."""
    name = later["run"]
    if by == "recipe":
        name = name.map(dict(zip(fit.runs, np.array(fit.recipes)[fit.recipe_of_run], strict=True)))
    return later.groupby(name)["compute"].max().reindex(fit.names(by), fill_value=0.0).to_numpy()


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
    """The recipes of one panel, their exact ceilings, and a key above the axes."""
    handles: list[Artist | tuple[Artist, ...]] = []
    words, spans = [], []
    own_colors = apart([scene.color[j] for j in recipes])
    for j, color in zip(recipes, own_colors, strict=True):
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
        handles.append(tuple(dot(tint) for tint in shades))
        lead = "" if len(recipes) == 1 and scene.base[j] in name else f"{scene.base[j]}:  "
        lo, mid, hi = scene.A_QJ[:, j]
        within = f"{percent(scene.prob)}: {lo:.3f} to {hi:.3f}"
        lines = [f"{lead}{mid:.3f} ({within}) at {HORIZON:g}x compute", *_warnings(scene, j)]
        words.append("\n".join(lines))
    known = truths(scene.fit, recipes)
    for truth in known:
        ax.axhline(truth, color=INK, linewidth=0.8, zorder=1)
    if known:
        handles.append(Line2D([], [], color=INK, linewidth=0.8))
        words.append(f"exact ceiling {', '.join(f'{truth:.3f}' for truth in known)}")
    for span in spans:
        ax.axvspan(*span, color=FAINT, alpha=0.14 / len(spans), linewidth=0, zorder=0)
    ax.set_xscale("log")
    tidy(ax)
    key_above(ax, handles, words, name)


def _band(ax: Axes, scene: _Scene, n: int, color: Color, layers: int) -> None:
    """Curve n: its band and median where fitted and where forecast, and new evaluations.

    `layers` forecasts are drawn over each other, and together are as dark as one alone.
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
    """Opacity of each of some layers that together have an opacity."""
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
    """Lines about departed runs and unidentified ceilings of a recipe."""
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
    within, gone = percent(scene.prob), scene.later["run"].isin(list(scene.fit.departed))
    marks: list[Artist] = []
    if (scene.seen["compute"] == 0).any():
        marks.append(dot(FAINT, marker=">", label="at C = 0"))
    marks.append(dot(FAINT, label="fitted"))
    if not gone.all():
        marks.append(dot(FAINT, mfc="white", label="held out"))
    if gone.any():
        marks.append(dot(FAINT, marker="x", label="after departure"))
    line: dict[str, Any] = {"color": FAINT, "linewidth": 1.6}
    marks += [
        Line2D([], [], label="curve, median", **line),
        Patch(color=FAINT, alpha=0.60, linewidth=0, label=f"curve, {within}"),
        Line2D([], [], label="forecast, median", linestyle=DASHES, **line),
        Patch(color=FAINT, alpha=0.34, linewidth=0, label=f"forecast, {within}"),
    ]
    new = "new evaluation" if scene.by == "run" else "new seed"
    return [*marks, Patch(color=FAINT, alpha=0.16, linewidth=0, label=f"{new}, {within}")]
