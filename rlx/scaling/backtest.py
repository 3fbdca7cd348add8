"""Rolling origins: how well forecasts from earlier in the same study would have done.

    bt = sc.backtest(evals)
    bt.scores                      # coverage, log score, CRPS, bias, RMSE by curve, origin, horizon
    bt.weights()                   # stacking of the curves by leave-future-out log score
    bt.evidence("burr")            # by horizon: coverage, and whether forecasts are trusted
    bt.trust("burr")               # largest C / C_seen up to which they are trusted

A study is refitted on the first 10, 25, 50 and 75 % of every run's compute and scored, with its
doubt, on all later evaluations of runs that had not left their curve by then. An origin that leaves
the median run fewer than MIN_SEEN evaluations is left out.

Trust is judged for each band of horizons, over all origins, by coverage: the share of later
evaluations inside their 90 % intervals, first for each run and origin, then the mean over these.
Coverage of at least LEAST is trusted; fewer than LEAST_RUNS runs are too little evidence, which is
not trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, logsumexp
from tqdm import tqdm

from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.draws import Draws
from rlx.scaling.forecast import predictive
from rlx.scaling.infer import posterior_of
from rlx.scaling.source import some

Floats = NDArray[np.float64]

ORIGINS = (0.1, 0.25, 0.5, 0.75)  # shares of every run's compute
BANDS = {1.5: (1.0, 1.5), 2.0: (1.5, 2.5), 4.0: (2.5, 5.0), 10.0: (5.0, 20.0)}  # of C / C_seen
MIN_SEEN = 3
LEAST, LEAST_RUNS = 0.8, 3  # coverage of trusted forecasts; runs to judge it by
TRUSTED, NOT_TRUSTED, TOO_LITTLE = "trusted", "not trusted", "too little evidence"
PROB = 0.9
SCORED = ("observed", "horizon", "band", "mean", "q05", "q50", "q95", "inside", "log_score", "crps")


@dataclass(frozen=True)
class Backtest:
    """Scores of past forecasts.

    points: one row per curve, origin and later evaluation: horizon = C / C_seen, its band,
        observed, mean, q05, q50, q95, inside, log_score, crps.
    """

    points: pd.DataFrame

    @property
    def scores(self) -> pd.DataFrame:
        """By curve, origin and band: n, coverage (each run has the same weight), and the means
        log_score, crps, bias, rmse."""
        points = self.points.drop(columns="horizon").rename(columns={"band": "horizon"})
        points["bias"] = points["mean"] - points["observed"]
        points["rmse"] = points["bias"] ** 2
        keys = ["curve", "origin", "horizon"]
        table = points.groupby(keys)[["log_score", "crps", "bias", "rmse"]].mean()
        table["rmse"] = np.sqrt(table["rmse"])
        of_run = points.groupby([*keys, "run"])["inside"].agg(["size", "mean"]).groupby(keys)
        table.insert(0, "n", of_run["size"].sum())
        table.insert(1, "coverage", of_run["mean"].mean())
        return table.reset_index()

    def weights(self) -> pd.Series:
        """Stacking weights: argmax_w sum_i log sum_k w_k p_k(y_i | data before the origin).

        Source: Yao et al. 2018 (arXiv 1704.02030), Eq. 4, with leave-future-out densities.
        """
        keys = ["origin", "run", "compute"]
        table = self.points.pivot_table(index=keys, columns="curve", values="log_score").dropna()
        log_p = table.to_numpy()

        def loss(v: Floats) -> float:
            return -logsumexp(log_p + log_softmax(np.r_[v, 0.0]), axis=1).sum()

        found = minimize(loss, np.zeros(log_p.shape[1] - 1), method="Nelder-Mead")
        return pd.Series(np.exp(log_softmax(np.r_[found.x, 0.0])), table.columns, name="weight")

    def evidence(self, curve: str | None = None) -> pd.DataFrame:
        """One row per band of horizons, the nearest first, for one family of curves.

        curve: default the first that was backtested.

        Columns: horizon, reach (the largest in it), runs, forecasts (runs x origins), coverage
        (each forecast has the same weight), verdict (TRUSTED, NOT_TRUSTED or TOO_LITTLE).
        """
        rows, curves = [], self.points["curve"]
        mine = curves == (curve or next(iter(curves), None))
        for band, part in self.points[mine].groupby("band"):
            inside = part.groupby(["run", "origin"])["inside"].mean()
            runs, coverage = part["run"].nunique(), float(inside.mean())
            judged = TRUSTED if coverage >= LEAST else NOT_TRUSTED
            verdict = judged if runs >= LEAST_RUNS else TOO_LITTLE
            rows.append((band, part["horizon"].max(), runs, len(inside), coverage, verdict))
        columns = ["horizon", "reach", "runs", "forecasts", "coverage", "verdict"]
        return pd.DataFrame(rows, columns=columns)

    def trust(self, curve: str | None = None) -> float:
        """Largest horizon C / C_seen up to which every band of horizons is trusted, see `evidence`.

        1 if forecasts did not hold, or if there is too little evidence: `says` tells which.
        """
        table = self.evidence(curve)
        held = (table["verdict"] == TRUSTED).cumprod().astype(bool)
        return float(table.loc[held, "reach"].max()) if held.any() else 1.0

    def says(self, curve: str | None = None) -> str:
        """`trust`, and the first band without it, in words."""
        table, trust = self.evidence(curve), self.trust(curve)
        ends = table[table["verdict"] != TRUSTED].head(1)
        words = [f"trusted up to {trust:.3g} times the compute seen"] if trust > 1 else []
        for row in ends.itertuples():
            words.append(
                f"{row.verdict} up to {row.reach:.3g} times: {row.coverage:.0%} inside the "
                f"{PROB:.0%} intervals, {row.runs} runs, {row.forecasts} forecasts"
            )
        what = "; ".join(words) or f"{TOO_LITTLE}: no forecast could be scored"
        return f"{curve or next(iter(self.points['curve']), '')}: {what}"


def backtest(
    data: Evals,
    *,
    curves: Sequence[str] = ("burr", "sigmoid", "power"),
    origins: Sequence[float] = ORIGINS,
    method: str = "laplace",
    progress: bool = False,
    pad_to: int = 0,
    **options,
) -> Backtest:
    """Refit at every origin with every curve and score the later evaluations.

    Args:
        data: the whole study.
        curves: families to compare.
        origins: shares of every run's compute that a forecast may see.
        method: "laplace" (seconds) or "nuts".
        progress: show a progress bar.
        pad_to: that of a fit of the same runs, to use its compiled program.
        options: of `rlx.scaling.fit` (noise, axes, r0, priors, seed).
    """
    pad_to = max(pad_to, width(data))
    points, usable = [], usable_origins(data, origins)
    if not usable:
        reason = f"fewer than {MIN_SEEN} evaluations seen"
        raise InputError("origins", origins, reason, "give later ones")
    jobs = [(curve, origin) for curve in curves for origin in usable]
    for curve, origin in tqdm(jobs, desc="backtest", unit="fit", disable=not progress):
        seen, later = with_first(data, origin), data.after(share=origin)
        tree = posterior_of(seen, curve=curve, method=method, pad_to=pad_to, **options)
        points.append(score(Draws(tree, unsafe=True), later).assign(curve=curve, origin=origin))
    return Backtest(pd.concat([x for x in points if len(x)] or points, ignore_index=True))


def width(data: Evals) -> int:
    """`pad_to` of all evaluations, so that fits of parts of them share a compiled program."""
    from rlx.scaling.arrays import MAX_POINTS  # imports JAX, which pages of one fit do not need

    widest = int(data.frame[data.frame["compute"] > 0].groupby("run").size().max())
    return 8 * -(-min(widest, MAX_POINTS) // 8)


def backtest_of(fit: Draws, **options) -> Backtest:
    """`backtest` of a fit's own study, with the same curve, priors, doubt, noise, axes and r0."""
    same = fit.options
    same["curves"] = (same.pop("curve"),)
    return backtest(fit.evals, **(same | options))


