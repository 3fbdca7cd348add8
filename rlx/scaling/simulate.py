"""Simulated studies with known truth: curves, seeds, wander and counts, drawn from the model.

    curve = {"A": 0.61, "B": 1.5, "C_mid": 3.0, "R0": 0.25}
    evals, truth = sc.simulate({"dapo": curve, "cispo": curve | {"A": 0.66}}, compute=4.0)

    theta_j = (logit((A_j - R0_j) / (1 - R0_j)), log C_mid_j, log B_j)        recipe j
    theta_r ~ N(theta_j, seed_sd)                                             run r of recipe j
    w_m     = rho w_(m-1) + noise, stationary sd wander_sd, rho = exp(-1 / wander_length)
    passes  ~ Binomial(trials, R_r(C_m) + w_m),   C_m = compute m / points    one evaluation

and one evaluation of each R0 of the same size, shared by the runs that start there. The functions
under "parts" take a random generator, for studies whose curves are in no family
(experiments/calibration).

Letters: J recipes, R runs, M evaluations, C computes, Q = 3 coordinates of theta.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.doubt import PAST, Doubt, Noise, doubted, noise
from rlx.scaling.draws import Curves
from rlx.scaling.families import FAMILIES

Floats = NDArray[np.float64]

SEED_SD = (0.10, 0.12, 0.06)  # of a, log C_mid and log B, as the priors have it
WANDER_SD, WANDER_LENGTH = 0.008, 2.8  # pass rate; evaluations
TRIALS = 4000


@dataclass(frozen=True)
class Truth:
    """What a simulated study was drawn from."""

    recipes: list[str]
    runs: list[str]
    recipe_R: NDArray[np.int64]
    compute: float  # of the last evaluation
    curves: dict[str, Curves]  # [1, J] of the typical seeds under "recipe", [1, R] under "run"
    doubt: Doubt | None  # beyond the last evaluation
    seed: int

    @cached_property
    def noise(self) -> Noise | None:
        """One draw of the random numbers of the doubt."""
        if self.doubt is None:
            return None
        return noise(1, len(self.recipes), self.doubt, np.random.default_rng(self.seed))

    def at(self, compute_C: ArrayLike, by: str = "recipe") -> Floats:
        """Pass rates [J, C] of the recipes' typical seeds, or [R, C] of the runs, without wander
        and sampling noise; beyond the last evaluation with the doubt, if there is one."""
        curves, compute_C = self.curves[by], np.asarray(compute_C, float)
        recipe_N = np.arange(len(self.recipes)) if by == "recipe" else self.recipe_R
        return path(curves, compute_C, self.compute, self.noise, recipe_N, self.doubt)


def path(
    curves: Curves,
    compute_C: Floats,
    last: float,
    noise: Noise | None,
    recipe_N: NDArray[np.int64],
    doubt: Doubt | None,
) -> Floats:
    """Pass rates [N, C] of curves [1, N], beyond compute `last` with the doubt; see Truth.at."""
    R_XNC = curves.at(compute_C)
    if doubt is not None and noise is not None:
        with np.errstate(divide="ignore"):
            L_NC = np.broadcast_to(np.log(compute_C / last), R_XNC.shape[1:])
        now_before = curves.at(last / np.array([1.0, PAST]))
        R_XNC = doubted(R_XNC, L_NC, *np.moveaxis(now_before, -1, 0), noise, recipe_N, doubt)
    return R_XNC[0]


def simulate(
    recipes: Mapping[str, Mapping[str, float]],
    *,
    seeds: int = 3,
    points: int = 20,
    compute: float,
    family: str = "sigmoid",
    seed_sd: Sequence[float] = SEED_SD,
    wander_sd: float = WANDER_SD,
    wander_length: float = WANDER_LENGTH,
    trials: int = TRIALS,
    doubt: Doubt | None = None,
    seed: int = 0,
) -> tuple[Evals, Truth]:
    """A study and what it was drawn from, a pure function of its arguments.

    Args:
        recipes: for each, A, B, C_mid, R0 and the family's own parameters of its typical seed.
        seeds: runs of a recipe.
        points: evaluations of a run, at equal steps of compute, besides the one at C = 0.
        compute: of the last evaluation, in the unit of C_mid.
        family: of the curves, a name in `families.FAMILIES`.
        seed_sd: sds of a, log C_mid and log B between the seeds of a recipe.
        wander_sd, wander_length: of the policy's wander, a pass rate and a number of evaluations.
        trials: graded samples of an evaluation.
        doubt: that of the true curves beyond the last evaluation; None: they stay in their family.
        seed: of everything drawn.

    Raises:
        InputError: an argument out of its range, a parameter missing or unknown.
    """
    check_curves(recipes, family)
    check_design(seeds, points, compute, seed_sd, wander_sd, wander_length, trials)
    rng = np.random.default_rng(seed)
    names = list(recipes)
    recipe_R = np.repeat(np.arange(len(names)), seeds)
    p_J = {k: np.array([recipes[j][k] for j in names]) for k in recipes[names[0]]}
    theta_JQ = theta_of(p_J)
    theta_RQ = of_seeds(rng, theta_JQ, seeds, np.asarray(seed_sd))
    curves = {
        "recipe": curves_of(theta_JQ, p_J, family),
        "run": curves_of(theta_RQ, {k: x[recipe_R] for k, x in p_J.items()}, family),
    }
    runs = [f"{names[j]}-s{g}" for j in range(len(names)) for g in range(seeds)]
    compute_M: Floats = compute / points * np.arange(1.0, points + 1)
    rho = float(np.exp(-1 / wander_length))
    wander_RM = wander(rng, len(runs), points, wander_sd, rho)
    value_RM = evaluate(rng, curves["run"].at(compute_M)[0] + wander_RM, trials)
    R0_S, start_R = np.unique(p_J["R0"][recipe_R], return_inverse=True)
    first_R1 = evaluate(rng, R0_S, trials)[start_R][:, None]
    evals = as_evals(
        np.r_[0.0, compute_M],
        np.hstack([first_R1, value_RM]),
        trials,
        run=runs,
        recipe=[names[j] for j in recipe_R],
        seed=np.tile(np.arange(seeds), len(names)),
        start=[f"base{s}" for s in start_R],
        title="simulated",
    )
    return evals, Truth(names, runs, recipe_R, float(compute), curves, doubt, seed)


def check_curves(recipes: Mapping[str, Mapping[str, float]], family: str) -> None:
    """Raises InputError unless the parameters of every recipe give a rising curve."""
    if family not in FAMILIES:
        raise InputError("family", family, "unknown", f"use {', '.join(FAMILIES)}")
    if not recipes:
        raise InputError("recipes", "", "none", "give one or more")
    names = ("A", "B", "C_mid", "R0", *FAMILIES[family].own)
    for recipe, p in recipes.items():
        if set(p) != set(names):
            reason = f"recipe {recipe}: not the parameters of {family}"
            raise InputError("recipes", ", ".join(p), reason, f"give {', '.join(names)}")
        if not 0 <= p["R0"] < p["A"] < 1:
            reason = f"recipe {recipe}: not above R0 = {p['R0']:g} and below 1"
            raise InputError("A", f"{p['A']:g}", reason, "give 0 <= R0 < A < 1")
        for name in (n for n in names if n not in ("A", "R0")):
            if not (p[name] > 0 and np.isfinite(p[name])):
                reason = f"recipe {recipe}: not positive"
                raise InputError(name, f"{p[name]:g}", reason, "give a positive number")
        for name, own in FAMILIES[family].own.items():
            if own.link == "logistic" and p[name] >= 1:
                reason = f"recipe {recipe}: a share of 1 or more"
                raise InputError(name, f"{p[name]:g}", reason, "give less than 1")


def check_design(
    seeds: int,
    points: int,
    compute: float,
    seed_sd: Sequence[float],
    wander_sd: float,
    wander_length: float,
    trials: int,
) -> None:
    """Raises InputError on the first argument that is out of its range."""
    for key, count, least in (("seeds", seeds, 1), ("points", points, 2), ("trials", trials, 1)):
        if not (count >= least and count == int(count)):
            raise InputError(key, count, "not a count", f"give a whole number, at least {least}")
    for key, x in (("compute", compute), ("wander_length", wander_length)):
        if not (x > 0 and np.isfinite(x)):
            raise InputError(key, f"{x:g}", "not positive", "give a positive number")
    if not wander_sd >= 0:
        raise InputError("wander_sd", f"{wander_sd:g}", "negative", "give 0 or more")
    if len(seed_sd) != 3 or not min(seed_sd) >= 0:
        said = ", ".join(f"{x:g}" for x in seed_sd)
        raise InputError("seed_sd", said, "not three sds", "give those of a, log C_mid and log B")


# ------------------------------------------------------------------ parts


def theta_of(p_N: Mapping[str, Floats]) -> Floats:
    """(a, log C_mid, log B) [N, Q] of parameters [N]."""
    a_N = logit((p_N["A"] - p_N["R0"]) / (1 - p_N["R0"]))
    return np.stack([a_N, np.log(p_N["C_mid"]), np.log(p_N["B"])], -1)


def curves_of(theta_NQ: Floats, p_N: Mapping[str, Floats], family: str) -> Curves:
    """Curves [1, N] of theta, with the R0 and the family's own parameters of `p_N`."""
    a_N, c_N, b_N = theta_NQ.T
    of_theta = {"A": p_N["R0"] + (1 - p_N["R0"]) * expit(a_N), "C_mid": np.exp(c_N)}
    p = {**p_N, **of_theta, "B": np.exp(b_N)}
    return Curves(FAMILIES[family], {k: x[None] for k, x in p.items()})


