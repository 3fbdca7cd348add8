"""`report_page`: a study as one HTML file that needs no server and no network.

    sc.report_page(fit, "report.html", data=evals, source="runs/default")

The file holds its numbers as one JSON object (`page_data`), all computed by `rlx.scaling` from the
posterior's draws, and the script, styles and chart library of the folder `template`, which show
them. The browser only places numbers on the screen, and interpolates the other measures of compute
between evaluations. Text from outside is stored as JSON that cannot end its script element, and
shown as text, never as markup; the page's content security policy allows no other script and no
requests.

Forecasts are made from several shares of every run's compute: the given fit for its own share, and
Laplace fits, about a second each after the first, for the others. They are scored on the
evaluations that came later, which is the evidence for trust.

Q: lower, median, upper; N: runs or recipes; C: computes.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.backtest import (
    LEAST,
    ORIGINS,
    Backtest,
    score,
    usable_origins,
    width,
    with_first,
)
from rlx.scaling.check import Check
from rlx.scaling.data import Evals
from rlx.scaling.effects import MARGIN_A, MARGIN_COMPUTE
from rlx.scaling.forecast import bands
from rlx.scaling.paths import HORIZON
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.recorded import configurations, other_axes

Floats = NDArray[np.float64]
Json = dict[str, Any]

TEMPLATE = Path(__file__).with_name("template")
SCRIPTS = ("words", "forest", "curves", "chart", "sections")  # .js, one after another
PROB = 0.9  # of all intervals
GRID_POINTS = 64  # of a drawn curve
BUDGETS = (0.5, 1.0, 2.0)  # multiples of the largest fitted compute
TARGET_STEPS = (0.01, 0.02, 0.05, 0.1)  # between pass rates whose cost is shown
MOST_TARGETS = 12


def report_page(
    fit: ScalingFit,
    path: Path | str,
    *,
    data: Evals | None = None,
    source: Path | str | None = None,
    shares: Sequence[float] = ORIGINS,
    horizon: float = 4.0,
    check: Check | None = None,
    **options,
) -> None:
    """Write a study as one self-contained HTML file.

    Args:
        fit: a posterior. One that has not converged is shown as well; the page then says so.
        path: where the page goes.
        data: evaluations of the fitted runs, also later ones; default those fitted.
        source: where `data` was read from. It gives the other measures of compute and, if it is a
            study directory, the configuration of every run. Default: neither.
        shares: of every run's compute, from which forecasts are made and scored, besides the fit's
            own and all of it; () for the fit alone, without further fits.
        horizon: how far forecasts are drawn, in multiples of the largest compute of `data`.
        check: of the fit; default fit.check().
        options: those with which `source` was read, see `Evals.read`.

    Raises:
        InputError: horizon or a share is out of range.
    """
    if not horizon > 1:
        raise InputError("horizon", horizon, "not beyond the data", "give C / C_max above 1")
    fit = fit.unsafe()
    whole = fit.evals if data is None else data.select([r for r in data.runs if r in fit.runs])
    windows = forecasts(fit, whole, shares)
    axes, configs = beside(source, data, whole.runs, options)
    write_page(page_data(fit, whole, windows, horizon, axes, configs, check), path)


def beside(
    source: Path | str | None, data: Evals | None, runs: Sequence[str], options: Json
) -> tuple[dict[str, list[float]], dict[str, Json]]:
    """Other measures of compute for the rows of `runs`, and configurations, as far as known."""
    if source is None:
        return {}, {}
    axes = {} if data is None else other_axes(Path(source), data, **options)
    if data is not None:
        kept = data.frame["run"].isin(runs).to_numpy()
        axes = {label: np.array(x)[kept].tolist() for label, x in axes.items()}
    return axes, configurations(Path(source))


# ------------------------------------------------------------------ forecasts of the study's past


@dataclass(frozen=True)
class Window:
    """A forecast from a share of every run's compute, and its score on what came later."""

    share: float
    fit: ScalingFit
    points: pd.DataFrame  # of rlx.scaling.backtest.score