def trust_of(fit: Draws, **options) -> float:
    """Largest C / C_max up to which past forecasts of the study held; prints the evidence.

    1 if they did not hold, or if there is too little evidence, see `Backtest.evidence`.
    """
    curve = fit.attrs["curve"]
    if not usable_origins(fit.evals, options.get("origins", ORIGINS)):
        print(f"{curve}: {TOO_LITTLE}: no origin leaves {MIN_SEEN} evaluations to most runs")
        return 1.0
    past = backtest_of(fit, **options)
    print(past.says(curve))
    return past.trust(curve)


def usable_origins(data: Evals, origins: Sequence[float] = ORIGINS) -> list[float]:
    """The origins at which the median run has at least MIN_SEEN evaluations."""

    def seen(origin: float) -> float:
        frame = data.frame.merge(
            data.frame.groupby("run")["compute"].max().rename("last"), on="run"
        )
        early = frame[(frame["compute"] > 0) & (frame["compute"] <= origin * frame["last"])]
        return early.groupby("run").size().reindex(data.runs, fill_value=0).median()

    return [origin for origin in origins if seen(origin) >= MIN_SEEN]


def with_first(data: Evals, share: float) -> Evals:
    """Each run cut to C <= share * (its last C), with its first evaluation at C > 0 if none is
    there."""
    seen = data.with_rows(data.early(share=share))
    positive = data.frame[data.frame["compute"] > 0]
    first = positive.loc[positive.groupby("run", sort=False)["compute"].idxmin()]
    have = set(seen.frame.loc[seen.frame["compute"] > 0, "run"])
    missing = first[~first["run"].isin(have)]
    if missing.empty:
        return seen
    frame = pd.concat([seen.frame, missing]).sort_values("compute", kind="stable")
    order = {run: i for i, run in enumerate(data.runs)}
    frame = frame.sort_values("run", key=lambda s: s.map(order), kind="stable", ignore_index=True)
    return Evals(frame, axes=data.axes)


