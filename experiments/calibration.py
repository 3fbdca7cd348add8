"""Are the posteriors calibrated? Simulated studies with known truth, fitted, and compared.

    python -m experiments.calibration studies=50 workers=2 out=DIR [KEY=VALUE ...]

A study has 8 recipes x 3 seeds x 20 evaluations at equal steps of compute up to C_max = 4 (C_mid
has median 3), drawn from a population of its own, which is not the prior of the fit:

    R_r(C)  = R0 + (A_r - R0) * s(C / C_mid_r, B_r),      R0 = 0.25
    theta   = (logit((A - R0) / (1 - R0)), log C_mid, log B)
    mu      ~ N((-0.1, log 3, log 1.5), (0.3, 0.35, 0.1))                       of a study
    theta_j ~ N(mu, (0.35, 0.40, 0.15)),   theta_r ~ N(theta_j, (0.10, 0.12, 0.06))
    w_m     = 0.7 w_(m-1) + noise, stationary sd 0.008                          policy wander
    passes  ~ Binomial(4000, R(C) + w)                                          one evaluation

and one evaluation of R0 of the same size, shared by all runs. Each variant changes one thing:

    well           s = x^B / (1 + x^B), the sigmoid (x = C / C_mid)
    one_seed       one seed per recipe
    short          C_max = 1.5
    slow_tail      s = (1 + (2^(1/3) - 1) x^(-0.6 B))^-3: the exponent falls from 1.8 B to 0.6 B
    late_collapse  a third of the runs declines: R(C) = max(R0, R(t) - d (C - t) / C_max) after
                   t ~ U(0.6, 1) C_max, d ~ U(0.2, 0.5)
    switch         logistic in C: s = (logistic(B (x - 1)) - logistic(-B)) / logistic(B)
    weibull        s = 1 - 2^-(x^B)

slow_tail and switch are in no family that is fitted; weibull is the limit kappa -> inf of burr.
Everything is a pure function of the study's seed. Each fit becomes one line of
`out/records.jsonl` (of `out/records-I.jsonl` with several workers), so the same command continues
an interrupted one; backtest=true adds lines with the horizon that `Backtest.trust` gives.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp
from scipy.stats import binom
from tqdm import tqdm

import rlx.scaling as sc
from experiments.options import read_options
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.scaling.data import Evals
from rlx.scaling.simulate import as_evals, evaluate, of_seeds, wander

Floats = NDArray[np.float64]

VARIANTS = ("well", "one_seed", "short", "slow_tail", "late_collapse", "switch", "weibull")
CURVES = ("burr", "sigmoid")
R0, TRIALS = 0.25, 4000
POPULATION = np.array([-0.1, np.log(3.0), np.log(1.5)]), np.array([0.3, 0.35, 0.1])  # mean, sd
RECIPE_SD, SEED_SD = np.array([0.35, 0.40, 0.15]), np.array([0.10, 0.12, 0.06])
WANDER_SD, WANDER_DECAY = 0.008, 0.7  # per evaluation
C_MAX, C_MAX_SHORT = 4.0, 1.5
DECLINE = (0.2, 0.5)  # of a run that collapses, pass rate per C_max
HORIZONS = np.array([1.0, 2.0, 4.0, 10.0])  # of C_max
PROB = 0.9  # of every interval
GRID_A = np.arange(0.30, 1.0001, 0.005)  # the paper's steps; its C_mid in thousands of GPU-hours
GRID_C_MID = np.linspace(0.1, 40.0, 100)
MARGIN = 0.02  # of the paper's rule for two ceilings
PAIR_BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)


class Size(NamedTuple):
    recipes: int
    seeds: int
    points: int


SIZES = {"full": Size(8, 3, 20), "small": Size(3, 2, 10)}


# ------------------------------------------------------------------ simulated studies


@dataclass(frozen=True)
class Truth:
    """What a simulated study was drawn from."""

    variant: str
    recipes: list[str]
    runs: list[str]
    recipe_R: NDArray[np.int64]
    C_max: float
    theta_JQ: Floats  # logit of the share of 1 - R0, log C_mid, log B; of a recipe's typical seed
    theta_RQ: Floats
    turn_R: Floats  # compute after which a run declines, inf for never
    slope_R: Floats  # of the decline, per unit of compute
    fresh_RH: Floats  # a further evaluation at each of HORIZONS, which the fit does not see

    @property
    def A_J(self) -> Floats:
        """Ceilings of the recipes' typical seeds."""
        return R0 + (1 - R0) * expit(self.theta_JQ[:, 0])

    @property
    def A_R(self) -> Floats:
        """Limits of the runs' curves: R0 for a run that declines."""
        return np.where(np.isfinite(self.turn_R), R0, R0 + (1 - R0) * expit(self.theta_RQ[:, 0]))

    def curve(self, compute_C: ArrayLike) -> Floats:
        """Pass rates [R, C] without wander and sampling noise."""
        a_R1, c_R1, b_R1 = np.moveaxis(self.theta_RQ, -1, 0)[..., None]
        compute_C, turn_R1 = np.asarray(compute_C, float), self.turn_R[:, None]
        x_RC = np.minimum(compute_C, turn_R1) / np.exp(c_R1)
        rise_RC = (1 - R0) * expit(a_R1) * gained(self.variant, x_RC, np.exp(b_R1))
        fall_RC = self.slope_R[:, None] * np.maximum(compute_C - turn_R1, 0)
        return R0 + np.maximum(rise_RC - fall_RC, 0)


