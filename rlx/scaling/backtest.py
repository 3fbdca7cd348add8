"""Rolling origins: what earlier forecasts of this very study would have been worth.

    bt = sc.backtest(evals)
    bt.scores                      # coverage, log score, CRPS, bias, RMSE by curve, origin, horizon
    bt.weights()                   # stacking of the curves by leave-future-out log score
    bt.trust("burr")               # largest C / C_seen at which forecasts were calibrated

A study is refitted on the first 10, 25, 50 and 75 % of every run's compute and scored on all later
evaluations of runs that had not left their curve by then. An origin that leaves the median run
fewer than MIN_SEEN evaluations is left out. The runs of a study share kappa, the population and its
noise, so their hits are far from independent; whether a coverage is too low is therefore asked of
the posterior predictive itself: each of its draws is a study, and the fraction of that study inside
the same intervals is a draw of the coverage that a true model would have had.
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

Floats = NDArray[np.float64]

ORIGINS = (0.1, 0.25, 0.5, 0.75)  # shares of every run's compute
BANDS = {1.5: (1.0, 1.5), 2.0: (1.5, 2.5), 4.0: (2.5, 5.0), 10.0: (5.0, 20.0)}  # of C / C_seen
MIN_SEEN = 3
ALPHA = 0.05  # a band whose coverage is less likely than this is not vouched for
FLOOR = 2 / 3  # nor for one with a coverage below this, however few runs there are to judge by
PROB = 0.9


@dataclass(frozen=True)
class Backtest:
    """Scores of past forecasts.

    points: one row per curve, origin and later evaluation: horizon = C / C_seen, observed, mean,
        q05, q50, q95, inside, log_score, crps.
    bands: one row per curve, origin and band of horizons: n, coverage, p_value = P(a coverage this
        low | the model is right), reach = largest horizon in it.
    """

    points: pd.DataFrame
    bands: pd.DataFrame

    @property
    def scores(self) -> pd.DataFrame:
        """Means by curve, origin and band: n, coverage, p_value, log_score, crps, bias, rmse."""
        points = self.points.assign(
            error=self.points["mean"] - self.points["observed"],
            square=(self.points["mean"] - self.points["observed"]) ** 2,
        )
        keys = ["curve", "origin", "horizon"]
        points = points.drop(columns="horizon").rename(columns={"band": "horizon"})
        mean = points.groupby(keys)[["log_score", "crps", "error", "square"]].mean()
        mean["rmse"] = np.sqrt(mean.pop("square"))
        return self.bands.merge(mean.rename(columns={"error": "bias"}).reset_index(), on=keys)

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

    def trust(self, curve: str = "burr", *, level: float = PROB) -> float:
        """Largest horizon C / C_seen up to which no band of horizons was covered too rarely.

        Too rarely: less than 2 times in 3, or so seldom that a right model would do it with
        probability below ALPHA / (number of origins). 1 means that no forecast beyond the data can
        be vouched for. `level` is the coverage asked of the intervals; only that of the backtest,
        0.9, has been scored.
        """
        if level != PROB:
            raise ValueError(f"level={level}: this backtest scored {PROB} intervals")
        trusted = 1.0
        for _, rows in self.bands[self.bands["curve"] == curve].groupby("horizon"):
            rare = rows["p_value"].min() * len(rows) < ALPHA  # Bonferroni over the origins
            if rare or rows["coverage"].min() < FLOOR:
                break
            trusted = float(rows["reach"].max())
        return trusted


def backtest(
    data: Evals,
    *,
    curves: Sequence[str] = ("burr", "sigmoid", "power"),
    origins: Sequence[float] = ORIGINS,
    method: str = "laplace",
    progress: bool = False,
    **options,
) -> Backtest:
    """Refit at every origin with every curve and score the later evaluations.

    Args:
        data: the whole study.
        curves: families to compare.
        origins: shares of every run's compute that a forecast may see.
        method: "laplace" (seconds) or "nuts".
        progress: show a progress bar.
        options: of `rlx.scaling.fit` (noise, axes, r0, priors, seed).
    """
    widest = int(data.frame[data.frame["compute"] > 0].groupby("run").size().max())
    points, bands = [], []
    usable = [origin for origin in origins if _median_seen(data, origin) >= MIN_SEEN]
    if not usable:
        raise InputError("origins", origins, f"fewer than {MIN_SEEN} evaluations seen", "use later")
    jobs = [(curve, origin) for curve in curves for origin in usable]
    for curve, origin in tqdm(jobs, desc="backtest", unit="fit", disable=not progress):
        seen, later = data.until(share=origin), data.after(share=origin)
        seen = with_first(data, seen)
        tree = posterior_of(seen, curve=curve, method=method, pad_to=widest, **options)
        scored, banded = score(Draws(tree, unsafe=True), later)
        points.append(scored.assign(curve=curve, origin=origin))
        bands.append(banded.assign(curve=curve, origin=origin))
    return Backtest(pd.concat(points, ignore_index=True), pd.concat(bands, ignore_index=True))


def _median_seen(data: Evals, origin: float) -> float:
    seen = data.until(share=origin).frame
    n = seen[seen["compute"] > 0].groupby("run").size().reindex(data.runs, fill_value=0)
    return float(n.median())


def with_first(data: Evals, seen: Evals) -> Evals:
    """Every run with at least its first evaluation at C > 0."""
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


def score(posterior: Draws, later: Evals) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Points and bands (see Backtest) of a fit's forecasts of later evaluations."""
    vouched = [run for run in posterior.runs if run not in posterior.departed]
    frame = later.frame[later.frame["run"].isin(vouched)]
    groups = dict(list(frame.groupby("run", sort=False)))
    index = [i for i, run in enumerate(posterior.runs) if run in groups]
    rows = [groups[posterior.runs[i]] for i in index]
    drawn, mean, sd = predictive(
        posterior,
        [r["compute"].to_numpy() for r in rows],
        [r["stderr"].to_numpy() for r in rows],
        index,
    )
    last = posterior.last_compute("run")
    table = pd.concat(rows, ignore_index=True)[["run", "recipe", "compute", "value"]]
    table = table.rename(columns={"value": "observed"})
    table["horizon"] = table["compute"] / table["run"].map(
        dict(zip(posterior.runs, last, strict=True))
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
    inside_XP = (lo <= drawn) & (drawn <= hi)
    bands = [_band(band, part, inside_XP[:, part.index]) for band, part in table.groupby("band")]
    return table, pd.DataFrame(bands)


def _band(band: float, part: pd.DataFrame, inside_XP: NDArray[np.bool_]) -> dict[str, float]:
    """Coverage over runs, each weighing the same, and how often a true model covers no more."""
    weight = 1 / part.groupby("run")["run"].transform("size").to_numpy()
    weight = weight / weight.sum()
    coverage = float(part["inside"].to_numpy() @ weight)
    simulated_X = inside_XP @ weight
    p_value = float((simulated_X <= coverage + 1e-12).mean())
    reach = float(part["horizon"].max())
    return {
        "horizon": band,
        "n": len(part),
        "coverage": coverage,
        "p_value": p_value,
        "reach": reach,
    }


def crps(drawn_XP: Floats, observed_P: Floats) -> Floats:
    """Continuous ranked probability score: E|x - y| - E|x - x'| / 2, from draws.

    Source: Gneiting and Raftery 2007 (JASA 102:359), Eq. 21.
    """
    X = len(drawn_XP)
    ordered = np.sort(drawn_XP, axis=0)
    rank = (2 * np.arange(1, X + 1) - X - 1)[:, None]
    spread = (rank * ordered).sum(0) / X**2
    return np.abs(drawn_XP - observed_P).mean(0) - spread