def check_unit(seen: Evals, data: Evals) -> None:
    """Raises InputError unless both count compute in one unit."""
    if data.compute_label != seen.compute_label:
        reason = f"not the compute of the fit, {seen.compute_label}"
        raise InputError("data", data.compute_label, reason, "give Evals of one unit of compute")


def unseen(seen: Evals, data: Evals) -> pd.DataFrame:
    """Rows of `data` beyond the last evaluation of their run in `seen`."""
    last = data.frame["run"].map(seen.frame.groupby("run")["compute"].max())
    return data.frame[data.frame["compute"] > last * (1 + 1e-9)]


def score(posterior: Draws, later: Evals) -> pd.DataFrame:
    """Scores of forecasts: one row per evaluation in `later` that is later than the fitted ones,
    without runs that departed.

    Columns: run, recipe, compute, observed; horizon = C / C_seen and its band; mean, q05, q50, q95
    of the forecast; inside, whether q05 <= observed <= q95; log_score; crps.

    Raises InputError if no run is in the fit.
    """
    if not {*posterior.runs} & {*later.runs}:
        remedy = f"use runs among {some(posterior.runs, most=8)}"
        raise InputError("later", some(later.runs, most=3), "not in this fit", remedy)
    vouched = [run for run in posterior.runs if run not in posterior.departed]
    frame = unseen(posterior.evals, later)
    frame = frame[frame["run"].isin(vouched)]
    groups = dict(list(frame.groupby("run", sort=False)))
    if not groups:
        return pd.DataFrame(columns=["run", *SCORED])
    index = [i for i, run in enumerate(posterior.runs) if run in groups]
    rows = [groups[posterior.runs[i]] for i in index]
    drawn, mean, sd = predictive(
        posterior,
        [r["compute"].to_numpy() for r in rows],
        [r["stderr"].to_numpy() for r in rows],
        index,
    )
    table = pd.concat(rows, ignore_index=True)[["run", "recipe", "compute", "value"]]
    table = table.rename(columns={"value": "observed"})
    table["horizon"] = table["compute"] / table["run"].map(
        dict(zip(posterior.runs, posterior.last_compute("run"), strict=True))
    )
    observed = table["observed"].to_numpy()
    lo, mid, hi = np.quantile(drawn, [(1 - PROB) / 2, 0.5, (1 + PROB) / 2], axis=0)
    table["mean"], table["q05"], table["q50"], table["q95"] = drawn.mean(0), lo, mid, hi
    table["inside"] = (lo <= observed) & (observed <= hi)
    log_p = -0.5 * ((observed - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
    table["log_score"] = logsumexp(log_p, axis=0) - np.log(len(log_p))
    table["crps"] = crps(drawn, observed)
    edges = [lo for lo, _ in BANDS.values()] + [np.inf]
    table["band"] = np.array(list(BANDS))[np.digitize(table["horizon"], edges[1:-1], right=True)]
    return table


def crps(drawn_XP: Floats, observed_P: Floats) -> Floats:
    """Continuous ranked probability score: E|x - y| - E|x - x'| / 2, from draws.

    Source: Gneiting and Raftery 2007 (JASA 102:359), Eq. 21.
    """
    X = len(drawn_XP)
    ordered = np.sort(drawn_XP, axis=0)
    rank = (2 * np.arange(1, X + 1) - X - 1)[:, None]
    spread = (rank * ordered).sum(0) / X**2
    return np.abs(drawn_XP - observed_P).mean(0) - spread