def gained(variant: str, x: Floats, B: Floats) -> Floats:
    """Share s of A - R0 gained at x = C / C_mid, see the module's docstring; 0 at x = 0."""
    if variant == "slow_tail":
        return (x ** (0.6 * B) / (x ** (0.6 * B) + 2 ** (1 / 3) - 1)) ** 3
    if variant == "switch":
        return (expit(B * (x - 1)) - expit(-B)) / expit(B)
    if variant == "weibull":
        return 1 - 2 ** -(x**B)
    return x**B / (1 + x**B)


def simulate(variant: str, seed: int, size: str = "full") -> tuple[Evals, Truth]:
    """A study of one of VARIANTS, a pure function of its arguments."""
    one = Size(SIZES[size].recipes, 1, SIZES[size].points)
    C_max = C_MAX_SHORT if variant == "short" else C_MAX
    return simulate_size(variant, seed, one if variant == "one_seed" else SIZES[size], C_max)


def simulate_size(
    variant: str, seed: int, size: Size, C_max: float, *, equal: bool = False
) -> tuple[Evals, Truth]:
    """The same of any size and C_max; with `equal`, all recipes have the same parameters."""
    J, G, M = size
    rng = np.random.default_rng(seed)
    theta_JQ = rng.normal(*POPULATION) + (not equal) * RECIPE_SD * rng.normal(size=(J, 3))
    theta_RQ = of_seeds(rng, theta_JQ, G, SEED_SD)
    turn_R, slope_R = _declines(rng, J * G, C_max, declining=variant == "late_collapse")
    truth = Truth(
        variant=variant,
        recipes=[f"recipe{j}" for j in range(J)],
        runs=[f"recipe{j}-s{g}" for j in range(J) for g in range(G)],
        recipe_R=np.repeat(np.arange(J), G),
        C_max=C_max,
        theta_JQ=theta_JQ,
        theta_RQ=theta_RQ,
        turn_R=turn_R,
        slope_R=slope_R,
        fresh_RH=np.empty((J * G, len(HORIZONS))),
    )
    compute_M = C_max / M * np.arange(1, M + 1)
    wander_RM = wander(rng, J * G, M, WANDER_SD, WANDER_DECAY)
    value_RM = evaluate(rng, truth.curve(compute_M) + wander_RM, TRIALS)
    truth.fresh_RH[:] = _fresh(rng, truth, wander_RM[:, -1], M)
    start = evaluate(rng, np.array(R0), TRIALS)
    evals = as_evals(
        np.r_[0.0, compute_M],
        np.insert(value_RM, 0, start, axis=1),
        TRIALS,
        run=truth.runs,
        recipe=[truth.recipes[j] for j in truth.recipe_R],
        seed=np.tile(np.arange(G), J),
        start=["base"] * (J * G),
        title=variant,
    )
    return evals, truth


