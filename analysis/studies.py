"""Fits of our studies of arXiv 2510.13786, their tables, and verdicts on the paper's claims.

    python -m analysis.studies [study=all|recipes|loo|efficiency_shapers|ceiling_movers]
                               [runs=analysis/results/studies/evals] [method=laplace|nuts]
                               [compute=compute|modelled_device_s|tokens_generated]
                               [out=analysis/results/studies]

`runs` holds, for each study, a directory of runs (from `python -m experiments.study sweep=NAME`) or
a table of its evaluations, NAME.csv, such as those committed here. Each study is fitted once, on
all of its evaluations. What figures and claims need from the posterior is written as tables of 5,
50 and 95 % quantiles, which `python -m analysis.all` draws. Into `out` go

    fits.csv          a row per study: method, diagnostics, digest of the data
    curves.csv        the typical seed's pass rate against compute; for loo also each run's
    parameters.csv    A (pass rate at 10 times the compute seen), asymptote, B, B_tail, C_mid, R0
    effects.csv       each level against its reference, as in fit.effects; column ceiling: horizon,
                      or asymptote (from fit.with_doubt(None))
    verdicts_at_horizon.csv, verdicts.csv    a row per claim, with A at the horizon, or asymptotes
    evals/NAME.csv, entropy.csv              only if `runs` holds directories

A row gives the posterior probability of a claim, the verdict, and the smallest effect that the
study would have detected. "reproduced" needs probability 0.9 for the claim, "contradicted" 0.9 for
its opposite; otherwise, for instance if the posterior is wide, the verdict is "cannot tell". The
models have 100,000 parameters and add digits: only the order of recipes can be compared with the
paper's. Laplace's approximation takes a minute per study, NUTS up to an hour. Bad options end with
exit code 2 and one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

import rlx.scaling as sc
from analysis.drawing import COMPUTE
from experiments.options import check_choices, exit_status, read_options
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.record import runs as run_directories
from rlx.scaling import Evals, ScalingFit
from rlx.scaling.data import COLUMNS

DETECTED = 2.8  # an effect of 2.8 standard errors is found in 80 % of studies (5 %, two-sided)
STUDIES = ("recipes", "loo", "efficiency_shapers", "ceiling_movers")
RESULTS = Path(__file__).parent / "results" / "studies"
GRID_POINTS = 60  # of a curve
QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
SMOOTHED = 10  # updates averaged in an entropy


@dataclass(frozen=True)
class Options:
    study: str = "all"
    runs: Path = RESULTS / "evals"
    method: str = "laplace"
    compute: str = "compute"
    out: Path = RESULTS


# The paper's claims about a level against a reference; the event of each in `fit.effects`.
CLAIMS = Path(__file__).parent / "claims.csv"
EVENTS: dict[str, Callable[[pd.Series], tuple[float, float]]] = {  # P(claim), P(its contrary)
    "same A": lambda row: (1 - row["p_ceiling"], max(row["p_raises"], row["p_lowers"])),
    "higher A": lambda row: (row["p_raises"], 1 - row["p_raises"]),
    "lower A": lambda row: (row["p_lowers"], 1 - row["p_lowers"]),
    "no higher A": lambda row: (1 - row["p_raises"], row["p_raises"]),
    "more compute": lambda row: (row["p_dearer"], 1 - row["p_dearer"] - row["p_uncompared"]),
    "more compute to 80 %": lambda row: (row["p_later"], 1 - row["p_later"]),
}
DECIDE = 0.9


# Today's names of the cells of committed evaluations: recipe and ablation.
NAMES = Path(__file__).parent / "names.csv"
AXES = {
    "learning_rate": "optim.learning_rate",
    "max_new_tokens": "rollout.max_new_tokens",
    "prompts_per_step": "rollout.prompts_per_step",
}


def renamed(evals: pd.DataFrame) -> pd.DataFrame:
    """Evaluations with today's names; before 2026-11-26 every ablation was a recipe."""
    today = pd.read_csv(NAMES, dtype=str, keep_default_na=False).set_index("before")
    known = evals["recipe"].isin(today.index)
    level = evals["recipe"].map(today["ablation"]).fillna("none")
    recipe = evals["recipe"].map(today["recipe"]).where(known, evals["recipe"])
    evals = evals.assign(recipe=recipe, ablation=level)
    if "d_model" in evals:
        model = evals["d_model"].map({32: "mini", 64: "tiny"})
        evals = evals.drop(columns="d_model").assign(model=model)
    return evals.rename(columns=AXES)


