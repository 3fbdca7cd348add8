"""Fit scaling curves of a study, or of any log, and forecast their held-out part.

    python -m experiments.fit data=PATH out=DIR                    # posterior of all runs together
    python -m experiments.fit data=PATH out=DIR method=point       # least squares, run by run
    python -m experiments.fit data=PATH out=DIR eval_set=NAME      # another evaluation set

`data` is anything that `rlx.scaling.Evals.read` reads; run=, recipe=, compute=, value=, scale=,
wide=, min_points= and the others of `rlx.scaling.source.Options` say how. Runs are fitted on
C <= (1 - holdout) * C_max; holdout=0 fits everything. A study is fitted on its evaluation set
`heldout`, unless `eval_set` names another, such as a task of a mixture. Files in `out`:


    fits.csv       one row per run, by least squares: A, B, C_mid, R0, exact ceiling, held-out error
    summary.csv    one row per recipe or run and parameter; phase is (last fitted C) / C_mid
    forecast.csv   new evaluations: one row per held-out one, and on to `horizon` times the last
                   fitted C; extrapolation is C / (last fitted C)
    report.png     the curves
    report.html    the study as one page for a browser, see rlx.scaling.page

and with a posterior

    posterior.nc   for rlx.scaling.load
    check.json     convergence, share of the curve observed, departed runs, problems
    effects.csv    ceiling movers and efficiency shapers, if there are axes or several recipes
    ceilings.png, ridge.png, effects.png

In the .csv files a text that a spreadsheet would execute, such as =cmd(), is prefixed with an
apostrophe. A point fit has no intervals: its quantile columns other than the forecast are empty.
Bad input exits with status 2 and one line on stderr, `error: KEY=VALUE: reason; remedy`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

import rlx.scaling as sc
from experiments.options import read_options
from rlx.errors import InputError
from rlx.scaling import plot
from rlx.scaling.backtest import ORIGINS
from rlx.scaling.data import Evals, short_names
from rlx.scaling.families import FAMILIES
from rlx.scaling.page import report_page
from rlx.scaling.point_page import point_page
from rlx.scaling.run_fits import RunFit, fit_study
from rlx.scaling.source import Options, r0_column, some

CHOICES = {
    "curve": (*FAMILIES, "auto"),
    "noise": ("normal", "student", "betabinomial"),
    "method": ("nuts", "laplace", "point"),
}
OTHERS = ("two_rises", "dip")  # families that the check compares with that of the fit
GRID_POINTS = 8  # of the forecast beyond the data
WRITABLE = "give out=DIR, a directory with room that can be written"
EXECUTED = re.compile(r"[=@\t\r]|[+-](?![\d.]+$)")
REMEDIES = {"holdout": "give a number in [0, 1)", "axes": "write axes=[column,column]"}


@dataclass(frozen=True)
class _Data:
    data: str = ""  # study or run directory, or file, as for rlx.scaling.Evals.read


@dataclass(frozen=True)
class FitConfig(Options, _Data):
    """Options of the command: of reading data, and of the fit."""

    r0: str = "first"  # first, fit, a number in the unit of value, or a column
    method: str = "nuts"
    curve: str | None = None  # default burr; a point fit is a sigmoid
    noise: str = "normal"
    holdout: float = 0.5  # share of each run's compute that is held out and forecast
    horizon: float = 4.0  # of forecasts, relative to the last fitted compute
    origins: tuple[float, ...] = ORIGINS  # shares of compute from which report.html forecasts
    sampler_seed: int = 0
    out: str = "outputs/fit"


def parse(argv: list[str]) -> FitConfig:
    """The options as a frozen dataclass; unknown keys and wrong types raise InputError."""
    config = read_options(FitConfig, argv, REMEDIES)
    if not config.data:
        raise InputError("data", "", "nothing to fit", "give data=PATH, a directory or a file")
    if not config.out.strip():
        raise InputError("out", config.out, "not a directory name", "give out=DIR")
    for key, built in CHOICES.items():
        name = getattr(config, key)
        if name is not None and name not in built:
            raise InputError(key, name, "not available", f"use {key}={'|'.join(built)}")
    if config.method == "point" and config.curve not in (None, "sigmoid"):
        raise InputError(
            "curve", config.curve, "not a point fit", "use curve=sigmoid or method=nuts"
        )
    unread = ("noise", "sampler_seed") if config.method == "point" else ()
    for key in unread:
        if getattr(config, key) != getattr(FitConfig(), key):
            reason = "not read with method=point"
            raise InputError(key, getattr(config, key), reason, "leave it out, or use method=nuts")
    if not config.horizon > 1:
        raise InputError("horizon", config.horizon, "not beyond the data", "give C / C_max above 1")
    return config


def fits_table(fits: list[RunFit]) -> pd.DataFrame:
    """One row per run."""
    return pd.DataFrame(
        {
            "run": fit.run,
            "recipe": fit.recipe,
            "seed": fit.seed,
            **{p: getattr(fit.fit, p, np.nan) for p in ("A", "B", "C_mid", "R0")},
            "truth": fit.truth,
            "rmse_heldout": fit.rmse_heldout,
            "A_lo": fit.A_lo,
            "A_hi": fit.A_hi,
            "status": fit.status,
        }
        for fit in fits
    )


def summary_table(fits: list[RunFit]) -> pd.DataFrame:
    """One row per run and parameter; a point estimate is in the column `mean`."""
    return pd.DataFrame(
        {
            "level": "run",
            "name": fit.run,
            "param": param,
            "mean": getattr(fit.fit, param, np.nan),
            "q05": np.nan,
            "q50": np.nan,
            "q95": np.nan,
            "contraction": np.nan,
            "phase": fit.C_fit / fit.fit.C_mid if fit.fit else np.nan,
            "status": fit.status,
        }
        for fit in fits
        for param in ("A", "B", "C_mid", "R0")
    )


def forecast_table(frame: pd.DataFrame, fits: list[RunFit]) -> pd.DataFrame:
    """One row per held-out evaluation; the point forecast is in the column `q50`."""
    columns = ["run", "compute", "q05", "q50", "q95", "extrapolation", "observed"]
    parts = [pd.DataFrame(columns=columns)]
    for fit in fits:
        rows = frame[(frame["run"] == fit.run) & (frame["compute"] > fit.C_fit)]
        compute = rows["compute"].to_numpy()
        part = pd.DataFrame({"run": fit.run, "compute": compute, "q05": np.nan})
        part["q50"] = fit.fit.at(compute) if fit.fit else np.nan
        part["q95"] = np.nan
        part["extrapolation"] = compute / fit.C_fit if fit.C_fit else np.nan
        part["observed"] = rows["value"].to_numpy()
        parts.append(part)
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def run(
    data: Path | str | Evals,
    out: Path,
    *,
    holdout: float = 0.5,
    r0: float | str = "first",
    method: str = "nuts",
    curve: str | None = None,
    noise: str = "normal",
    horizon: float = 4.0,
    origins: Sequence[float] = ORIGINS,
    sampler_seed: int = 0,
    **options,
) -> pd.DataFrame:
    """Fit a study (or evaluations), print the results and write all files to `out`.

    Args:
        data: path of a study, run directory or log, or evaluations.
        out: directory of the results, created if missing.
        holdout, r0: as in rlx.scaling.run_fits.fit_study.
        method: "nuts", "laplace" or "point".
        curve, noise, sampler_seed: of rlx.scaling.fit (there: seed).
        horizon: of forecasts, relative to the last fitted compute.
        origins: shares of compute from which the page forecasts, one fit each; () for none.
        options: fields of rlx.scaling.source.Options, if `data` is a path.

    Returns:
        The table of point fits, one row per run.

    Raises:
        InputError: the data or an option cannot be used, or `out` cannot be written.
    """
    known = None if r0 in ("first", "fit") else r0
    source = None if isinstance(data, Evals) else data
    of_page = {"source": source, "horizon": horizon, **({"r0": known, **options} if source else {})}
    if not isinstance(data, Evals):
        data = Evals.read(data, r0=known, **options)
        known = r0_column(known)
    place = next(path for path in (out, *out.parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise InputError("out", out, "cannot be written", WRITABLE)
    fits = fit_study(data.frame, holdout=holdout, r0=r0 if known is None else known)
    table = fits_table(fits)
    print(_printed(table))
    if r0 == "first" and (line := late_starts(data.frame)):
        print(line)
    if method == "point":
        start = r0 if known is None else known
        written = _points(data, fits, out, holdout, start, origins, of_page)
    else:
        fitted = {"curve": curve or "burr", "noise": noise, "r0": known, "seed": sampler_seed}
        written = _posterior(data, out, holdout, origins, of_page, {"method": method, **fitted})
    with _writing(out):
        write_csv(table, out / "fits.csv")
    print(f"wrote fits.csv, {written} in {out}")
    return table


def _points(data: Evals, fits, out: Path, holdout: float, start, origins, of_page) -> str:
    """Write what only point fits need; the names of the files."""
    with _writing(out):
        write_csv(summary_table(fits), out / "summary.csv")
        write_csv(forecast_table(data.frame, fits), out / "forecast.csv")
        plot.points(data, fits, holdout=holdout).savefig(out / "report.png")
        windows = {1 - holdout: fits}
        for share in {*origins, *([1.0] if origins else [])} - {1 - holdout}:
            of_share = {"holdout": 1 - share, "r0": start, "intervals": False}
            windows[share] = fit_study(data.frame, **of_share)
        point_page(windows, 1 - holdout, out / "report.html", data=data, **of_page)
    return "summary.csv, forecast.csv, report.png, report.html"


def _posterior(data: Evals, out: Path, holdout: float, origins, of_page, of_fit) -> str:
    """Fit the posterior and write what it says; the names of the files."""
    seen = data.until(share=1 - holdout) if holdout else data
    data = data.select(seen.runs)
    posterior = sc.fit(seen, progress=True, **of_fit)
    later = data.after(share=1 - holdout) if holdout else None
    of_page = {"data": data, "shares": origins, **of_page}
    with _writing(out):
        check = posterior.check(OTHERS)
        written = write_posterior(posterior, check, later, out, of_page["horizon"])
        report_page(posterior, out / "report.html", check=check, **of_page)
    return f"{written}, report.html"


@contextlib.contextmanager
def _writing(out: Path):
    """Creates `out`; turns an OSError inside into an InputError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError("out", out, error.strerror or error, WRITABLE) from error


