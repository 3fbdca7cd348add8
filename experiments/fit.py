"""Fit scaling curves of a study, or of anybody's log, and forecast their held-out part.

    python -m experiments.fit data=PATH out=DIR holdout=0.5

`data` is a study or run directory, a .csv/.jsonl/.parquet file with one evaluation per row, a CSV
exported from a W&B chart, a directory of TensorBoard event files, or a trainer_state.json. Every
run is fitted on C <= (1 - holdout) * C_max; holdout=0 fits everything. Into `out` go

    fits.csv      one row per run: A, B, C_mid, R0, the exact ceiling, the held-out error
    summary.csv   one row per run and parameter; phase is (last fitted C) / C_mid
    forecast.csv  one row per held-out evaluation; extrapolation is C / (last fitted C)
    report.png    the curves

A point fit has no intervals, so the quantile columns other than the forecast itself are empty.
Bad input ends with exit code 2 and one line on stderr, `error: KEY=VALUE: reason; remedy`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from analysis.figures import report
from rlx.scaling.data import DataError, Evals, r0_column, short_names
from rlx.scaling.point import RunFit, fit_study

CURVES = ("sigmoid",)
METHODS = ("point",)
REMEDIES = {"holdout": "give a number in [0, 1)", "axes": "write axes=[column,column]"}


@dataclass(frozen=True)
class FitConfig:
    data: str = ""  # study or run directory, .csv, .jsonl or .parquet
    run: str | None = None  # columns of a file; inferred from their names when left out
    recipe: str | None = None
    seed: str | None = None
    axes: list[str] = field(default_factory=list)
    compute: str | None = None  # of a directory: a number of evals.jsonl, modelled_device_s, wall_s
    value: str | None = None
    passes: str | None = None
    trials: str | None = None  # a column or a number, as stderr
    passes_per_prompt: str | None = None
    stderr: str | None = None
    start: str | None = None
    scale: str | None = None  # unit of value: fraction or percent; inferred when left out
    r0: str = "first"  # first, fit, a number in the unit of value, or a column
    curve: str = "sigmoid"
    method: str = "point"
    holdout: float = 0.5  # share of each run's compute that is forecast, not fitted
    out: str = "outputs/fit"


def parse(argv: list[str]) -> FitConfig:
    """The options as a frozen dataclass; unknown keys and wrong types raise DataError."""
    options = OmegaConf.structured(FitConfig)
    OmegaConf.set_readonly(options, False)  # a frozen dataclass makes a read-only node
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in FitConfig.__dataclass_fields__:
            names = ", ".join(FitConfig.__dataclass_fields__)
            raise DataError(key, value, "unknown option", f"write KEY=VALUE with one of {names}")
        try:
            options = OmegaConf.merge(options, OmegaConf.from_cli([word]))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(key, value, reason, REMEDIES.get(key, "quote it")) from error
    config = OmegaConf.to_object(options)
    assert isinstance(config, FitConfig)
    if not config.data:
        raise DataError("data", "", "nothing to fit", "give data=PATH, a directory or a file")
    for key, name, built in (("curve", config.curve, CURVES), ("method", config.method, METHODS)):
        if name not in built:
            raise DataError(key, name, "not available", f"use {key}={'|'.join(built)}")
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
            "status": fit.status,
        }
        for fit in fits
    )


def summary_table(fits: list[RunFit]) -> pd.DataFrame:
    """One row per run and parameter; a point estimate stands under `mean`."""
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
    """One row per held-out evaluation; the point forecast stands under `q50`."""
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


def write(
    frame: pd.DataFrame, fits: list[RunFit], out: Path, *, holdout: float, title: str = ""
) -> None:
    """fits.csv, summary.csv, forecast.csv and report.png in `out`, which is made if missing."""
    out.mkdir(parents=True, exist_ok=True)
    fits_table(fits).to_csv(out / "fits.csv", index=False)
    summary_table(fits).to_csv(out / "summary.csv", index=False)
    forecast_table(frame, fits).to_csv(out / "forecast.csv", index=False)
    report(frame, fits, out / "report.png", holdout=holdout, title=title)


def run(
    data: Path | Evals,
    out: Path,
    *,
    holdout: float = 0.5,
    r0: float | str = "first",
    compute: str = "compute",
) -> pd.DataFrame:
    """Fit a study directory (or any Evals), print the table of fits and write all files.

    Args:
        data: path of a study or run directory, or Evals.
        out: directory of the results.
        holdout, r0: as in rlx.scaling.point.fit_study.
        compute: column of compute, where `data` is a path.

    Returns:
        The table of fits, one row per run.

    Raises:
        DataError: the data or an option cannot be used.
    """
    evals = data if isinstance(data, Evals) else Evals.read(data, compute=compute)
    frame = evals.frame.copy()
    frame.attrs = {"compute_label": evals.compute_label, "value_label": evals.value_label}
    fits = fit_study(frame, holdout=holdout, r0=r0)
    write(frame, fits, Path(out), holdout=holdout, title=evals.title)
    table = fits_table(fits)
    print(_printed(table))
    print(f"wrote fits.csv, summary.csv, forecast.csv, report.png in {out}")
    return table


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
        r0 = None if config.r0 in ("first", "fit") else config.r0
        evals = Evals.read(
            config.data,
            run=config.run,
            recipe=config.recipe,
            seed=config.seed,
            axes=config.axes,
            compute=config.compute,
            value=config.value,
            passes=config.passes,
            trials=config.trials,
            passes_per_prompt=config.passes_per_prompt,
            stderr=config.stderr,
            start=config.start,
            scale=config.scale,
            r0=r0,
        )
        run(evals, Path(config.out), holdout=config.holdout, r0=r0_column(r0) or config.r0)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