def of_seeds(rng: np.random.Generator, theta_JQ: Floats, seeds: int, sd_Q: Floats) -> Floats:
    """theta of every run, [R, Q]."""
    return np.repeat(theta_JQ, seeds, axis=0) + sd_Q * rng.normal(size=(len(theta_JQ) * seeds, 3))


def wander(rng: np.random.Generator, R: int, M: int, sd: float, rho: float) -> Floats:
    """A stationary AR(1) process per run, [R, M]."""
    w_RM = sd * rng.normal(size=(R, M))
    for m in range(1, M):
        w_RM[:, m] = rho * w_RM[:, m - 1] + np.sqrt(1 - rho**2) * w_RM[:, m]
    return w_RM


def evaluate(rng: np.random.Generator, rate: Floats, trials: int) -> Floats:
    """Values of evaluations of policies whose pass rates are `rate`."""
    return rng.binomial(trials, np.clip(rate, 0, 1)) / trials


def as_evals(
    compute_M: Floats,
    value_RM: Floats,
    trials: int,
    *,
    run: Sequence[str],
    recipe: Sequence[str],
    seed: ArrayLike,
    start: Sequence[str],
    title: str,
) -> Evals:
    """Evaluations of R runs at the same computes, with the labels of each run."""
    R, M = value_RM.shape
    value = value_RM.ravel()
    p = (value * trials + 0.5) / (trials + 1)
    frame = pd.DataFrame(
        {
            "run": np.repeat(run, M),
            "recipe": np.repeat(recipe, M),
            "seed": np.repeat(seed, M),
            "axes": "",
            "compute": np.tile(compute_M, R),
            "value": value,
            "stderr": np.sqrt(p * (1 - p) / trials),
            "passes": value * trials,
            "trials": float(trials),
            "truth": np.nan,
            "start": np.repeat(start, M),
        }
    )
    return Evals(frame, title=title)