def _declines(
    rng: np.random.Generator, R: int, C_max: float, declining: bool
) -> tuple[Floats, Floats]:
    """Turning point and slope of every run; a third of them turns if `declining`."""
    turn_R, slope_R = np.full(R, np.inf), np.zeros(R)
    if declining:
        some = rng.choice(R, R // 3, replace=False)
        turn_R[some] = C_max * rng.uniform(0.6, 1.0, len(some))
        slope_R[some] = rng.uniform(*DECLINE, len(some)) / C_max
    return turn_R, slope_R


def _fresh(rng: np.random.Generator, truth: Truth, last_R: Floats, M: int) -> Floats:
    """One evaluation per horizon, [R, H]; the wander continues from each run's last value."""
    decay_H = WANDER_DECAY ** ((HORIZONS - 1) * M)
    w_RH = decay_H * last_R[:, None]
    w_RH = w_RH + WANDER_SD * np.sqrt(1 - decay_H**2) * rng.normal(size=w_RH.shape)
    return evaluate(rng, truth.curve(HORIZONS * truth.C_max) + w_RH, TRIALS)


# ------------------------------------------------------------------ one fit, one line


class Task(NamedTuple):
    """One line of the records. kind: "fit", or "trust" for a backtest."""

    variant: str
    seed: int
    curve: str
    kind: str


def record(task: Task, *, size: str, method: str) -> dict:
    """The line of a task: the task, and truth and answers side by side."""
    evals, truth = simulate(task.variant, task.seed, size)
    started = time.perf_counter()
    if task.kind == "trust":
        trust = sc.backtest(evals, curves=(task.curve,)).trust(task.curve)
        answers = {"trust": float(trust), "seconds": time.perf_counter() - started}
    else:
        fit = sc.fit(evals, curve=task.curve, method=method)
        answers = {"seconds": time.perf_counter() - started} | fit_answers(fit, truth)
        answers |= _point_answers(task.variant, task.seed, size)
    return task._asdict() | {"size": size, "method": method} | answers


def fit_answers(fit: sc.ScalingFit, truth: Truth) -> dict:
    """Truth, interval and estimate of every ceiling and of every run's curve, as lists.

    A_recipe, A_run: truth, low, median, high of the ceilings. curve_run: truth, low, mean, high of
    the runs' curves at HORIZONS, [R, H]. fresh_run: the same for a further evaluation, and its log
    score. prob_above: P(A_i > A_j) of the recipes i < j. A fit that did not converge has answers
    too; `converged` is then False.
    """
    asked = fit.unsafe()
    status = dict(zip(fit.runs, asked.status(by="run"), strict=True))
    A_XJ = _draws(asked.param("A", by="recipe"), recipe=truth.recipes)
    A_XR = _draws(asked.param("A", by="run"), run=truth.runs)
    compute_H = HORIZONS * truth.C_max
    curve_XRH = _draws(asked.curve(compute_H, by="run"), run=truth.runs)
    fresh_XRH = _draws(asked.predict(compute_H, by="run", trials=TRIALS), run=truth.runs)
    rate_XRH = _draws(asked.predict(compute_H, by="run", trials=np.inf), run=truth.runs)
    i, j = np.triu_indices(len(truth.recipes), 1)
    return {
        "converged": fit.attrs["method"] == "laplace" or fit.converged,
        "rhat": float(fit.attrs["rhat"]),
        "ess": float(fit.attrs["ess"]),
        "divergences": int(fit.attrs["divergences"]),
        "recipe_of_run": truth.recipe_R.tolist(),
        "departed": [status[run] == "departed" for run in truth.runs],
        "declines": np.isfinite(truth.turn_R).tolist(),
        "A_recipe": _against(truth.A_J, A_XJ, median=np.median(A_XJ, 0)),
        "A_run": _against(truth.A_R, A_XR, median=np.median(A_XR, 0)),
        "curve_run": _against(truth.curve(compute_H), curve_XRH, mean=curve_XRH.mean(0)),
        "fresh_run": _against(
            truth.fresh_RH,
            fresh_XRH,
            mean=rate_XRH.mean(0),
            log_score=log_score(truth.fresh_RH, rate_XRH),
        ),
        "prob_above": _listed((A_XJ[:, i] > A_XJ[:, j]).mean(0)),
    }


def _draws(array, **order: list[str]) -> Floats:
    """[X, ...] draws of a labelled array, in the order of the truth's names."""
    x = array.sel(order).values
    return x.reshape(-1, *x.shape[2:])


def _against(truth: Floats, draws_X: Floats, **estimates: Floats) -> dict[str, list]:
    low, high = np.quantile(draws_X, [(1 - PROB) / 2, (1 + PROB) / 2], axis=0)
    answers = {"truth": truth, "low": low, "high": high, **estimates}
    return {name: _listed(x) for name, x in answers.items()}


def _listed(x: Floats) -> list:
    return np.round(x, 5).tolist()


def log_score(value: Floats, rate_X: Floats) -> Floats:
    """Log predictive density of evaluations of TRIALS samples, given draws of the policy's rate.

    log(n E_X[Binomial(n value; n, rate)]), n = TRIALS: the counts are 1 / n apart.
    """
    log_pmf_X = binom.logpmf(np.round(value * TRIALS), TRIALS, rate_X)
    return logsumexp(log_pmf_X, axis=0) + np.log(TRIALS / len(rate_X))


@lru_cache(maxsize=1)
def _point_answers(variant: str, seed: int, size: str) -> dict:
    """Point estimates of each run: ceilings [R], and pass rates [R, H] at HORIZONS.

    grid: the paper's procedure, on a grid wide enough for every ceiling here; point: least squares;
    last: the last value carried forward.
    """
    evals, truth = simulate(variant, seed, size)
    compute_H = HORIZONS * truth.C_max
    rows: dict[str, list] = {key: [] for key in ("grid_A", "point_A", "grid", "point", "last")}
    for _, run in evals.frame.groupby("run", sort=False):
        C_M, y_M = run["compute"].to_numpy(), run["value"].to_numpy()
        grid = sc.fit_paper(C_M, y_M, r0="first", A_grid=GRID_A, C_mid_grid=GRID_C_MID)
        point = sc.fit_point(C_M, y_M, r0="first")
        last = np.full(len(HORIZONS), y_M[-1])
        answers = (grid.A, point.A, grid.at(compute_H), point.at(compute_H), last)
        for key, answer in zip(rows, answers, strict=True):
            rows[key].append(answer)
    return {key: _listed(np.array(row)) for key, row in rows.items()}


# ------------------------------------------------------------------ what the lines say


def summarise(records: Iterable[dict]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables calibration and pairs of all recorded fits.

    calibration: one row per variant, curve, group of runs and quantity (ceilings A_recipe, A_run;
        curve_run, the latent pass rate, and fresh_run, a further evaluation, at each `horizon`).
        runs is "all", "unflagged" (runs that the fit does not call departed; recipes without such
        a run), or "trusted" (of studies whose backtest trusts the horizon). share: that of the
        group among all answers (for "trusted", among those of backtested studies). unconverged:
        share of fits. coverage: share of the 90 % intervals that hold the truth; those of fits that
        did not converge count as missing it. coverage_se: over studies. width: median. rmse: of the
        posterior median of A, mean of a pass rate; rmse_grid, rmse_point, rmse_last: of the rivals
        in `_point_answers`, for A_recipe their mean over seeds; ratio: rmse / rmse_grid;
        grid_within: share of the paper's estimates that are within 0.02 of the truth.
    pairs: one row per variant, curve and rule that ranks two ceilings, `_pairs_of`.
    """
    rows = list(records)
    fits = [row for row in rows if row["kind"] == "fit"]
    trust = {_study(row): row["trust"] for row in rows if row["kind"] == "trust"}
    answers = pd.concat([_answers(row, trust.get(_study(row), np.nan)) for row in fits])
    keys, calibration = ["variant", "curve", "quantity", "horizon"], []
    for key, group in answers.groupby(keys, sort=False, dropna=False):
        known = group[group["trust"].notna()]
        trusted = known[known["trust"] >= known["horizon"]]
        parts = {"all": (group, group), "unflagged": (group[~group["flagged"]], group)}
        for name, (part, whole) in (parts | {"trusted": (trusted, known)}).items():
            if len(part):
                labels = dict(zip(keys, key, strict=True)) | {"runs": name}
                labels |= {"studies": part["seed"].nunique(), "share": len(part) / len(whole)}
                calibration.append(labels | _scores(part))
    by_curve: dict[tuple[str, str], list[dict]] = {}
    for row in fits:
        by_curve.setdefault((row["variant"], row["curve"]), []).append(row)
    pairs = pd.concat([_pairs_of(group) for group in by_curve.values()], ignore_index=True)
    return pd.DataFrame(calibration), pairs


def _study(row: dict) -> tuple[str, int, str]:
    return row["variant"], row["seed"], row["curve"]


def _answers(row: dict, trust: float) -> pd.DataFrame:
    """One row per recipe or run and quantity of a fit."""
    recipe_R, departed_R = np.array(row["recipe_of_run"]), np.array(row["departed"])
    J = len(row["A_recipe"]["truth"])
    member_JR = recipe_R == np.arange(J)[:, None]
    rivals_R = {"grid": np.array(row["grid_A"]), "point": np.array(row["point_A"])}
    rivals_J = {key: member_JR @ A_R / member_JR.sum(1) for key, A_R in rivals_R.items()}
    parts = [
        _part(row["A_recipe"], rivals_J, "median", member_JR @ departed_R, "A_recipe", np.nan),
        _part(row["A_run"], rivals_R, "median", departed_R, "A_run", np.nan),
    ]
    for quantity in ("curve_run", "fresh_run"):
        for h, horizon in enumerate(HORIZONS):
            at_h = {name: np.array(x)[:, h] for name, x in row[quantity].items()}
            rivals = {name: np.array(row[name])[:, h] for name in ("grid", "point", "last")}
            parts.append(_part(at_h, rivals, "mean", departed_R, quantity, horizon))
    table = pd.concat(parts, ignore_index=True)
    table["inside"] &= row["converged"]
    labels = {key: row[key] for key in ("variant", "curve", "seed", "converged")}
    return table.assign(trust=trust, **labels)


def _part(
    answer: dict, rivals: dict, estimate: str, flagged: ArrayLike, quantity: str, horizon: float
) -> pd.DataFrame:
    truth, low, high = (np.array(answer[name]) for name in ("truth", "low", "high"))
    table = pd.DataFrame({"quantity": quantity, "horizon": horizon, "width": high - low})
    table["inside"], table["flagged"] = (low <= truth) & (truth <= high), flagged
    table["error"] = np.array(answer[estimate]) - truth
    for name, value in rivals.items():
        table[f"error_{name}"] = value - truth
    return table.assign(log_score=answer.get("log_score", np.nan))


def _scores(group: pd.DataFrame) -> dict[str, float]:
    coverage, se = clustered(group["inside"], group["seed"])
    scores = {"unconverged": 1 - group.groupby("seed")["converged"].first().mean()}
    scores |= {"coverage": coverage, "coverage_se": se, "width": group["width"].median()}
    for name in ("error", "error_grid", "error_point", "error_last"):
        scores[name.replace("error", "rmse")] = float(np.sqrt((group[name] ** 2).mean()))
    scores["ratio"] = scores["rmse"] / scores["rmse_grid"]
    scores["grid_within"] = (group["error_grid"].abs() <= MARGIN).mean()
    return scores | {"log_score": group["log_score"].mean()}


def clustered(hit_N: ArrayLike, cluster_N: ArrayLike) -> tuple[float, float]:
    """Share of hits, and its standard error over S clusters of answers that are not independent.

        p = sum_s k_s / sum_s n_s,   se = sqrt(S / (S - 1) sum_s (k_s - p n_s)^2) / sum_s n_s

    NaN standard error for one cluster. Source: the ratio estimator, Cochran 1977, Sampling
    Techniques, Eq. 3.34.
    """
    by = pd.Series(np.asarray(hit_N, float)).groupby(np.asarray(cluster_N))
    k_S, n_S = by.sum().to_numpy(), by.size().to_numpy()
    p, S = k_S.sum() / n_S.sum(), len(n_S)
    spread = np.sum((k_S - p * n_S) ** 2)
    return float(p), float(np.sqrt(spread * S / (S - 1)) / n_S.sum()) if S > 1 else np.nan


def _pairs_of(fits: list[dict]) -> pd.DataFrame:
    """How often a rule ranks two ceilings of a study, and is right, for one variant and curve.

    rule: a bin of P = max(P(A_i > A_j), P(A_j > A_i)), which ranks by the likelier order; P > 0.9;
    or that the grid fits' ceilings, averaged over seeds, differ by more than 0.02 (arXiv
    2510.13786, A.5). share: that of the ranked pairs among all; a fit that did not converge ranks
    none. P: mean. right, right_se: share of the ranked pairs in true order, its error over studies.
    """
    parts = []
    for row in fits:
        A_J, recipe_R = np.array(row["A_recipe"]["truth"]), np.array(row["recipe_of_run"])
        grid_J = pd.Series(row["grid_A"]).groupby(recipe_R).mean().to_numpy()
        i, j = np.triu_indices(len(A_J), 1)
        above = np.array(row["prob_above"])
        part = pd.DataFrame({"seed": row["seed"], "P": np.maximum(above, 1 - above)})
        part["right"] = (above > 0.5) == (A_J[i] > A_J[j])
        part["gap"] = grid_J[i] - grid_J[j]
        part["grid_right"] = (part["gap"] > 0) == (A_J[i] > A_J[j])
        parts.append(part.assign(converged=row["converged"]))
    pairs = pd.concat(parts, ignore_index=True)
    bins = pd.cut(pairs["P"], PAIR_BINS, include_lowest=True).cat.codes
    rules = {
        f"{low:g} to {high:g}": (pairs["converged"] & (bins == b), "right")
        for b, (low, high) in enumerate(pairwise(PAIR_BINS))
    }
    rules[f"P > {PROB:g}"] = (pairs["converged"] & (pairs["P"] > PROB), "right")
    rules[f"grid, |dA| > {MARGIN:g}"] = (pairs["gap"].abs() > MARGIN, "grid_right")
    labels = {key: fits[0][key] for key in ("variant", "curve")}
    return pd.DataFrame([labels | _ranked(pairs, *rule, name) for name, rule in rules.items()])


def _ranked(pairs: pd.DataFrame, ranks: pd.Series, right: str, name: str) -> dict:
    ranked = pairs[ranks]
    share, se = clustered(ranked[right], ranked["seed"]) if len(ranked) else (np.nan, np.nan)
    counts = {"rule": name, "pairs": len(ranked), "share": ranks.mean()}
    P = ranked["P"].mean() if right == "right" else np.nan
    return counts | {"P": P, "right": share, "right_se": se}


# ------------------------------------------------------------------ many fits


@dataclass(frozen=True)
class CalibrationConfig:
    sets: str = "simulated"  # all: every available set of curves, see experiments.scored
    data: str = "../shared/data"  # for sets=all: external training curves
    studies: int = 50  # of each variant; 0 summarises what is recorded
    variants: list[str] = field(default_factory=lambda: list(VARIANTS))
    curves: list[str] = field(default_factory=lambda: list(CURVES))
    method: str = "nuts"
    backtest: bool = False  # also record the horizon that backtests trust
    size: str = "full"
    workers: int = 1
    out: str = "outputs/calibration"


def parse(argv: list[str]) -> CalibrationConfig:
    """The options; unknown keys, wrong types and unknown names raise InputError."""
    config = read_options(CalibrationConfig, argv)
    names = {
        "sets": ("simulated", "all"),
        "variants": VARIANTS,
        "curves": CURVES,
        "method": ("nuts", "laplace"),
        "size": SIZES,
    }
    for key, allowed in names.items():
        given = getattr(config, key)
        for name in [given] if isinstance(given, str) else given:
            if name not in allowed:
                raise InputError(key, name, "unknown", f"use {', '.join(allowed)}")
    if config.sets == "all":
        for key in ("variants", "curves", "backtest", "size", "workers"):
            if getattr(config, key) != getattr(CalibrationConfig(), key):
                remedy = "leave it out, or give sets=simulated"
                raise InputError(key, getattr(config, key), "not read with sets=all", remedy)
    if config.studies < 0:
        raise InputError("studies", config.studies, "negative", "0 summarises what is recorded")
    if config.workers < 1:
        raise InputError("workers", config.workers, "not positive", "give 1 or more")
    return config


def tasks(config: CalibrationConfig) -> Iterator[Task]:
    """All tasks, those of one study together."""
    kinds = ("fit", "trust") if config.backtest else ("fit",)
    for variant in config.variants:
        for seed in range(config.studies):
            for kind in kinds:
                for curve in config.curves:
                    yield Task(variant, seed, curve, kind)


def read_records(out: Path) -> dict[Task, dict]:
    """The lines of all workers, by task; a last line that was cut short is left out."""
    rows = [row for path in sorted(out.glob("records*.jsonl")) for row in read_rows(path)]
    return {Task(*(row[name] for name in Task._fields)): row for row in rows}


def work(config: CalibrationConfig, worker: int = 0) -> None:
    """Do the tasks of seeds = worker (mod workers) that are not recorded yet.

    Raises:
        InputError: `out` holds records of another size or method.
    """
    out = Path(config.out)
    name = "records.jsonl" if config.workers == 1 else f"records-{worker}.jsonl"
    done = read_records(out)
    for row in done.values():
        for key in ("size", "method"):
            if row[key] != getattr(config, key):
                reason = f"holds records of {key}={row[key]}"
                raise InputError("out", out, reason, "give another out, or the same options")
    mine = [task for task in tasks(config) if task.seed % config.workers == worker]
    left = [task for task in mine if task not in done]
    log = RunRecord(out)
    if (out / name).exists():
        log.truncate({name: (out / name).read_bytes().rfind(b"\n") + 1})  # a line cut short
    bar = tqdm(total=len(mine), initial=len(mine) - len(left), position=worker, unit="task")
    for task in left:
        bar.set_description(f"{task.variant} {task.seed} {task.curve} {task.kind}")
        log.append(name, record(task, size=config.size, method=config.method))
        bar.update()
    bar.close()


def run(config: CalibrationConfig) -> int:
    """Do all tasks, in several processes if there are several workers; the largest exit status."""
    if config.workers == 1:
        work(config)
        return 0
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    context = get_context("spawn")  # JAX does not survive a fork
    workers = [
        context.Process(target=_process, args=(config, i), daemon=True)
        for i in range(config.workers)
    ]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    return max(abs(process.exitcode or 0) for process in workers)  # negative: a signal


def _process(config: CalibrationConfig, worker: int) -> None:
    try:
        work(config, worker)
    except KeyboardInterrupt:
        sys.exit(75)


def write(out: Path) -> None:
    """Write calibration.csv and pairs.csv from the records, and print a short table."""
    records = read_records(out).values()
    if not any(row["kind"] == "fit" for row in records):
        raise InputError("out", out, "holds no records", "give studies=1 or more")
    calibration, pairs = summarise(records)
    calibration.to_csv(out / "calibration.csv", index=False, float_format="%.4g")
    pairs.to_csv(out / "pairs.csv", index=False, float_format="%.4g")
    shown = calibration[(calibration["runs"] == "all") & (calibration["quantity"] != "fresh_run")]
    index, columns = ["variant", "curve"], ["quantity", "horizon"]
    table = shown.pivot(index=index, columns=columns, values="coverage")
    table = table.reindex([name for name in VARIANTS if name in table.index], level="variant")
    print(table.to_string(float_format="{:.2f}".format, na_rep=""))
    print(f"wrote calibration.csv, pairs.csv in {out}")


def main(argv: list[str] | None = None) -> int:
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        if config.sets == "all":
            from experiments import scored  # which imports this module

            scored.run(Path(config.out), Path(config.data), config.studies, config.method)
            return 0
        status = run(config)
        if not status:
            write(Path(config.out))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 75
    return status


if __name__ == "__main__":
    sys.exit(main())