def forecasts(fit: ScalingFit, data: Evals, shares: Sequence[float] = ORIGINS) -> list[Window]:
    """The fit and fits of other shares of `data`, in the order of the shares.

    Shares at which most runs have too few evaluations are left out, see `usable_origins`. If there
    are shares, all of `data` is fitted too.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise InputError("shares", share, "not in (0, 1]", "0.5 is the first half")
    wanted = sorted({*usable_origins(data, shares), 1.0}) if shares else []
    seen = {share: with_first(data, share) for share in wanted}
    own = [share for share in wanted if seen[share].sha256() == fit.evals.sha256()]
    made = {share: fit for share in own} or {_share(fit.evals, data): fit}
    for share in wanted:
        if share not in made:
            same = {"method": "laplace", "pad_to": width(data)}
            with contextlib.redirect_stdout(io.StringIO()):  # of runs that left their curve
                made[share] = fit.refit(seen[share], **same).unsafe()
    return [Window(share, made[share], score(made[share], data)) for share in sorted(made)]


def _share(seen: Evals, data: Evals) -> float:
    """Largest share of a run's compute in `data` that has been seen."""
    last, end = (x.frame.groupby("run")["compute"].max() for x in (seen, data))
    return float((last / end).max())


# ------------------------------------------------------------------ the numbers of the page


def page_data(
    fit: ScalingFit,
    data: Evals,
    windows: Sequence[Window],
    horizon: float = 4.0,
    axes: dict[str, list[float]] | None = None,
    configs: dict[str, Json] | None = None,
    check: Check | None = None,
) -> Json:
    """What the page shows, ready for JSON: numbers of 6 digits, "inf" and "-inf", null for NaN.

    Args:
        fit: the posterior that answers.
        data: all evaluations of its runs.
        windows: from `forecasts`, one of them with `fit`.
        horizon: see `report_page`.
        axes: from `other_axes`, one number per row of `data`.
        configs: from `configurations`.
        check: of the fit; default fit.check().
    """
    grid_C, a = grid(data, horizon), fit.attrs
    recipe_of = dict(zip(fit.runs, map(int, fit.recipe_of_run), strict=True))
    blob = {
        **headings(data, len(fit.recipes)),
        "method": a["method"],
        "fit": fitted_how(fit),
        "converged": a["method"] != "nuts" or fit.converged,
        "versions": json.loads(a.get("versions", "{}")),
        "axes": [plain(data.compute_label), *map(plain, axes or {})],
        "recipes": recipes_of(fit),
        "runs": runs_of(data, recipe_of, axes or {}),
        "grid": grid_C,
        "windows": [window_of(window, fit, grid_C) for window in windows],
        "own": next(i for i, window in enumerate(windows) if window.fit is fit),
        "ceilings": ceilings_of(fit),
        "effects": [{"axis": x, "rows": records(fit.effects(x))} for x in fit.axes],
        "margins": {"A": MARGIN_A, "compute": MARGIN_COMPUTE},
        "costs": costs_of(fit),
        "budgets": budgets_of(fit),
        "trust": trust_of(windows, a["curve"]),
        "check": (check or fit.check()).as_dict(),
        "notes": json.loads(a.get("notes", "[]")),
        "configs": configs_of(fit.runs, levels_of(fit), configs or {}),
        "table": table_of_runs(fit, data),
    }
    return clean(blob)


def grid(data: Evals, horizon: float) -> Floats:
    """Computes of drawn curves [C], evenly spaced in log C."""
    compute = data.frame["compute"]
    return np.geomspace(compute[compute > 0].min(), horizon * compute.max(), GRID_POINTS)