def write_csv(table: pd.DataFrame, file: Path) -> None:
    """Prefix texts that a spreadsheet would execute, such as =cmd(), with an apostrophe."""
    table.map(
        lambda cell: f"'{cell}" if isinstance(cell, str) and EXECUTED.match(cell) else cell
    ).to_csv(file, index=False)


def write_posterior(
    posterior: sc.ScalingFit, check: sc.Check, later: Evals | None, out: Path, horizon: float
) -> str:
    """Write all files of a posterior and print its summary; returns the names of the files."""
    posterior.save(out / "posterior.nc")
    (out / "check.json").write_text(json.dumps(check.as_dict(), indent=1) + "\n")
    posterior = posterior.unsafe()  # check.json and status say whether it converged
    recipes, runs = posterior.summary("recipe"), posterior.summary("run")
    summary = pd.concat([recipes, runs], ignore_index=True)
    write_csv(summary, out / "summary.csv")
    write_csv(posterior_forecast(posterior, later, horizon), out / "forecast.csv")
    figures = {
        "report": plot.curves(posterior, held_out=later, horizon=horizon),
        "ceilings": plot.ceilings(posterior),
        "ridge": plot.ridge(posterior),
    }
    effects = [posterior.effects(axis) for axis in posterior.axes]
    if effects:
        write_csv(pd.concat(effects, ignore_index=True), out / "effects.csv")
        figures["effects"] = plot.effects(effects)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
    ceilings = recipes[recipes["param"] == "A"].drop(columns=["level", "param"])
    print(f"\n{posterior}\nceilings ({plot.CEILING}):")
    print(ceilings.to_string(index=False, float_format="{:.3f}".format))
    for table in effects:
        shown = ["axis", "level", "reference", "dA_q05", "dA_q95", "compute_ratio_q05"]
        shown += ["compute_ratio_q95", "verdict"]
        print("\n" + table[shown].to_string(index=False, float_format="{:.3f}".format))
    print("\n".join(["", *check.problems]))
    tables = ["summary", "forecast", *(["effects"] if effects else [])]
    names = ["posterior.nc", "check.json", *(f"{name}.csv" for name in tables)]
    return ", ".join([*names, *(f"{name}.png" for name in figures)])