# ------------------------------------------------------------------ evaluations


def read(study: str, runs: Path, compute: str) -> Evals:
    """Evaluations of a study, from its runs or from a table."""
    if run_directories(runs / study):
        return Evals.read(runs / study, compute=compute)
    table = runs / f"{study}.csv"
    if not table.exists():
        remedy = f"python -m experiments.study sweep={study} out={runs / study}"
        raise InputError("runs", runs / study, "no runs of this study", remedy)
    return read_table(table, compute)


def read_table(table: Path, compute: str) -> Evals:
    """The evaluations of a study as they are committed: columns of `Evals`, and one per axis."""
    rows = renamed(pd.read_csv(table))
    axes = [name for name in rows if name not in COLUMNS]
    evals = Evals.from_frame(rows, compute=compute, axes=axes, start="start")
    label = COMPUTE if compute == "compute" else compute
    return replace(evals, compute_label=label, title=table.stem)


def entropies(study: Path) -> pd.DataFrame:
    """Entropy of the policy of each run of a study, nats per token, mean of SMOOTHED updates."""
    parts = []
    for path in run_directories(study):
        manifest = RunRecord(path).manifest
        entropy = pd.Series([row["policy/entropy"] for row in read_rows(path / "metrics.jsonl")])
        smooth = entropy.rolling(SMOOTHED, min_periods=1).mean()[::SMOOTHED]
        levels = {axis: str(level) for axis, level in manifest["axes"].items()}
        table = pd.DataFrame({"run": path.name, "update": smooth.index, "entropy": smooth})
        parts.append(table.assign(seed=manifest["seed"], **levels))
    return pd.concat(parts, ignore_index=True)


# ------------------------------------------------------------------ tables


def tables(study: str, fit: ScalingFit) -> dict[str, pd.DataFrame]:
    """The tables that are kept of a posterior, by file."""
    attrs = fit.attrs
    kept = ("curve", "method", "rhat", "ess", "divergences", "data_sha256")
    of_fit = {name: attrs[name] for name in kept} | {"compute_label": fit.evals.compute_label}
    summaries = [fit.summary("recipe"), *([fit.summary("run")] if study == "loo" else [])]
    by = ["recipe", *(["run"] if study == "loo" else [])]
    found = {
        "fits": pd.DataFrame([of_fit | {"value_label": fit.evals.value_label}]),
        "curves": pd.concat([curves(fit, level) for level in by], ignore_index=True),
        "parameters": pd.concat(summaries, ignore_index=True),
        "effects": effects(study, fit),
    }
    return {name: table.assign(study=study) for name, table in found.items()}


def curves(fit: ScalingFit, by: str) -> pd.DataFrame:
    """Quantiles of the pass rate over the compute that each recipe or run has seen."""
    parts = []
    first = fit.evals.frame.query("compute > 0")["compute"].min()
    for name, last in zip(fit.names(by), fit.last_compute(by), strict=True):
        compute = np.geomspace(first, last, GRID_POINTS)
        drawn = fit.curve(compute, by).sel({by: name}).values.reshape(-1, GRID_POINTS)
        band = dict(zip(QUANTILES, np.quantile(drawn, list(QUANTILES.values()), 0), strict=True))
        parts.append(pd.DataFrame({"level": by, "name": name, "compute": compute} | band))
    return pd.concat(parts, ignore_index=True)


def effects(study: str, fit: ScalingFit) -> pd.DataFrame:
    """For each axis and reference of the study's claims, the effects of all levels."""
    claims = pd.read_csv(CLAIMS, dtype=str)
    asked = claims.loc[claims["study"] == study, ["axis", "reference"]].drop_duplicates()
    parts = []
    for ceiling, asked_fit in (("horizon", fit), ("asymptote", fit.with_doubt(None))):
        for axis, reference in asked.itertuples(index=False):
            part = asked_fit.effects(axis, reference=reference)
            parts.append(part.assign(ceiling=ceiling, level=part["level"].astype(str)))
    return pd.concat(parts, ignore_index=True)


