"""Runs without a curve to follow: those that fell, and those that have not begun to rise.

A run that fell (`rlx.scaling.departure`) stays at its last level, up to
FALLEN_SD sqrt(1 + log(C / last C)), neither recovering nor collapsing. The curve of a run that has
not begun to rise comes from its siblings or the prior: it may follow it, or never rise. In a share
of the draws (`Doubt.stays`) it stays at its level. Each draw of a recipe is one of its runs: if two
of three fell, two thirds of the draws did. That one recipe recovers or collapses says nothing about
another: the levels of recipes that fell are independent of each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.scaling.doubt import Doubt, random
from rlx.scaling.draws import Draws

Floats = NDArray[np.float64]

FALLEN_SD = 0.08  # of the pass rate of a run that fell; measured on falls of sweep=hard_mix
FLAT_SD = 0.02  # of a run that has not begun to rise
LAST = 3  # evaluations whose mean is the level of such a run
RISE = 2.0  # standard errors


class Fates(NamedTuple):
    """The draws that stay at a level beyond the last compute, [X, N]."""

    stays_XN: NDArray[np.bool_]
    level_N: Floats
    sd_N: Floats
    from_N: Floats  # compute of the level


def fallen(fit: Draws) -> dict[int, tuple[float, float]]:
    """Of every run that fell: the mean of its last evaluations, fitted or not, and the last
    compute."""
    out = {}
    for run, z in fit.departed.items():
        if z < 0:
            rows = fit.evals.frame.loc[lambda frame, run=run: frame["run"] == run]
            level = float(rows["value"].iloc[-LAST:].mean())
            out[fit.runs.index(run)] = (level, float(rows["compute"].iloc[-1]))
    return out


def has_risen(fit: Draws) -> NDArray[np.bool_]:
    """Whether a run's last third is above its first, or above R0, by RISE standard errors."""
    value_RM, sd_RM = np.asarray(fit.tree["observed_data"]["value"]), fit.constant("stderr")
    R0_XR = fit.R0("run")
    risen = []
    for r, (value, sd) in enumerate(zip(value_RM, sd_RM, strict=True)):
        seen = np.isfinite(value)
        y, m = value[seen], max(int(seen.sum()) // 3, 1)
        scatter = np.diff(y).std() / 2**0.5 if len(y) > 1 else 0.0
        var = np.square(np.where(np.isfinite(sd[seen]), sd[seen], scatter)).mean() / m
        over_first = y[-m:].mean() - y[:m].mean() - RISE * np.sqrt(2 * var)
        over_R0 = y[-m:].mean() - R0_XR[:, r].mean() - RISE * np.sqrt(var + R0_XR[:, r].var())
        risen.append(max(over_first, over_R0) > 0)
    return np.array(risen)


def fates(fit: Draws, doubt: Doubt | None, by: str) -> Fates | None:
    """Fates of the runs, or the recipes; None if all follow their curves."""
    R, X = len(fit.runs), len(fit.site("theta_run"))
    fell, frame = fallen(fit), fit.evals.frame
    stays_XR, level_R = np.zeros((X, R), bool), np.zeros(R)
    sd_R, from_R = np.full(R, FLAT_SD), fit.last_compute("run").copy()
    rng = random("fate")
    for r, (level, C) in fell.items():
        stays_XR[:, r], level_R[r], sd_R[r], from_R[r] = True, level, FALLEN_SD, C
    share = 0.0 if doubt is None else doubt.stays
    flat_R = ~has_risen(fit) if share else np.zeros(R, bool)
    for r in (r for r in np.flatnonzero(flat_R) if r not in fell):
        stays_XR[:, r] = rng.random(X) < share
        level_R[r] = frame.loc[frame["run"] == fit.runs[r], "value"].iloc[-LAST:].mean()
    if not stays_XR.any():
        return None
    if by == "run":
        return Fates(stays_XR, level_R, sd_R, from_R)
    return _of_recipes(fit, Fates(stays_XR, level_R, sd_R, from_R), rng)


def _of_recipes(fit: Draws, runs: Fates, rng: np.random.Generator) -> Fates:
    """Each draw of a recipe has the fate of one of its runs, at the mean level of those staying."""
    X, J = len(runs.stays_XN), len(fit.recipes)
    stays_XJ, level_J, sd_J = np.zeros((X, J), bool), np.zeros(J), np.zeros(J)
    from_J = fit.last_compute("recipe")
    for j in range(J):
        mine = np.flatnonzero(fit.recipe_of_run == j)
        stays_XJ[:, j] = runs.stays_XN[np.arange(X), rng.choice(mine, X)]
        stuck = mine[runs.stays_XN[:, mine].any(0)]
        if len(stuck):
            level_J[j], sd_J[j] = runs.level_N[stuck].mean(), runs.sd_N[stuck].max()
            from_J[j] = max(from_J[j], runs.from_N[stuck].max())
    return Fates(stays_XJ, level_J, sd_J, from_J)


def level_noise(fit: Draws) -> Floats:
    """Standard normals [X, J] of the levels: one column for all recipes, in an order of its own for
    each but the first of those with a run that fell."""
    z_X = random("level").normal(size=len(fit.site("theta_run")))
    z_XJ = np.repeat(z_X[:, None], len(fit.recipes), axis=1)
    rng = random("fallen")
    for j in sorted({int(fit.recipe_of_run[r]) for r in fallen(fit)})[1:]:
        z_XJ[:, j] = rng.permutation(z_X)
    return z_XJ


def held(R_XNC: Floats, C_NC: Floats, last_N: Floats, fates: Fates, z_XN: Floats) -> Floats:
    """Pass rates; in draws that stay, their level beyond the last fitted compute."""
    ahead_NC = np.log(np.maximum(C_NC / fates.from_N[:, None], 1.0))
    sd_NC = fates.sd_N[:, None] * np.sqrt(1 + ahead_NC)
    level_XNC = np.clip(fates.level_N[:, None] + sd_NC * z_XN[..., None], 0.0, 1.0)
    stays_XNC = fates.stays_XN[..., None] & (last_N[:, None] < C_NC)
    return np.where(stays_XNC, level_XNC, R_XNC)
