"""`point_page`: the page of a study that was fitted by least squares, run by run.

As `page`, without what needs a posterior: bands, probabilities, efficiency, budgets, trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rlx.scaling.data import Evals, short_names
from rlx.scaling.page import (
    Json,
    beside,
    clean,
    configs_of,
    grid,
    headings,
    runs_of,
    seed_of,
    write_page,
)
from rlx.scaling.run_fits import RunFit

Floats = NDArray[np.float64]
Windows = dict[float, list[RunFit]]  # by share of every run's compute that was fitted


def point_page(
    windows: Windows,
    own: float,
    path: Path | str,
    *,
    data: Evals,
    source: Path | str | None = None,
    horizon: float = 4.0,
    **options,
) -> None:
    """Write a study as one self-contained HTML file.

    Args:
        windows: fits by `fit_study` of `data` at several shares of compute, 1 - holdout.
        own: the share whose fits the page reports.
        path: where the page goes.
        data, source, horizon, options: as in `page.report_page`.
    """
    axes, configs = beside(source, data, data.runs, options)
    write_page(point_data(data, windows, own, horizon, axes, configs), path)


def point_data(
    data: Evals,
    windows: Windows,
    own: float,
    horizon: float,
    axes: dict[str, list[float]],
    configs: dict[str, Json],
) -> Json:
    """What the page shows, ready for JSON; `own` is the share whose fits it reports."""
    fits, shares, grid_C = windows[own], sorted(windows), grid(data, horizon)
    cells = list(dict.fromkeys((fit.recipe, fit.axes) for fit in fits))
    recipe_of = {fit.run: cells.index((fit.recipe, fit.axes)) for fit in fits}
    frame = data.frame.drop_duplicates("run").set_index("run").loc[[fit.run for fit in fits]]
    several = [axis for axis in ("recipe", *data.axes) if frame[axis].nunique() > 1]
    blob = {
        **headings(data, len(cells)),
        "method": "point",
        "fit": "Sigmoids by least squares, run by run",
        "converged": True,
        "versions": {},
        "axes": [data.compute_label, *axes],
        "recipes": recipes_of(fits, cells),
        "runs": runs_of(data, recipe_of, axes),
        "grid": grid_C,
        "windows": [window_of(share, windows[share], data, grid_C) for share in shares],
        "own": shares.index(own),
        "ceilings": [ceiling_of(fit, recipe_of[fit.run]) for fit in fits],
        "check": {
            "problems": [f"{fit.run}: {fit.status}" for fit in fits if fit.status != "ok"],
            "sampler": [],
            "runs": [],
            "residuals": [],
        },
        "notes": [],
        "configs": configs_of(
            list(frame.index), {axis: list(map(str, frame[axis])) for axis in several}, configs
        ),
        "table": table_of(fits, data),
    }
    return clean(blob)


def recipes_of(fits: Sequence[RunFit], cells: list[tuple[str, str]]) -> list[Json]:
    """Name, label, colour and mark of every cell: a recipe at a setting of the axes."""
    from rlx.scaling.style import recipe_colors  # imports matplotlib, not needed elsewhere

    short, made = short_names([recipe for recipe, _ in cells]), []
    keys = [recipe if len(short) > 1 else axes for recipe, axes in cells]
    colors = recipe_colors(keys)
    for key, (recipe, axes) in zip(keys, cells, strict=True):
        color = colors[key]
        label = ", ".join(filter(None, (short[recipe], axes)))
        runs = [fit.run for fit in fits if (fit.recipe, fit.axes) == (recipe, axes)]
        rank = sum(one["color"] == color for one in made)
        made.append({"name": label, "label": label, "color": color, "mark": rank, "runs": runs})
    return made


def window_of(share: float, fits: Sequence[RunFit], data: Evals, grid_C: Floats) -> Json:
    """Curves [Q, N, C], all quantiles the same, and how far later evaluations lie from them."""
    curve_NC = [fit.fit.at(grid_C) if fit.fit else np.full(len(grid_C), np.nan) for fit in fits]
    frame = data.frame
    errors = [
        fit.fit.at(rows["compute"].to_numpy()) - rows["value"].to_numpy()
        for fit in fits
        if fit.fit
        for rows in [frame[(frame["run"] == fit.run) & (frame["compute"] > fit.C_fit)]]
    ]
    error_M = np.concatenate([*errors, np.zeros(0)])
    return {
        "share": share,
        "method": "point",
        "departed": [False] * len(fits),
        "later": len(error_M),
        "rmse": np.sqrt(np.mean(error_M**2)) if len(error_M) else np.nan,
        "run": {
            "last": [fit.C_fit for fit in fits],
            "curve": [np.round(curve_NC, 4)] * 3,
            "new": [np.round(curve_NC, 4)] * 2,
        },
    }


def ceiling_of(fit: RunFit, recipe: int) -> Json:
    A = fit.fit.A if fit.fit else np.nan
    ends = {"q05": fit.A_lo, "q50": A, "q95": min(fit.A_hi, 1.0)}
    truth = [fit.truth] if np.isfinite(fit.truth) else []
    same = {"label": fit.run, "recipe": recipe, "status": fit.status}
    return same | ends | {"seeds": [], "truth": truth}


def table_of(fits: Sequence[RunFit], data: Evals) -> Json:
    """A row per run: its data, its parameters and how well it forecast the rest."""
    columns = ["run", "recipe", "axes", "seed", "evaluations", "last compute", "last value"]
    columns += ["A", "B", "C_mid", "R0", "RMSE held out", "status"]
    rows = []
    for fit in fits:
        mine = data.frame[data.frame["run"] == fit.run]
        row = [fit.run, fit.recipe, fit.axes, seed_of(fit.seed), len(mine)]
        row += [mine["compute"].iloc[-1], mine["value"].iloc[-1]]
        row += [getattr(fit.fit, name, np.nan) for name in ("A", "B", "C_mid", "R0")]
        rows.append([*row, fit.rmse_heldout, fit.status])
    return {"columns": columns, "rows": rows}