def posterior_forecast(
    posterior: sc.ScalingFit, later: Evals | None, horizon: float
) -> pd.DataFrame:
    """Predictive quantiles of new evaluations: the held-out ones, and further to the horizon."""
    last = dict(zip(posterior.runs, posterior.last_compute("run"), strict=True))
    parts = []
    for run in posterior.runs:
        held = later.frame[later.frame["run"] == run] if later is not None else None
        compute = held["compute"].to_numpy() if held is not None else np.zeros(0)
        stderr = held["stderr"].to_numpy() if held is not None else np.zeros(0)
        observed = held["value"].to_numpy() if held is not None else np.zeros(0)
        beyond = np.geomspace(last[run], horizon * last[run], GRID_POINTS + 1)[1:]
        beyond = beyond[beyond > compute.max(initial=0.0)]
        part = pd.DataFrame({"run": run, "compute": np.r_[compute, beyond]})
        noise = np.r_[stderr, np.full(len(beyond), np.nan)]
        index = posterior.runs.index(run)
        drawn, _, _ = posterior.predictive([part["compute"].to_numpy()], [noise], [index])
        for name, p in (("q05", 0.05), ("q50", 0.5), ("q95", 0.95)):
            part[name] = np.quantile(drawn, p, axis=0)
        part["extrapolation"] = part["compute"] / last[run]
        part["observed"] = np.r_[observed, np.full(len(beyond), np.nan)]
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def late_starts(frame: pd.DataFrame) -> str:
    """A line about runs without an evaluation at C = 0 under r0=first; "" if there are none."""
    by_run = frame.groupby("run", sort=False)["compute"]
    share = by_run.min() / by_run.max()
    late = share[share > 0]
    if late.empty:
        return ""
    return (
        f"r0=first: R0 of {some(late.index, most=3)} is an evaluation at C > 0 (up to "
        f"{late.max():.2g} of the last C); if the curve rises before it, A in fits.csv is too low: "
        "give r0=VALUE, or r0=fit"
    )


def _printed(table: pd.DataFrame) -> str:
    """The table of fits for a terminal: short names, three or four digits."""
    names = short_names(list(table["run"]))
    shown = table.assign(run=table["run"].map(names)).drop(columns=["recipe", "seed"])
    digits = {"A": ".3f", "B": ".2f", "C_mid": "#.3g", "R0": ".3f", "truth": ".3f"}
    digits["rmse_heldout"] = ".4f"
    formats = {key: f"{{:{form}}}".format for key, form in digits.items()}
    return shown.to_string(index=False, formatters=formats, na_rep="-", justify="right")


def main(argv: list[str] | None = None) -> int:
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        options = {option.name: getattr(config, option.name) for option in fields(config)}
        if config.method != "point":
            from rlx import compilation  # imports JAX

            compilation.keep_programs()
        run(options.pop("data"), Path(options.pop("out")), **options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