def headings(data: Evals, recipes: int) -> Json:
    """What the page says about the data, for any kind of fit."""
    count = data.frame["run"].value_counts()
    few, many = count.min(), count.max()
    points = f"{many}" if few == many else f"{few} to {many}"
    runs = f"{len(count)} run{'s' * (len(count) > 1)} of {recipes} recipe{'s' * (recipes > 1)}"
    return {
        "title": data.title or "study",
        "summary": f"{runs}, {points} evaluations each",
        "prob": PROB,
        "horizon": HORIZON,
        "value_label": plain(data.value_label),
        "data_sha256": data.sha256(),
    }


def fitted_how(fit: ScalingFit) -> str:
    """Family, method and diagnostics in words."""
    a, how = fit.attrs, "a normal at the mode (method=laplace), a preview"
    if a["method"] == "nuts":
        found = f"R-hat {a['rhat']:.3f}, {a['ess']:.0f} effective draws"
        state = "converged" if fit.converged else "not converged"
        how = f"NUTS, {state} ({found}, {a['divergences']} divergences)"
    return f"Curves of the family {a['curve']}, by {how}"


def recipes_of(fit: ScalingFit) -> list[Json]:
    """Name, label, colour and mark of every recipe; recipes that share a colour differ in mark."""
    labels, colors = labels_of(fit), colors_of(fit)
    rank = [colors[:j].count(color) for j, color in enumerate(colors)]
    return [
        {"name": name, "label": label, "color": color, "mark": k, "runs": fit.runs_of(j)}
        for j, (name, label, color, k) in enumerate(
            zip(fit.recipes, labels, colors, rank, strict=True)
        )
    ]


def labels_of(fit: ScalingFit) -> list[str]:
    """The label of each recipe, as in all figures."""
    from rlx.scaling.plot import shared  # imports matplotlib, which other questions do not need

    return shared.labels(fit)


def colors_of(fit: ScalingFit) -> list[str]:
    """The colour of each recipe, as in all figures; by rank if they would all be the same."""
    from rlx.scaling.plot import shared

    colors = shared.colors(fit)
    return shared.apart(colors) if len(set(colors)) == 1 else colors


def runs_of(data: Evals, recipe_of: dict[str, int], axes: dict[str, list[float]]) -> list[Json]:
    """Evaluations of every run, against every measure of compute.

    Args:
        data: all evaluations.
        recipe_of: for every run, by name, the index of its recipe.
        axes: from `other_axes`.
    """
    made, frame = [], data.frame.reset_index(drop=True)
    for run, recipe in recipe_of.items():
        rows = frame[frame["run"] == run]
        there = [rows["compute"], *(pd.Series(x)[rows.index] for x in axes.values())]
        one: Json = {"name": run, "recipe": recipe, "truth": rows["truth"].iloc[0]}
        one |= {"x": [x.to_numpy(float) for x in there]}
        made.append(one | {"y": rows["value"].to_numpy(), "stderr": rows["stderr"].to_numpy()})
    return made


def window_of(window: Window, fit: ScalingFit, grid_C: Floats) -> Json:
    """A forecast: bands [Q, N, C] of the curve and of new evaluations, and its scores."""
    own = window.fit
    place = {by: [own.names(by).index(name) for name in fit.names(by)] for by in ("run", "recipe")}
    points = window.points
    out: Json = {
        "share": window.share,
        "method": own.attrs["method"],
        "departed": [run in own.departed for run in fit.runs],
        "later": len(points),
        "inside": int(points["inside"].sum()) if len(points) else 0,
        "crps": points["crps"].mean() if len(points) else math.nan,
    }
    for by in ("run", "recipe"):
        some = place[by]
        out[by] = {
            "last": own.last_compute(by)[some],
            "curve": np.round(bands(own, grid_C, by, PROB)[:, some], 4),
            "new": np.round(bands(own, grid_C, by, PROB, new=True)[::2, some], 4),
        }
    return out


