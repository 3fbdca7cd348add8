"""The pass rate of every draw at any compute, and the compute to reach a pass rate.

All questions about a pass rate at some compute use `paths`, those about the compute to a pass rate
`reach` and those about ceilings `ceiling`, so that what a posterior adds to its curves is added
here, once for all of them: the discrepancy beyond the data (`doubt`), and runs without a curve to
follow (`fate`). A draw of a run is one path: at several computes, or asked twice, it is consistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlx.scaling.doubt import PAST, Noise, doubted, noise
from rlx.scaling.draws import Draws
from rlx.scaling.fate import Fates, fates, held, level_noise

Floats = NDArray[np.float64]

HORIZON = 10.0  # times the last compute, where ceilings are compared
REACHABLE = 1000.0  # times the last compute, up to which a pass rate may be reached
STEPS = np.geomspace(1.0, REACHABLE, 64)  # computes at which a path is evaluated by `reach`
MOST_CELLS = 4_000_000  # of an array


class Beyond(NamedTuple):
    """What a fit adds to its curves, for runs or for recipes."""

    noise: Noise | None
    recipe_N: NDArray[np.int64]
    fates: Fates | None
    z_XN: Floats  # of the levels of runs without a curve


def beyond(fit: Draws, by: str) -> Beyond:
    """Cached in the fit, since it is the same in every question."""
    if by not in fit.kept:
        X, J = len(fit.site("theta_run")), len(fit.recipes)
        recipe_N = fit.recipe_of_run if by == "run" else np.arange(J)
        drawn = None if fit.doubt is None else noise(X, J, fit.doubt)
        z_XN = level_noise(fit)[:, recipe_N]
        fit.kept[by] = Beyond(drawn, recipe_N, fates(fit, fit.doubt, by), z_XN)
    return fit.kept[by]


def paths(
    fit: Draws,
    compute: Floats,
    by: str = "run",
    seeds: str = "typical",
    only: Sequence[int] | None = None,
) -> Floats:
    """Latent pass rates [X, N, C] at computes [C] or [N, C], with the discrepancy beyond the data.

    Args:
        fit: the posterior.
        compute: in the unit of the fit.
        by: "run" or "recipe".
        seeds: of a recipe, its "typical" seed or a "new" one.
        only: indices of the runs or recipes that make the N; default all.
    """
    index = list(range(len(fit.names(by))) if only is None else only)
    curves = fit.curves(by, seeds).only(only)
    last_N, more = fit.last_compute(by)[index], beyond(fit, by)
    R_XNC = curves.at(compute)
    C_NC = np.broadcast_to(compute, R_XNC.shape[1:])
    if not (C_NC > last_N[:, None]).any():
        return R_XNC
    if more.noise is not None and fit.doubt is not None:
        with np.errstate(divide="ignore"):
            L_NC = np.log(C_NC / last_N[:, None])
        now_before = curves.at(last_N[:, None] / np.array([1.0, PAST]))
        R_XNC = doubted(
            R_XNC,
            L_NC,
            *np.moveaxis(now_before, -1, 0),
            more.noise,
            more.recipe_N[index],
            fit.doubt,
        )
    if more.fates is not None:
        mine = Fates(more.fates.stays_XN[:, index], *(x[index] for x in more.fates[1:]))
        R_XNC = held(R_XNC, C_NC, last_N, mine, more.z_XN[:, index])
    return R_XNC


def reach(
    fit: Draws,
    target: ArrayLike,
    by: str = "recipe",
    only: Sequence[int] | None = None,
) -> Floats:
    """Compute [X, N] at which a run first reaches `target` (one number, or [X, N]).

    Up to the last compute by the curve's inverse, 0 if it starts above; beyond, the path is
    evaluated at STEPS and interpolated linearly in log C; inf if the target is not reached within
    REACHABLE times the last compute. Without doubt and fates it is the inverse alone, inf if the
    ceiling is lower.
    """
    index = list(range(len(fit.names(by))) if only is None else only)
    C_XN = fit.curves(by).only(only).compute_to(target)
    more, last_N = beyond(fit, by), fit.last_compute(by)[index]
    if more.noise is None and more.fates is None:
        return C_XN
    target_XN = np.broadcast_to(target, C_XN.shape)
    out = np.where(C_XN <= last_N, C_XN, np.inf)
    size = max(1, MOST_CELLS // (len(C_XN) * len(STEPS)))
    for start in range(0, len(index), size):
        part = slice(start, start + size)
        R_XNC = paths(fit, last_N[part, None] * STEPS, by, only=index[part])
        later_XN = last_N[part] * first_passage(R_XNC, target_XN[:, part])
        out[:, part] = np.minimum(out[:, part], later_XN)
    return out


def first_passage(R_XNC: Floats, target_XN: Floats) -> Floats:
    """Of paths at STEPS, the step at which each first reaches its target, inf if none."""
    there_XNC = R_XNC >= target_XN[..., None]
    k_XN = there_XNC.argmax(-1)
    before_XN = np.maximum(k_XN - 1, 0)
    low, high = (np.take_along_axis(R_XNC, k[..., None], -1)[..., 0] for k in (before_XN, k_XN))
    rise = np.maximum(high - low, 1e-300)
    part_XN = np.where(k_XN > 0, np.clip((target_XN - low) / rise, 0.0, 1.0), 0.0)
    log_XN = np.log(STEPS)[before_XN] * (1 - part_XN) + np.log(STEPS)[k_XN] * part_XN
    return np.where(there_XNC.any(-1), np.exp(log_XN), np.inf)


def horizon(fit: Draws) -> float:
    """HORIZON times the largest compute of the study, where ceilings are compared."""
    return HORIZON * float(fit.evals.frame["compute"].max())


def ceiling(fit: Draws, by: str = "recipe") -> Floats:
    """Ceilings A [X, N] for all questions: the pass rate at `horizon`; without doubt, the
    asymptotes of the curves."""
    if fit.doubt is None:
        return fit.curves(by)["A"]
    return paths(fit, np.array([horizon(fit)]), by)[..., 0]
