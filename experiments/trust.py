"""Do trusted forecasts have their coverage? Backtests compared with forecasts of what came later.

    python -m experiments.trust [data=../shared/data] [studies=12] [out=DIR]

Every available set of curves (experiments.scored) is fitted by Laplace's method up to each of CUTS
of each run's compute, and simulated studies of every kind up to each of SIMULATED; all later
evaluations are forecast. At each cut, called `share` in the tables, the backtest is made of the
forecasts from earlier cuts, of evaluations up to that share. It gives a verdict per band of
horizons, which is compared with the forecasts from that share.

One line per set and cut goes to `out/cuts.jsonl`, so the same command continues an interrupted one.
`verdicts.csv` has one row per set, share and band: the verdict, its evidence, and `later`, the
coverage of the forecasts from that share, in which every run has the same weight. `trust.csv` has
the means of `later` by verdict.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.calibration import HORIZONS, TRIALS, VARIANTS, Truth, simulate
from experiments.options import exit_status, read_options
from experiments.scored import ROOT, Curves, others, own_studies
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.scaling.backtest import LEAST, ORIGINS, Backtest, score, usable_origins, with_first
from rlx.scaling.data import Evals
from rlx.scaling.draws import Draws
from rlx.scaling.infer import posterior_of

CUTS = (0.09, 0.125, 0.18, 0.25, 0.35, 0.5, 0.7)  # of each run's compute
SIMULATED = (0.25, 0.5, 0.7, 1.0)  # of a simulated study; from 1.0, forecasts beyond its end
FIRST_ORIGIN = min(ORIGINS)  # of the compute seen
ROUNDING = 1.0001  # computes in NAME are rounded
NAME = "cuts.jsonl"


@dataclass(frozen=True)
class Options:
    studies: int = 12  # of each simulated kind
    data: Path = Path("../shared/data")  # external training curves
    out: Path = Path("outputs/trust")


def jobs(options: Options) -> Iterator[tuple[Curves, Truth | None]]:
    """Sets of curves and simulated studies, alternately."""
    measured = [*own_studies(ROOT / "analysis/results"), *others(options.data, ROOT / "tests/data")]
    for seed in range(max(options.studies, len(measured))):
        if seed < len(measured):
            yield measured[seed], None
        if seed < options.studies:
            for variant in VARIANTS:
                evals, truth = simulate(variant, seed)
                group = f"simulated {variant}"
                yield Curves(f"{variant} {seed}", group, lambda evals=evals: evals), truth


def after_all(evals: Evals, truth: Truth) -> Evals:
    """A further evaluation of every run of a simulated study at each of HORIZONS."""
    last = evals.frame.groupby("run", sort=False).tail(1).set_index("run").loc[truth.runs]
    parts = []
    for h, value_R in zip(HORIZONS, truth.fresh_RH.T, strict=True):
        stderr = np.sqrt(value_R * (1 - value_R) / TRIALS)
        new = {"compute": h * truth.C_max, "value": value_R, "stderr": stderr}
        parts.append(last.assign(**new).reset_index())
    return Evals(pd.concat(parts, ignore_index=True), axes=evals.axes)


def forecasts(seen: Evals, later: Evals, longest: int) -> dict[str, list]:
    """Columns of all later evaluations: run, compute, horizon, band, inside."""
    posterior = Draws(posterior_of(seen, method="laplace", pad_to=longest), unsafe=True)
    points = score(posterior, later)
    if points.empty:
        return {}
    return points[["run", "compute", "horizon", "band", "inside"]].round(4).to_dict("list")


def work(options: Options) -> None:
    """Write one line per set and cut that has none yet."""
    log, path = RunRecord(options.out), options.out / NAME
    if path.exists():
        log.truncate({NAME: path.read_bytes().rfind(b"\n") + 1})  # a line cut short
    done = {(row["set"], row["cut"]) for row in read_rows(path)}
    for curves, truth in jobs(options):
        cuts = [c for c in (SIMULATED if truth else CUTS) if (curves.name, c) not in done]
        if not cuts:
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                evals = curves.read()
        except (InputError, FileNotFoundError) as error:
            print(f"{curves.name}: left out, {error}")
            continue
        longest = int(evals.frame.groupby("run").size().max())
        last = evals.frame.groupby("run")["compute"].max().to_dict()
        usable = usable_origins(evals, cuts)
        for cut in cuts:
            found = {}
            if cut in usable:
                with contextlib.redirect_stdout(io.StringIO()):
                    if cut < 1:
                        seen, later = (
                            with_first(evals, cut),
                            evals.after(share=cut),
                        )
                    else:
                        seen, later = evals, after_all(evals, truth)
                    found = forecasts(seen, later, longest)
            labels = {"set": curves.name, "group": curves.group, "cut": cut, "last": last}
            log.append(NAME, labels | {"points": found})
        print(curves.name, flush=True)


def verdicts(rows: list[dict]) -> pd.DataFrame:
    """One row per set, share and band; see the module's docstring."""
    out = []
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        cuts = {row["cut"]: pd.DataFrame(row["points"]) for row in mine if row["points"]}
        for share, came in cuts.items():
            past = []
            for cut, points in cuts.items():
                seen = points["compute"] <= points["run"].map(mine[0]["last"]) * share * ROUNDING
                if FIRST_ORIGIN * share <= cut < share and seen.any():
                    past.append(points[seen].assign(curve="burr", origin=cut / share))
            if not past:
                continue
            evidence = Backtest(pd.concat(past, ignore_index=True)).evidence().set_index("horizon")
            later = came.groupby(["band", "run"])["inside"].mean().groupby("band").mean()
            table = evidence.join(later.rename("later"), how="inner").reset_index()
            for label, value in (("share", share), ("set", name), ("group", mine[0]["group"])):
                table.insert(0, label, value)
            out.append(table)
    return pd.concat(out, ignore_index=True)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """By kind of set (simulated or measured), band and verdict: cases, sets, mean of `later`, and
    share of cases in which it is below LEAST."""
    table = table.assign(
        sets=np.where(table["group"].str.startswith("simulated"), "simulated", "measured"),
        low=table["later"] < LEAST,
    )
    by = ["sets", "horizon", "verdict"]
    parts = [table, table.assign(horizon="all")]
    return pd.concat(
        part.groupby(by).agg(
            cases=("later", "size"), of_sets=("set", "nunique"), later=("later", "mean"),
            low=("low", "mean"),
        )
        for part in parts
    ).reset_index()  # fmt: skip


def main(argv: Sequence[str]) -> None:
    options = read_options(Options, argv)
    work(options)
    table = verdicts(read_rows(options.out / NAME))
    table.to_csv(options.out / "verdicts.csv", index=False, float_format="%.3g")
    means = summary(table)
    means.to_csv(options.out / "trust.csv", index=False, float_format="%.3g")
    print(means.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    sys.exit(exit_status(main))