def ceilings_of(fit: ScalingFit) -> list[Json]:
    """Pass rate at the horizon of every recipe and of its seeds, and P(it is the highest)."""
    recipes, runs = (fit.summary(by, PROB).query("param == 'A'") for by in ("recipe", "run"))
    q50_R, truth_R = runs["q50"].to_numpy(), fit.constant("truth")
    rows = records(recipes[["name", "mean", "q05", "q50", "q95", "contraction", "status"]])
    best = fit.prob_best().values
    for j, row in enumerate(rows):
        mine = fit.recipe_of_run == j
        row |= {"recipe": j, "p_best": best[j], "seeds": q50_R[mine]}
        row["truth"] = np.unique(truth_R[mine & np.isfinite(truth_R)].round(6))
    return rows


def costs_of(fit: ScalingFit) -> Json:
    """`fit.compute_to` for round pass rates; `start`: the highest that most recipes reach."""
    levels = pass_rates(fit)
    tables = [records(fit.compute_to(level, PROB)) for level in levels]
    likely = [np.median([row["prob_reachable"] for row in rows]) >= 0.9 for rows in tables]
    start = max([i for i, is_likely in enumerate(likely) if is_likely], default=0)
    return {"targets": levels, "rows": tables, "start": start}


def pass_rates(fit: ScalingFit) -> list[float]:
    """Round pass rates between the lowest R0 and the highest ceiling."""
    low = float(fit.param("R0").median(("chain", "draw")).min())
    high = float(fit.param("A").quantile(0.95, ("chain", "draw")).max())
    step = next((s for s in TARGET_STEPS if (high - low) / s <= MOST_TARGETS), TARGET_STEPS[-1])
    first, last = math.floor(low / step) + 1, math.ceil(high / step) - 1
    return [round(step * i, 2) for i in range(first, last + 1)] or [round((low + high) / 2, 3)]


def budgets_of(fit: ScalingFit) -> list[Json]:
    """`fit.allocate` for several budgets, or why it refuses."""
    largest, made = float(fit.last_compute("run").max()), []
    for factor in BUDGETS:
        budget = float(f"{factor * largest:.3g}")
        one: Json = {"budget": budget, "factor": factor}
        try:
            table = fit.allocate(budget)
        except InputError as error:
            made.append(one | {"refused": str(error)})
            continue
        made.append(one | {k: table.attrs[k] for k in ("spent", "value", "perfect", "error")})
        made[-1]["rows"] = records(table)
    return made


def trust_of(windows: Sequence[Window], curve: str) -> Json:
    """How the forecasts of `windows` did, by horizon, see `Backtest.evidence`."""
    scored = [w.points.assign(curve=curve, origin=w.share) for w in windows if len(w.points)]
    if not scored:
        says = f"{curve}: too little evidence: no forecast could be scored"
        return {"says": says, "trust": 1.0, "evidence": [], "scores": [], "least": LEAST}
    past = Backtest(pd.concat(scored, ignore_index=True))
    return {
        "says": past.says(curve),
        "trust": past.trust(curve),
        "evidence": records(past.evidence(curve)),
        "scores": records(past.scores.drop(columns="curve")),
        "least": LEAST,
    }


def levels_of(fit: ScalingFit) -> dict[str, list[str]]:
    """The level of each run, for every axis with several levels."""
    of_run = fit.levels.iloc[fit.recipe_of_run]
    return {axis: of_run[axis].tolist() for axis in fit.axes}


def configs_of(runs: Sequence[str], levels: dict[str, list[str]], configs: dict[str, Json]) -> Json:
    """Options that differ between runs, by run, and the others once; `levels` if none are known.

    Args:
        runs: names.
        levels: for every axis, the level of each run.
        configs: from `configurations`.
    """
    known = [configs.get(run, {}) for run in runs]
    keys = list(dict.fromkeys(key for options in known for key in options))
    texts = {key: [_said(options, key) for options in known] for key in keys}
    apart = {key: cells for key, cells in texts.items() if len(set(cells)) > 1}
    shared = {key: cells[0] for key, cells in texts.items() if key not in apart}
    return {"known": any(known), "apart": apart if any(known) else levels, "shared": shared}


