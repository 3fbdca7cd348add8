"""External training curves: published fits reproduced, and forecasts scored.

    python -m analysis.forecasts data=../shared/data/retu [out=DIR] [curve=burr|sigmoid]
                                 [method=nuts|laplace]

`data` is a folder with the curves and the published fits of arXiv 2512.11470 (RL branches of SFT
checkpoints). The folder `deep_grpo` next to it holds two W&B exports; the digitised Fig. 1a of
arXiv 2510.13786 is in tests/data. Written to `out`, as CSV:

    agreement   each run of arXiv 2512.11470 on the window that its authors fitted: their A, B and
                C_mid beside those of least squares, the robust fit, and one posterior of all runs
    errors      forecasts of all later evaluations from 25 and 50 % of each run's compute, per run
    scores      the same over the runs of a study, with the posterior's wins and losses
    fits        the sampler's diagnostics

and forecasts.png. The tables hold estimates and scores, not curves. Bad options end with exit code
2 and one line on stderr.

Every forecast sees the same evaluations. R0 is the evaluation at C = 0 (P_sft in arXiv 2512.11470);
where there is none, the point fits take the first evaluation and the posterior its prior around it.
Only `agreement` uses the published R0 = P_sft + eps, because eps was fitted on later evaluations.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from analysis.drawing import Drawing
from experiments.external import POOLED, deep_grpo, read_retu, retu
from experiments.options import check_choices, exit_status, read_options
from rlx.scaling import Evals, ScalingFit, fit, fit_paper, fit_point
from rlx.scaling.backtest import score
from rlx.scaling.curve import sigmoid
from rlx.scaling.profile import profile_A
from rlx.scaling.robust import fit_robust
from rlx.scaling.style import (
    COLORS,
    FAINT,
    INK,
    RULE,
    canvas,
    note,
    panel_title,
    percent,
    percent_ticks,
    tidy,
)

Floats = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
CHOICES = {"curve": ("burr", "sigmoid"), "method": ("nuts", "laplace")}
ORIGINS = (0.25, 0.5)  # shares of every run's compute that a forecast sees
METHODS = ("posterior", "grid", "point", "last", "last3")
NAMES = {
    "posterior": "posterior median",
    "grid": "the paper's grid search",
    "point": "least squares",
    "last": "last value",
    "last3": "mean of the last three",
}
FALL = 0.03  # a pass rate this far below the best median of five in a row fits no rising curve
# The paper's grids: 100 values of C_mid from 1/80 to 5 times the fitted compute (the paper: 100 to
# 40,000 for fits on 8,000 GPU-hours); A in its steps of 0.005, but from R0 to 1.
GRID_C_MID = np.linspace(1 / 80, 5, 100)
GRID_A_STEP = 0.005


# ---------------------------------------------------------------- data


def read_studies(folder: Path) -> dict[str, Evals]:
    """The studies that are forecast: RETU, Deep-GRPO by seconds and by steps, Fig. 1a.

    Raises:
        InputError: a file is missing.
    """
    seconds, steps = deep_grpo(folder.parent / "deep_grpo")
    return {
        "RETU": retu(folder),
        "Deep-GRPO, seconds": seconds,
        "Deep-GRPO, steps": steps,
        "ScaleRL Fig. 1a": Evals.read(ROOT / "tests" / "data" / "digitized_fig1a.csv"),
    }


def fallen(value_M: Floats) -> NDArray[np.bool_]:
    """True from the first evaluation FALL below the highest earlier median of five in a row."""
    value = pd.Series(value_M)
    best = value.rolling(5).median().cummax().shift()
    return np.asarray((value < best - FALL).cummax())


# ---------------------------------------------------------------- agreement


def agreement(
    points: pd.DataFrame, published: pd.DataFrame, method: str
) -> tuple[pd.DataFrame, ScalingFit]:
    """Every published fit beside ours on the same evaluations with the same R0.

    Columns: A, B, C_mid as published; `_point` by least squares; `_robust` without outliers (tau,
    alpha as published), and A_lo, A_hi, the 90 % profile interval on the evaluations that it keeps;
    `_q05`, `_q50`, `_q95` from one posterior of all runs with the published equation
    (curve="sigmoid"). A_inside: its interval holds the published A. verdict: `agrees` or `differs`
    by A_inside if the status is ok, else the status. rmse_*: errors on the evaluations after the
    window.
    """
    table = points[points["run"].isin(published.index)]
    table = table.assign(start=table["run"], R0=table["run"].map(published["R0"]))
    evals = Evals.from_frame(
        table[table["window"]], name="RETU", recipe="recipe", start="start", r0="R0", value="value",
        compute="compute", scale="fraction",
    )  # fmt: skip
    posterior = fit(evals, curve="sigmoid", r0="R0", method=method).unsafe()
    summary = posterior.summary("run").set_index(["name", "param"])
    rows = []
    for run, theirs in published.iterrows():
        mine = table[table["run"] == run]
        row = {"run": run} | _alone(mine, theirs)
        for name, of_curve in (("A", "asymptote"), ("B", "B"), ("C_mid", "C_mid")):
            row |= (
                summary.loc[(run, of_curve), ["q05", "q50", "q95"]].add_prefix(f"{name}_").to_dict()
            )
        C, value = _after(mine)
        if C.size:
            said = posterior.predict(C).sel(run=run).median(("chain", "draw"))
            row["rmse_posterior"] = rmse(said.to_numpy() - value)
        row["status"] = summary.loc[(run, "A"), "status"]
        row["A_inside"] = row["A_q05"] <= row["A"] <= row["A_q95"]
        rows.append(row | {"verdict": _verdict(row)})
    return pd.DataFrame(rows), posterior


def _alone(mine: pd.DataFrame, theirs: pd.Series) -> dict[str, object]:
    """The published fit of one run, and our fits of that run alone."""
    window = mine[mine["window"]]
    C, value, R0 = window["compute"].to_numpy(), window["value"].to_numpy(), theirs["R0"]
    alpha = None if np.isnan(theirs["alpha"]) else theirs["alpha"]
    plain = fit_point(C, value, r0=R0)
    robust, used_M = fit_robust(C, value, r0=R0, tau=theirs["tau"], alpha=alpha)
    A_lo, A_hi = profile_A(C[used_M], value[used_M], r0=R0)
    C_after, value_after = _after(mine)
    row: dict[str, object] = {"n": len(C), "C_last": C[-1], "R0": R0}
    row |= theirs[["A", "A_printed", "B", "C_mid"]].to_dict()
    for name, found in (("point", plain), ("robust", robust)):
        row |= {f"{k}_{name}": getattr(found, k) for k in ("A", "B", "C_mid", "status")}
    row |= {"n_used": int(used_M.sum()), "A_lo": A_lo, "A_hi": A_hi, "n_after": len(C_after)}
    curves = {"published": sigmoid(C_after, **theirs[["A", "B", "C_mid", "R0"]].to_dict())}
    curves |= {"point": plain.at(C_after), "robust": robust.at(C_after)}
    return row | {f"rmse_{name}": rmse(curve - value_after) for name, curve in curves.items()}


def _after(mine: pd.DataFrame) -> tuple[Floats, Floats]:
    """Compute and value after the window."""
    later = mine[mine["compute"] > mine.loc[mine["window"], "compute"].max()]
    return later["compute"].to_numpy(), later["value"].to_numpy()


def _verdict(row: dict) -> str:
    if row["status"] != "ok":
        return "not identified" if "not identified" in row["status"] else row["status"]
    return "agrees" if row["A_inside"] else "differs"


def rmse(error: Floats) -> float:
    """Root mean square; NaN if there are no errors."""
    return float(np.sqrt(np.mean(np.square(error)))) if error.size else np.nan


# ---------------------------------------------------------------- forecasts


def forecast(
    evals: Evals, *, curve: str, method: str, origin: float, pad_to: int = 0
) -> tuple[pd.DataFrame, ScalingFit]:
    """Forecasts of the later evaluations by every method, from the first `origin` of the compute.

    Returns:
        One row per later evaluation: run, compute, observed, horizon (C / C_seen), one column per
        name in METHODS, inside (whether the posterior's 90 % predictive interval holds it), width
        (of that interval), crps, log_score, and fallen (see `fallen`). And the posterior.
    """
    seen, later = evals.until(share=origin), evals.after(share=origin)
    posterior = fit(seen, curve=curve, method=method, pad_to=pad_to).unsafe()
    table = score(posterior, later).rename(columns={"q50": "posterior"})
    parts = []
    for run, rows in table.groupby("run", sort=False):
        whole = evals.frame[evals.frame["run"] == run]
        mine = seen.frame[seen.frame["run"] == run]
        C, value = mine["compute"].to_numpy(), mine["value"].to_numpy()
        simple = baselines(C, value, rows["compute"].to_numpy())
        lost = fallen(whole["value"].to_numpy())[len(mine) :]
        parts.append(rows.assign(**simple, fallen=lost, width=rows["q95"] - rows["q05"]))
    return pd.concat(parts, ignore_index=True), posterior


def baselines(compute_M: Floats, value_M: Floats, later_C: Floats) -> dict[str, Floats]:
    """Forecast pass rates at later compute by every method of METHODS except the posterior."""
    R0 = value_M[0]
    A_grid = np.arange(np.floor(R0 / GRID_A_STEP) + 1, 1 / GRID_A_STEP + 1) * GRID_A_STEP
    C_mid_grid = GRID_C_MID * compute_M.max()
    grid = fit_paper(compute_M, value_M, r0="first", A_grid=A_grid, C_mid_grid=C_mid_grid)
    return {
        "grid": grid.at(later_C),
        "point": fit_point(compute_M, value_M, r0="first").at(later_C),
        "last": np.full(len(later_C), value_M[-1]),
        "last3": np.full(len(later_C), value_M[-3:].mean()),
    }


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """Per run and method: rmse, mae and crps (for a point forecast its absolute error).

    Over all later evaluations (scope "all"; n_fallen of them come after a fall) and, if any run
    falls, over those that do not ("before a fall"). The posterior also has the coverage of its 90 %
    predictive intervals, their mean width, and its mean log score.
    """
    rows = []
    scopes = {"all": table}
    if table["fallen"].any():
        scopes["before a fall"] = table[~table["fallen"]]
    for scope, part in scopes.items():
        for run, later in part.groupby("run", sort=False):
            for method in METHODS:
                error = (later[method] - later["observed"]).to_numpy()
                mae = float(np.abs(error).mean())
                row = {"scope": scope, "run": run, "method": method, "n": len(later)}
                row |= {"n_fallen": int(later["fallen"].sum())}
                row |= {"horizon": later["horizon"].max(), "rmse": rmse(error), "mae": mae}
                if method == "posterior":
                    row |= later[["crps", "log_score", "width"]].mean().to_dict()
                    row |= {"coverage": later["inside"].mean()}
                else:
                    row |= {"crps": mae}
                rows.append(row)
    return pd.DataFrame(rows)


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """`errors` over the runs of a study: means, the median rmse, and the posterior against each.

    wins and losses count the runs in which the posterior's rmse is smaller and larger; ratio is the
    geometric mean of rmse over the posterior's rmse.
    """
    keys = ["study", "scope", "origin"]
    posterior = table[table["method"] == "posterior"].set_index([*keys, "run"])["rmse"]
    against = table.join(posterior.rename("rmse_posterior"), on=[*keys, "run"])
    rows = []
    for (*at, method), part in against.groupby([*keys, "method"], sort=False):
        row = dict(zip([*keys, "method"], [*at, method], strict=True)) | {"runs": len(part)}
        row |= {"rmse": part["rmse"].mean(), "rmse_median": part["rmse"].median()}
        row |= part[["mae", "crps", "coverage", "width", "log_score"]].mean().to_dict()
        if method != "posterior":
            ratio = np.log(part["rmse"] / part["rmse_posterior"])
            row |= {"wins": int((ratio > 0).sum()), "losses": int((ratio < 0).sum())}
            row |= {"ratio": float(np.exp(ratio.mean()))}
        rows.append(row)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- figure


def draw(table: pd.DataFrame, curve: str, method: str) -> Figure:
    """Error of every method per run at both origins, and coverage; all later evaluations."""
    fell = set(table.loc[table["n_fallen"] > 0, "run"])
    table = table[table["scope"] == "all"]
    order = table[["study", "run"]].drop_duplicates().itertuples(index=False, name=None)
    rows, gap, y = {}, "", 0.0
    for study, run in order:
        y -= 1.0 if study == gap else 2.0
        rows[study, run], gap = y, study
    figure = canvas(12.6, 0.235 * -y + 2.4)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=[1.25, 1.25, 0.75])
    for ax, origin in ((left, 0.25), (middle, 0.5)):
        _errors_panel(ax, table[table["origin"] == origin], rows)
        panel_title(ax, f"forecast from {percent(origin)} of the run's compute")
    _coverage_panel(right, table[table["method"] == "posterior"], rows)
    _row_labels(left, rows, fell)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, fontsize=8, frameon=False)
    note(
        figure,
        "Below: in how many runs the posterior's error is the smaller, and the mean ratio of "
        "errors (geometric). One posterior per study and origin "
        f"({method}, curve={curve}).\nDeep-GRPO: means of neighbouring evaluations, {POOLED} per "
        f"run. *: the run falls by more than {FALL:g} after 25 % of its compute; later "
        "evaluations are included.",
    )
    return figure


MARKS = {  # marker, colour, filled
    "posterior": ("o", COLORS[0], True),
    "grid": ("s", COLORS[1], False),
    "point": ("^", COLORS[4], False),
    "last": ("x", INK, True),
    "last3": ("+", FAINT, True),
}
Rows = dict[tuple[str, str], float]  # height of each run's row in the figure


def _errors_panel(ax: Axes, table: pd.DataFrame, rows: Rows) -> None:
    at = table.set_index(["study", "run", "method"])["rmse"].sort_index()
    for study, run in rows:
        mine = at.loc[study, run]
        ax.plot([mine.min(), mine.max()], [rows[study, run]] * 2, color=RULE, zorder=1)
    for method, (marker, color, filled) in MARKS.items():
        values = at.xs(method, level="method")
        ax.plot(
            values.to_numpy(),
            [rows[key] for key in values.index],
            marker,
            color=color,
            markerfacecolor=color if filled else "white",
            markersize=6 if method == "posterior" else 5,
            label=NAMES[method],
            zorder=4 if method == "posterior" else 3,
        )
    ax.set_xscale("log")
    ax.set_xlim(0.0025, 0.4)
    ticks = [0.003, 0.01, 0.03, 0.1, 0.3]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("RMSE of all later evaluations (pass rate)", fontsize=9)
    tidy(ax, "x")
    ax.tick_params(axis="y", length=0)
    _wins(ax, at.unstack("method"), min(rows.values()) - 1.5)


def _wins(ax: Axes, errors: pd.DataFrame, y: float) -> None:
    """In how many runs the posterior's error is smaller, and by what factor on average."""
    said = []
    for method in MARKS:
        if method != "posterior":
            ratio = np.log(errors[method] / errors["posterior"])
            wins = f"{(ratio > 0).sum()} of {len(ratio)}, {np.exp(ratio.mean()):.2f}"
            said.append(f"{NAMES[method]}: {wins}")
    words = "posterior better than\n" + "\n".join(said)
    ax.text(0.0027, y, words, fontsize=8, va="top", color=INK, linespacing=1.3)


def _coverage_panel(ax: Axes, table: pd.DataFrame, rows: Rows) -> None:
    ax.axvline(0.9, color=INK, linewidth=0.8, zorder=1)
    means = []
    for origin, color, shift in ((0.25, COLORS[5], 0.16), (0.5, COLORS[0], -0.16)):
        part = table[table["origin"] == origin].set_index(["study", "run"])["coverage"]
        heights = [rows[key] + shift for key in part.index]
        label = f"from {percent(origin)} of compute"
        ax.plot(part.to_numpy(), heights, "o", color=color, markersize=4.5, label=label)
        means.append(f"{label}: {percent(round(part.mean(), 2))}")
    ax.set_xlim(-0.03, 1.03)
    percent_ticks(ax.xaxis)
    panel_title(ax, "inside the 90 % predictive interval")
    ax.set_xlabel("later evaluations", fontsize=9)
    words = "mean over runs\n" + "\n".join(means)
    ax.text(0, min(rows.values()) - 1.5, words, fontsize=8, va="top", color=INK, linespacing=1.3)
    ax.legend(loc="lower left", fontsize=8, frameon=False, bbox_to_anchor=(0, 0.16))
    tidy(ax, "x")
    ax.tick_params(axis="y", length=0)


def _row_labels(ax: Axes, rows: Rows, fell: set[str]) -> None:
    ax.set_yticks(list(rows.values()), [run + " *" * (run in fell) for _, run in rows])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(min(rows.values()) - 6.5, max(rows.values()) + 1.6)
    for study in dict.fromkeys(study for study, _ in rows):
        top = max(y for (name, _), y in rows.items() if name == study)
        ax.annotate(
            study, (0, top + 1), (-4, 0), ("axes fraction", "data"), textcoords="offset points",
            ha="right", va="center", fontsize=8.5, fontweight="bold", color=INK,
        )  # fmt: skip


def figures(results: Path) -> dict[str, Drawing]:
    folder = results / "forecasts"

    def redraw() -> Figure:
        fitted = pd.read_csv(folder / "fits.csv").query("origin < 1").iloc[0]
        return draw(pd.read_csv(folder / "errors.csv"), fitted["curve"], fitted["method"])

    source = "forecasts/errors.csv, by python -m analysis.forecasts (data outside the repository)"
    return {"forecasts/forecasts": Drawing(redraw, source)}


# ---------------------------------------------------------------- command


@dataclass(frozen=True)
class Options:
    data: str = str(ROOT.parent / "shared" / "data" / "retu")
    out: str = str(ROOT / "analysis" / "results" / "forecasts")
    curve: str = "burr"
    method: str = "nuts"


def main(argv: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Make every table and the figure; returns the tables by name.

    Raises:
        InputError: an option is unknown or a file of the data is missing.
    """
    options = read_options(Options, argv)
    check_choices(options, CHOICES)
    folder, out, method = Path(options.data), Path(options.out), options.method
    agreed, posterior = agreement(*read_retu(folder), method)
    diagnostics, parts = [_diagnostics("RETU, published windows", 1.0, posterior)], []
    for study, evals in read_studies(folder).items():
        pad_to = int(evals.until(share=max(ORIGINS)).frame["run"].value_counts().max())
        for origin in ORIGINS:
            table, posterior = forecast(
                evals, curve=options.curve, method=method, origin=origin, pad_to=pad_to
            )
            parts.append(errors(table).assign(study=study, origin=origin))
            diagnostics.append(_diagnostics(study, origin, posterior))
    by_run = pd.concat(parts, ignore_index=True)
    tables = {"agreement": agreed, "errors": by_run, "scores": scores(by_run)}
    tables |= {"fits": pd.DataFrame(diagnostics)}
    out.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.round(5).to_csv(out / f"{name}.csv", index=False)
    draw(by_run, options.curve, method).savefig(out / "forecasts.png")
    _print(tables)
    return tables


def _diagnostics(study: str, origin: float, posterior: ScalingFit) -> dict[str, object]:
    names = ("curve", "method", "rhat", "ess", "bfmi", "divergences", "rounds")
    row = {"study": study, "origin": origin} | {name: posterior.attrs[name] for name in names}
    return row | {"converged": posterior.converged, "departed": ", ".join(posterior.departed)}


def _print(tables: dict[str, pd.DataFrame]) -> None:
    """Print the main columns of the tables."""
    short = ["run", "A", "A_point", "A_robust", "A_lo", "A_hi", "A_q05", "A_q50", "A_q95"]
    short += ["C_mid", "C_mid_q50", "B", "B_q50", "status_robust", "verdict"]
    shown = {"agreement": tables["agreement"][short], "fits": tables["fits"]}
    shown |= {"scores": tables["scores"].drop(columns=["mae", "width"])}
    for name, table in shown.items():
        print(f"{name}\n{table.round(4).to_string(index=False, na_rep='')}\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
