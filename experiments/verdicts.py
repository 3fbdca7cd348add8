"""How often does `effects` call equal recipes different? Simulated studies, fitted and judged.

    python -m experiments.verdicts studies=20 method=laplace out=DIR

A study is a well-specified one of `experiments.calibration`, with 4 recipes whose ceiling, C_mid
and B are the same; their seeds differ. Designs vary the seeds (1 to 5), the evaluations of a run,
and how much is seen: C_max of 0.3, 1.5, 4 and 12 where C_mid has median 3. Three recipes are
compared with the first. Each comparison becomes one line of `out/comparisons-METHOD.csv`, written
study by study, so the same command continues an interrupted one.

`out/verdicts.csv` has one row per method and design, and one over all designs:

    comparisons      their number
    undecided, neither   shares of these verdicts; neither is right
    wrong, wrong_se  share of "ceiling mover", "efficiency shaper" and "both"; its standard error
                     over studies
    magnitude        the same for a rule that needs P(|difference| > margin) >= 0.9, no direction
    sure             share in which P(A is higher than the first's) is below 0.1 or above 0.9; it
                     should be 0.2 at most
    curve_sure       the same for the asymptotes of the curves, without the doubt
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

import rlx.scaling as sc
from experiments.calibration import Size, clustered, simulate_size
from experiments.options import exit_status, read_options
from rlx.errors import InputError

RECIPES = 4
DESIGNS = [
    (Size(RECIPES, seeds, points), C_max)
    for seeds, points, C_max in [
        *product((1, 3, 5), (6, 20), (1.5, 4.0)),
        *[(1, 6, 0.3), (3, 20, 0.3), (3, 20, 12.0)],
    ]
]
DESIGN = ["seeds", "points", "C_max"]
WRONG = ("ceiling mover", "efficiency shaper", "both")
DECIDE = 0.9
PAD_TO = 24  # at least the length of the longest runs, so that programs are compiled once


@dataclass(frozen=True)
class Options:
    studies: int = 20  # of each design; 0 summarises what is recorded
    method: str = "laplace"
    out: Path = Path("outputs/verdicts")


def comparisons(size: Size, C_max: float, seed: int, method: str) -> pd.DataFrame:
    """A study of equal recipes: one row per comparison of a recipe with the first."""
    evals, _ = simulate_size("well", seed, size, C_max, equal=True)
    fit = sc.fit(evals, method=method, pad_to=PAD_TO)
    table = fit.unsafe().effects("recipe", decide=DECIDE)
    for name, posterior in (("p_above", fit), ("p_curve_above", fit.with_doubt(None))):
        A = posterior.unsafe().param("A", by="recipe")
        above = [float((A.sel(recipe=x) > A.isel(recipe=0)).mean()) for x in table["level"]]
        table[name] = above
    columns = [name for name in table if name.startswith("p_")]
    table = table[["level", "verdict", "prior_share", *columns]]
    table.insert(0, "study", seed)
    for name, value in zip(DESIGN, (size.seeds, size.points, C_max), strict=True):
        table.insert(0, name, value)
    return table.assign(converged=method == "laplace" or fit.converged)


def by_magnitude(table: pd.DataFrame) -> pd.Series:
    """Would a rule without directions have given a verdict?"""
    shapes = table[["p_efficiency", "p_pace"]].min(axis=1)
    return (table["p_ceiling"] >= DECIDE) | (shapes >= DECIDE)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """One row per design and one over all; see the module's docstring."""
    rows = []
    for part in [*(part for _, part in table.groupby(DESIGN)), table]:
        study = part[DESIGN].astype(str).agg("-".join, axis=1) + "-" + part["study"].astype(str)
        row: dict[str, object] = dict.fromkeys(DESIGN, "all")
        if part is not table:
            row = {name: part[name].iloc[0] for name in DESIGN}
        row["comparisons"] = len(part)
        row |= {v: (part["verdict"] == v).mean() for v in ("undecided", "neither")}
        row["wrong"], row["wrong_se"] = clustered(part["verdict"].isin(WRONG), study)
        row["magnitude"] = by_magnitude(part).mean()
        for name, p in (("sure", "p_above"), ("curve_sure", "p_curve_above")):
            row[name] = ((part[p] < 1 - DECIDE) | (part[p] > DECIDE)).mean()
        rows.append(row)
    return pd.DataFrame(rows)


def main(argv: Sequence[str]) -> None:
    options = read_options(Options, argv)
    if options.method not in ("laplace", "nuts"):
        raise InputError("method", options.method, "not available", "use method=laplace|nuts")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"comparisons-{options.method}.csv"
    done = pd.read_csv(path)[[*DESIGN, "study"]].to_numpy() if path.exists() else np.zeros((0, 4))
    known = set(map(tuple, done))
    jobs = [
        (seed, design)
        for seed, design in product(range(options.studies), DESIGNS)
        if (design[0].seeds, design[0].points, design[1], seed) not in known
    ]
    for seed, (size, C_max) in tqdm(jobs, unit="study"):
        table = comparisons(size, C_max, seed, options.method).round(4)
        table.to_csv(path, mode="a", header=not path.exists(), index=False)
    tables = {p.stem.rpartition("-")[2]: p for p in sorted(options.out.glob("comparisons-*.csv"))}
    if not tables:
        raise InputError("out", options.out, "holds no comparisons", "give studies=1 or more")
    parts = [summarise(pd.read_csv(p)).assign(method=name) for name, p in tables.items()]
    table = pd.concat(parts, ignore_index=True)
    table.insert(0, "method", table.pop("method"))
    table.to_csv(options.out / "verdicts.csv", index=False, float_format="%.4g")
    print(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    sys.exit(exit_status(main))