def _said(options: Json, key: str) -> str:
    value = options.get(key, "")
    return value if isinstance(value, str) else json.dumps(value)


def table_of_runs(fit: ScalingFit, data: Evals) -> Json:
    """A row per run: its data, its ceiling, its progress, and whether the ceiling is identified."""
    summary = fit.summary("run", PROB).query("param == 'A'").set_index("name").loc[fit.runs]
    groups, fitted = (dict(list(x.frame.groupby("run"))) for x in (data, fit.evals))
    labels = labels_of(fit)
    columns = ["run", "recipe", "seed", "evaluations", "fitted", "last compute", "last value"]
    columns += ["best value", "ceiling 5 %", "ceiling 50 %", "ceiling 95 %", "gain seen"]
    columns += ["C / C_mid", "status"]
    rows = []
    for r, run in enumerate(fit.runs):
        mine, of_fit = groups[run], summary.loc[run]
        row = [run, labels[fit.recipe_of_run[r]], seed_of(mine["seed"].iloc[0]), len(mine)]
        row += [len(fitted[run]), mine["compute"].iloc[-1], mine["value"].iloc[-1]]
        row += [mine["value"].max(), of_fit["q05"], of_fit["q50"], of_fit["q95"]]
        rows.append([*row, of_fit["gained"], of_fit["phase"], of_fit["status"]])
    return {"columns": columns, "rows": rows}


def seed_of(seed: object) -> object:
    return int(seed) if isinstance(seed, float) and seed.is_integer() else seed


# ------------------------------------------------------------------ JSON and HTML


def records(table: pd.DataFrame) -> list[Json]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def clean(x: Any) -> Any:
    """x as JSON can hold it: numbers of 6 digits, "inf" and "-inf", null for NaN."""
    if isinstance(x, dict):
        return {str(key): clean(value) for key, value in x.items()}
    if isinstance(x, list | tuple | np.ndarray):
        return [clean(value) for value in x]
    if isinstance(x, bool | np.bool_):
        return bool(x)
    if isinstance(x, int | np.integer):
        return int(x)
    if isinstance(x, float | np.floating):
        if math.isnan(x):
            return None
        return float(f"{x:.6g}") if math.isfinite(x) else "inf" if x > 0 else "-inf"
    return x if x is None else str(x)


def plain(label: str) -> str:
    """The label of a figure without its math markup: 10$^{18}$ as 10^18."""
    return re.sub(r"[${}]|\\mathrm|\\", "", label)


def write_page(blob: Json, path: Path | str) -> None:
    """Write the page of a `page_data`."""
    Path(path).write_text(document(blob), encoding="utf-8", errors="xmlcharrefreplace")


def document(blob: Json) -> str:
    """The template with its parts filled in."""
    library, licence = _part("uPlot.iife.min.js"), _part("uPlot.LICENSE")
    own = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    scripts = {
        "library": f"/*!\n{licence}*/\n{library}",
        "script": f'(() => {{\n"use strict";\n{own}}})();\n',
    }
    parts = {
        **scripts,
        "title": html.escape(blob["title"]),
        "style": _part("uPlot.min.css") + _part("page.css"),
        "policy": " ".join(f"'sha256-{_sha256(text)}'" for text in scripts.values()),
        "data": embedded(blob),
    }
    pieces = re.split(r"\{\{(\w+)\}\}", _part("page.html"))
    return "".join(parts[piece] if i % 2 else piece for i, piece in enumerate(pieces))


def embedded(blob: Json) -> str:
    """JSON that cannot end its script element, whatever its texts hold."""
    text = json.dumps(blob, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def read_page(path: Path | str) -> Json:
    """The `page_data` of a written page."""
    text = Path(path).read_text(encoding="utf-8")
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    if found is None:
        raise InputError("page", path, "holds no data", "give a page that report_page wrote")
    return json.loads(found[1])


def _part(name: str) -> str:
    return (TEMPLATE / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
