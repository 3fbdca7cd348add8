"""Where to spend compute: continue, stop, or add a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.doubt import random
from rlx.scaling.draws import Draws
from rlx.scaling.forecast import gain, noise_sd, wander_at
from rlx.scaling.kalman import drift
from rlx.scaling.parameters import status
from rlx.scaling.paths import ceiling, paths
from rlx.scaling.priors import NUMPY
from rlx.scaling.worth import Offer, Plan, Problem

Floats = NDArray[np.float64]

OBJECTIVES = ("pick_best", "best_final")
SEEDS = {"run": "typical", "recipe": "new"}  # the seed that new evaluations belong to
PIECES, MOST_PIECES = 8, 64  # of a budget: default, maximum
MAX_DRAWS = 4000
PER_CHUNK, PER_SEED = 4, 12  # most new evaluations; if there are more, neighbours are pooled
BLOCKS = 3  # means of neighbours that summarise new evaluations


def allocate(
    fit: Draws,
    budget: float,
    *,
    horizon: float | None = None,
    chunk: float | None = None,
    objective: str = "pick_best",
    trials: float | None = None,
) -> pd.DataFrame:
    """Where to spend compute before choosing: continue or stop each run, add a seed to a recipe.

    The value of new evaluations y is the improvement of the choice that they allow, in pass rate
    (expected value of sample information; Raiffa & Schlaifer 1961, Applied Statistical Decision
    Theory, chapter 4):

        value = E_y[max_n E[U_n | y]] - max_n E[U_n]

    U_n is the ceiling A of recipe n's typical seed ("pick_best": choose a recipe), or R_n(horizon)
    ("best_final": choose the run to continue; a new seed, once bought, is one more). Every draw
    simulates its own y: curve + wander + sampling noise, at the run's cadence. E[U_n | y] is the
    linear regression of U_n, over the draws, on the means of 3 blocks of y (Strong, Oakley, Brennan
    & Breeze 2015, Med. Decis. Making 35:570), jointly for everything bought; nothing is refitted.

    The plan is greedy: it repeatedly takes the offer and size with the highest added value per
    compute, until nothing affordable adds more than 1e-4 and than the Monte Carlo error; the rest
    of the budget is not spent. Sizes are 1, 2, 4, ... chunks of a run, because one chunk may have
    no value where several do (Frazier & Powell 2010, Decis. Anal. 7:378), and one new seed of a
    recipe, from C = 0 to the recipe's last compute. Runs that departed from their curve are neither
    continued nor chosen, nor are recipes all of whose runs departed.

    Args:
        fit: the posterior.
        budget: compute to spend, in the unit of the fit.
        horizon: compute at which "best_final" compares; default twice the study's last compute.
        chunk: compute of the smallest continuation; default budget / 8.
        objective: "pick_best" or "best_final".
        trials: graded samples of a new evaluation; default: as those fitted.

    Returns:
        One row per run, then one per recipe: kind, name; action ("continue" or "stop"; "add seed"
        or "no seed"); compute, in the plan; payoff = E[U] (of A, that of the row's own curve; of
        R(horizon), on a recipe's row that of a new seed); p_best = P(its U is the highest), on a
        run's row in "pick_best" that of its recipe, on a recipe's row in "best_final" that of its
        runs; offered, value, value_per_compute: the size with the highest value per compute, bought
        alone (NaN: no offer); gain_mean, gain_q05, gain_q95 = R(C + budget) - R(C); extrapolation
        of the gain; prior_share of A; status as `fit.status`.
        `attrs`: objective, horizon, chunk; spent; value of the whole plan; perfect =
        E[max U] - max E[U], an upper bound of the value of any evaluations; error, its Monte Carlo
        standard error, roughly that of all values.

    Raises:
        InputError: an unknown objective; budget, chunk, horizon or trials out of range; all runs
            departed from their curves.
    """
    fit.guard()
    chunk = budget / PIECES if chunk is None else chunk
    last = float(fit.last_compute("run").max())
    horizon = 2 * last if horizon is None else horizon
    _check_allocate(budget, chunk, horizon, last, objective, trials)
    stays_R = np.array([status != "departed" for status in status(fit, "run")])
    if not stays_R.any():
        raise InputError("runs", "all", "departed from their curves", "cut them with Evals.until")
    thin = fit.thinned(MAX_DRAWS)
    payoff_XN, open_N = _payoffs(thin, stays_R, objective, horizon)
    offers = _run_offers(thin, stays_R, budget, chunk, trials)
    offers += _seed_offers(thin, stays_R, budget, objective, trials)
    problem = Problem(payoff_XN, open_N, offers)
    plan = problem.greedy(budget)
    table = _table(fit, problem, plan, objective, budget)
    table.attrs = {"objective": objective, "horizon": horizon, "chunk": chunk}
    table.attrs |= {"spent": float(table["compute"].sum()), "value": problem.value(plan)}
    table.attrs |= {"perfect": problem.perfect(), "error": problem.error()}
    return table


def _check_allocate(budget, chunk, horizon, last, objective, trials) -> None:
    if objective not in OBJECTIVES:
        raise InputError("objective", objective, "unknown", f"use {' or '.join(OBJECTIVES)}")
    if not 0 < budget < np.inf:
        raise InputError("budget", budget, "not a positive compute", "give a compute above 0")
    if not budget / MOST_PIECES <= chunk <= budget:
        reason = f"not in [budget / {MOST_PIECES}, budget]"
        raise InputError("chunk", chunk, reason, "leave it out to use an eighth of the budget")
    if not last <= horizon < np.inf:
        reason = f"not beyond the last compute, {last:g}"
        raise InputError("horizon", horizon, reason, "give a compute ahead of all runs")
    if trials is not None and not trials > 0:
        raise InputError("trials", trials, "no graded samples", "give a number above 0")


def _payoffs(
    fit: Draws, stays_R: NDArray[np.bool_], objective: str, horizon: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """U [X, N] and what may be chosen without buying [N]: recipes; or runs, followed by a new seed
    of each recipe."""
    if objective == "pick_best":
        return ceiling(fit, "recipe"), _recipes_of(fit, stays_R)
    payoff = [paths(fit, np.array([horizon]), by, SEEDS[by])[..., 0] for by in ("run", "recipe")]
    return np.concatenate(payoff, axis=1), np.r_[stays_R, np.zeros(len(fit.recipes), bool)]


def _recipes_of(fit: Draws, stays_R: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Recipes with a run that has not departed [J]."""
    return np.bincount(fit.recipe_of_run, stays_R, len(fit.recipes)) > 0


def _run_offers(
    fit: Draws, stays_R: NDArray[np.bool_], budget: float, chunk: float, trials: float | None
) -> list[Offer]:
    """1, 2, 4, ... chunks of every run that has not departed."""
    rng, source = random("bought run"), Source.of(fit, "run", trials)
    gap_R, last_R = fit.wander[2], fit.last_compute("run")
    sizes = [2**i for i in range(int(np.log2(budget / chunk * (1 + 1e-9))) + 1)]
    offers = []
    for r in map(int, np.flatnonzero(stays_R)):
        per = int(np.clip(chunk / gap_R[r] * (1 + 1e-9), 1, PER_CHUNK))
        y_XT = source.evaluations(rng, r, last_R[r], chunk / per, gap_R[r], per * sizes[-1])
        summary = [_blocks(y_XT[:, : per * size]) for size in sizes]
        offers.append(Offer("run", r, [chunk * size for size in sizes], summary))
    return offers


def _seed_offers(
    fit: Draws, stays_R: NDArray[np.bool_], budget: float, objective: str, trials: float | None
) -> list[Offer]:
    """One new seed of every recipe whose last compute the budget can pay for."""
    rng, source = random("bought seed"), Source.of(fit, "recipe", trials)
    gap_R, last_J = fit.wander[2], fit.last_compute("recipe")
    offers = []
    for j in map(int, np.flatnonzero(_recipes_of(fit, stays_R) & (last_J <= budget * (1 + 1e-9)))):
        gap = float(gap_R[fit.recipe_of_run == j].mean())
        T = int(np.clip(last_J[j] / gap * (1 + 1e-9), 1, PER_SEED))
        y_XT = source.evaluations(rng, j, 0.0, last_J[j] / T, gap, T)
        opens = len(fit.runs) + j if objective == "best_final" else None
        offers.append(Offer("recipe", j, [float(last_J[j])], [_blocks(y_XT)], opens))
    return offers


@dataclass(frozen=True)
class Source:
    """Simulates new evaluations, of the runs of a fit or of a new seed of each recipe."""

    latent: Callable[[int, Floats], Floats]  # (index, computes [T]) -> pass rates [X, T]
    wander_mean_XN: Floats  # before the first new evaluation
    wander_var_XN: Floats
    noise_sd_XN: Floats
    sigma_X: Floats  # sd of the wander
    length_X: Floats  # correlation length of the wander, in gaps

    @classmethod
    def of(cls, fit: Draws, by: str, trials: float | None) -> Source:
        last_N1 = fit.last_compute(by)[:, None]
        now_XN1 = paths(fit, last_N1, by, SEEDS[by])
        mean, var = wander_at(fit, last_N1, by)
        return cls(
            lambda n, C_T: paths(fit, C_T, by, SEEDS[by], only=[n])[:, 0],
            mean[..., 0],
            var[..., 0],
            np.broadcast_to(noise_sd(fit, now_XN1, by, trials), now_XN1.shape)[..., 0],
            np.exp(fit.site("log_wander_sd")),
            np.exp(fit.site("log_wander_length")),
        )

    def evaluations(
        self, rng: np.random.Generator, n: int, start: float, step: float, gap: float, T: int
    ) -> Floats:
        """Evaluations [X, T] of one run at start + step, start + 2 step, ...; one per draw.

            y = R(C) + w + e,   w <- rho w + sigma sqrt(1 - rho^2) z,   rho = exp(-step/gap/length)

        A step of several gaps pools as many evaluations: the sd of e falls with their square root.
        """
        C_T = np.asarray(start + step * np.arange(1, T + 1), float)
        y_XT = self.latent(n, C_T)
        z_TX, e_TX = rng.normal(size=(2, T, len(y_XT)))
        rho = np.exp(-step / gap / self.length_X)
        w = self.wander_mean_XN[:, n] + np.sqrt(self.wander_var_XN[:, n]) * rng.normal(
            size=len(rho)
        )
        for t in range(T):
            w = drift(w, rho, self.sigma_X, z_TX[t], NUMPY)
            y_XT[:, t] += w
        noise = self.noise_sd_XN[:, n] * np.sqrt(min(1.0, gap / step))
        return np.clip(np.clip(y_XT, 0, 1) + noise[:, None] * e_TX.T, 0, 1)


def _blocks(y_XT: Floats) -> Floats:
    """Means of up to BLOCKS blocks of consecutive evaluations [X, F], standardised."""
    pieces = np.array_split(y_XT, min(BLOCKS, y_XT.shape[1]), axis=1)
    Z_XF = np.stack([piece.mean(1) for piece in pieces], axis=1)
    return (Z_XF - Z_XF.mean(0)) / np.maximum(Z_XF.std(0), 1e-12)


def _table(fit: Draws, problem: Problem, plan: Plan, objective: str, budget: float) -> pd.DataFrame:
    """The rows of `allocate`."""
    offers = problem.offers
    bought = {(offers[k].kind, offers[k].index): offers[k].compute[i] for k, i in plan.items()}
    alone, payoff_N, p_N = problem.alone(), problem.payoff_XN.mean(0), problem.p_best()
    R, J, recipe_R = len(fit.runs), len(fit.recipes), fit.recipe_of_run
    if objective == "pick_best":
        payoff = {"run": ceiling(fit, "run").mean(0), "recipe": payoff_N}
        p_best = {"run": p_N[recipe_R], "recipe": p_N}
    else:
        payoff = {"run": payoff_N[:R], "recipe": payoff_N[R:]}
        p_best = {"run": p_N[:R], "recipe": np.bincount(recipe_R, p_N[:R], J)}
    parts = []
    for kind, yes, no in (("run", "continue", "stop"), ("recipe", "add seed", "no seed")):
        keys = [(kind, i) for i in range(len(fit.names(kind)))]
        part = pd.DataFrame({"kind": kind, "name": fit.names(kind)})
        part["action"] = [yes if key in bought else no for key in keys]
        part["compute"] = [bought.get(key, 0.0) for key in keys]
        part["payoff"], part["p_best"] = payoff[kind], p_best[kind]
        part["offered"] = [alone.get(key, (np.nan, np.nan))[0] for key in keys]
        part["value"] = [alone.get(key, (np.nan, np.nan))[1] for key in keys]
        part["value_per_compute"] = part["value"] / part["offered"]
        more = gain(fit, budget, by=kind)
        for column in ("mean", "q05", "q95"):
            part[f"gain_{column}"] = more[column]
        part["extrapolation"], part["prior_share"] = more["extrapolation"], more["prior_share"]
        part["status"] = status(fit, kind)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