def verdicts(effects: pd.DataFrame) -> pd.DataFrame:
    """One row per claim: its probability, the effect, and the smallest that would be detected.

    effects: tables of `effects` with a column study, for one kind of ceiling.
    """
    keys = ["study", "axis", "reference", "level"]
    of_claim = effects.astype({key: str for key in keys}).set_index(keys).sort_index()
    rows = []
    for claim in pd.read_csv(CLAIMS, dtype=str).itertuples():
        row = of_claim.loc[tuple(getattr(claim, key) for key in keys)]
        probability, contrary = EVENTS[claim.event](row)
        sd_A = (row["dA_q95"] - row["dA_q05"]) / 3.29  # quantiles of a normal
        sd_log_C = np.log(row["compute_ratio_q95"] / row["compute_ratio_q05"]) / 3.29
        shown = {
            f"{name}{q}": row[f"{name}_{quantile}"]
            for name in ("dA", "compute_ratio")
            for q, quantile in (("", "q50"), ("_q05", "q05"), ("_q95", "q95"))
        }
        rows.append(
            {
                "claim": claim.claim,
                "figure": claim.figure,
                "study": claim.study,
                "event": claim.event,
                "probability": probability,
                "verdict": "reproduced"
                if probability >= DECIDE
                else "contradicted"
                if contrary >= DECIDE
                else "cannot tell",
                **shown,
                "smallest_dA": DETECTED * sd_A,
                "smallest_ratio": np.exp(DETECTED * sd_log_C),
            }
        )
    return pd.DataFrame(rows)


def replaced(path: Path, table: pd.DataFrame) -> None:
    """Write `table` to `path` in place of the old rows of its studies; other rows stay."""
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old[~old["study"].isin(table["study"])], table], ignore_index=True)
    order = {study: i for i, study in enumerate(STUDIES)}
    table = table.sort_values("study", key=lambda s: s.map(order), kind="stable")
    table = table[["study", *table.columns.drop("study")]]
    table.to_csv(path, index=False, float_format="%.5g")


# ------------------------------------------------------------------ command


def main(argv: Sequence[str]) -> None:
    """Write the tables. InputError on bad options, missing runs."""
    options = read_options(Options, argv)
    check_choices(options, {"study": (*STUDIES, "all"), "method": ("laplace", "nuts")})
    out = options.out
    for study in STUDIES if options.study == "all" else (options.study,):
        evals = read(study, options.runs, options.compute)
        (out / "evals").mkdir(parents=True, exist_ok=True)
        if run_directories(options.runs / study):
            evals.frame.to_csv(out / "evals" / f"{study}.csv", index=False)
            if study == "ceiling_movers":
                table = entropies(options.runs / study)
                table.to_csv(out / "entropy.csv", index=False, float_format="%.4g")
        fit = sc.fit(evals, method=options.method, progress=True).unsafe()
        for name, table in tables(study, fit).items():
            replaced(out / f"{name}.csv", table)
        print(f"{study}: {fit}")
    write_verdicts(out)


def write_verdicts(out: Path) -> None:
    """Write both tables of verdicts, if every study has its effects."""
    table = pd.read_csv(out / "effects.csv")
    lost = [study for study in STUDIES if study not in set(table["study"])]
    if lost:
        print(f"verdicts: not written, {', '.join(lost)} not fitted yet")
        return
    for ceiling, name in (("horizon", "verdicts_at_horizon"), ("asymptote", "verdicts")):
        found = verdicts(table[table["ceiling"] == ceiling])
        found.to_csv(out / f"{name}.csv", index=False, float_format="%.4f")
        shown = ["claim", "probability", "verdict", "dA", "compute_ratio", "smallest_dA"]
        print(f"{name}.csv\n{found[shown].round(3).to_string(index=False)}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
