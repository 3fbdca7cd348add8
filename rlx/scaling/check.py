"""Whether a fit can be believed: the sampler, the prior's share, runs that left their curve, and
the residuals of the fitted evaluations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlx.scaling.draws import MAX_RHAT, MIN_BFMI, MIN_ESS, Draws
from rlx.scaling.fate import LAST, fallen, has_risen
from rlx.scaling.infer import best_curve, evidence
from rlx.scaling.parameters import gained, prior_share
from rlx.scaling.residuals import far_from_prior, residual_tests

NEAR_START = 0.1  # share of a run's last compute up to which its first evaluation tells R0
ALPHA = 0.05  # share of studies with a finding in the residuals if the model is right
COMPARE = "compare curves with sc.evidence, and forecast no farther than trust()"


@dataclass(frozen=True)
class Check:
    """Problems of a fit, and the tables that show them. `ok`: there are none.

    sampler: value and bound of every diagnostic of the sampler.
    runs: one row per run: seen, the share of the gain made so far with its interval; past_C_mid,
        the probability that it is past C_mid; the prior's share of the fitted asymptote; risen,
        whether it has begun to rise; departure, the z of a run that left its curve (departure.py).
    residuals: one row per test, `residuals.residual_tests`.
    problems: one line each, with what to do.
    """

    sampler: pd.DataFrame
    runs: pd.DataFrame
    residuals: pd.DataFrame
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict:
        """Everything as numbers and text, for JSON."""
        tables = {"sampler": self.sampler, "runs": self.runs, "residuals": self.residuals}
        rows = {k: json.loads(str(t.to_json(orient="records"))) for k, t in tables.items()}
        return {"ok": self.ok, "problems": list(self.problems)} | rows

    def __str__(self) -> str:
        lines = []
        if len(self.sampler):  # a preview has none
            lines = [self.sampler.to_string(index=False, float_format="{:.4g}".format)]
        lines += [self.runs.to_string(index=False, float_format="{:.3f}".format)]
        return "\n\n".join([*lines, "\n".join(self.problems) or "no problems"])


def check(fit: Draws, curves: Sequence[str] = ()) -> Check:
    """All diagnostics of a fit.

    curves: families whose evidence to compare with its own, `rlx.scaling.evidence`; takes seconds.
    """
    sampler = sampler_table(fit)
    runs, residuals = run_table(fit), residual_tests(fit)
    problems = []
    for row in sampler[~sampler["ok"]].itertuples():
        problems.append(f"{row.diagnostic}={row.value:.4g}: {row.bound}; {row.remedy}")
    if fit.attrs["method"] == "laplace":
        problems.append("method=laplace: a preview; fit with method=nuts before you decide")
    if not all(np.isfinite(x).all() for x in fit.tree["posterior"].data_vars.values()):
        problems.append("draws: not all finite, the fit has no mode; leave out runs without a rise")
    for run, z in fit.departed.items():
        remedy = "drop it, or see trust() before you forecast" if z > 0 else _fall(fit, run)
        problems.append(f"run={run}: left its curve (z = {z:.1f}); {remedy}")
    problems += _late(fit)
    flat = runs[~runs["risen"] & runs["departure"].isna()]["run"].tolist()
    if flat:
        problems.append(
            f"risen=False: {_named(flat)} not begun to rise: curve and ceiling are the prior's; "
            "train longer, or leave out"
        )
    weak = runs[runs["prior_share"] > 0.5]["run"].tolist()
    if weak:
        problems.append(
            f"prior_share>0.5: the asymptotes of {_few(weak)} are more prior than data; "
            "ask for ceilings at the horizon, param A, or train longer"
        )
    problems += [*_other_curve(fit, curves), *_left_over(fit, residuals), *_spurious(fit)]
    return Check(sampler, runs, residuals, tuple(problems))


def _late(fit: Draws) -> list[str]:
    """A line if runs have no evaluation near their start, and no r0 was given."""
    frame = fit.evals.frame
    measured = frame.loc[frame["compute"] == 0, "start"]
    by_run = frame[~frame["start"].isin(measured)].groupby("run", sort=False)["compute"]
    share = by_run.min() / by_run.max()
    late = share[share > NEAR_START]
    if late.empty or json.loads(fit.attrs["r0"]) is not None:
        return []
    return [
        f"first evaluation at {late.max():.2g} of the last C: R0 of {_few(list(late.index))}, and "
        "the curve before it, are extrapolated; give r0=VALUE, or the evaluation at C = 0"
    ]


def _other_curve(fit: Draws, curves: Sequence[str]) -> list[str]:
    """A line if another family explains the evaluations better."""
    a, own = fit.attrs, fit.attrs["curve"]
    others = [curve for curve in curves if curve != own]
    if not others:
        return []
    axes = json.loads(a["axes"])
    found = evidence(
        fit.evals,
        (own, *others),
        noise=a["noise"],
        axes=None if axes is None else tuple(axes),
        r0=json.loads(a["r0"]),
        priors=fit.priors,
    )
    best = best_curve(found)
    if best == own:
        return []
    over = found.set_index("curve")["over_first"][best]
    return [
        f"curve={own}: {best} explains the evaluations better, by {over:.1f} in log evidence (3 is "
        f"20 to 1); fit curve={best} too, and allow for the ceilings of both"
    ]


def _left_over(fit: Draws, residuals: pd.DataFrame) -> list[str]:
    """A line for each kind of test with a finding, at level ALPHA over all tests.

    Half of ALPHA is for all runs together: they are often wrong together, each by too little.
    """
    whole = residuals["level"] == "study"
    tests = 2 * np.where(whole, whole.sum(), (~whole).sum())
    found = residuals[residuals["p_value"] * tests < ALPHA].sort_values("p_value")
    lines = []
    for test, rows in found.groupby("test", sort=False):
        said = [_finding(row) for row in rows.head(4).itertuples()]
        more = f", and {len(rows) - 4} more" if len(rows) > 4 else ""
        remedy = "noise=student, or a larger stderr" if test == "scatter" else _better(fit)
        lines.append(f"{test}: {', '.join(said)}{more}; {remedy}")
    return lines


def _finding(row) -> str:
    """One finding in words."""
    up = row.z > 0
    words = {
        "late": f"{abs(row.by):.3f} {'above' if up else 'below'} the curve in the last quarter",
        "slope": f"at the end {'steeper' if up else 'flatter'} than the curve",
        "memory": "long on one side of the curve",
        "scatter": f"{row.by:.1f} times as far from the curve as its band says",
    }
    who = row.name if row.level == "study" else f"{row.level} {row.name}"
    return f"{who} {words[row.test]} (z = {row.z:.1f})"


def _better(fit: Draws) -> str:
    """The remedy for curves that do not fit: first NUTS, then other curves."""
    return "fit with method=nuts" if fit.attrs["method"] == "laplace" else COMPARE


def _spurious(fit: Draws) -> list[str]:
    """A line for each site far from its prior: a spurious mode, or curves that do not fit."""
    return [
        f"{site}={mean:.2f}: {abs(sds):.1f} prior sds from its prior's mean, a spurious"
        f" mode or curves that do not fit; {_better(fit)}"
        for site, mean, sds in far_from_prior(fit)[["site", "mean", "sds"]].to_numpy()
    ]


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _named(names: list[str]) -> str:
    return f"{_few(names)} {'has' if len(names) == 1 else 'have'}"


def _fall(fit: Draws, run: str) -> str:
    """The fall of a run, in words."""
    value = fit.evals.frame.query("run == @run")["value"]
    level, _ = fallen(fit)[fit.runs.index(run)]
    top = value.rolling(min(LAST, len(value))).mean().max()
    return f"fell from {top:.2f} to {level:.2f}: the fall is not fitted; the forecast stays there"


def sampler_table(fit: Draws) -> pd.DataFrame:
    """R-hat, effective samples, divergences, E-BFMI, with bounds and remedies."""
    a = fit.attrs
    if a["method"] == "laplace":
        return pd.DataFrame(columns=["diagnostic", "value", "bound", "ok", "remedy"])
    rows = [
        (
            "rhat", a["rhat"], f"at most {MAX_RHAT:g}", a["rhat"] <= MAX_RHAT,
            "another seed, or more data",
        ),
        (
            "ess", a["ess"], f"at least {MIN_ESS}, bulk and tail", a["ess"] >= MIN_ESS,
            "another seed",
        ),
        ("divergences", a["divergences"], "none", a["divergences"] == 0, "tighter priors"),
        (
            "bfmi", a["bfmi"], f"above {MIN_BFMI:g}", a["bfmi"] > MIN_BFMI,
            "tighter priors of the sds",
        ),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["diagnostic", "value", "bound", "ok", "remedy"])


def run_table(fit: Draws) -> pd.DataFrame:
    """`Check.runs`."""
    curves, last = fit.curves("run"), fit.last_compute("run")
    q05, q50, q95 = np.quantile(gained(fit, "run"), [0.05, 0.5, 0.95], axis=0)
    table = pd.DataFrame({"run": fit.runs, "seen_q05": q05, "seen_q50": q50, "seen_q95": q95})
    table["past_C_mid"] = (last > curves["C_mid"]).mean(0)
    table["prior_share"] = prior_share(fit, "asymptote", "run")
    table["risen"] = has_risen(fit)
    table["departure"] = [fit.departed.get(run, np.nan) for run in fit.runs]
    return table
