"""Where a run goes: the pass rate of every draw at any compute, and the compute that it takes.

Every question about a pass rate at some compute goes through `paths`, every one about the compute
to a pass rate through `reach` and every one about ceilings through `ceiling`, so that what a
posterior believes beyond its curves is said here, once for all of them. A draw of a run is one
path: asked at several computes, or twice, it answers as one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlx.scaling.draws import DRAWS_SEED, Draws

Floats = NDArray[np.float64]

FALLEN_SD = 0.08  # of the pass rate of a run that fell; measured on falls of sweep=hard_mix
LAST = 3  # evaluations whose mean is the level of such a run


def paths(
    fit: Draws,
    compute: Floats,
    by: str = "run",
    seeds: str = "typical",
    only: Sequence[int] | None = None,
) -> Floats:
    """Latent pass rates [X, N, C] at computes [C] or [N, C].

    A run that fell has no curve beyond its fall: it stays at its last level, give or take
    FALLEN_SD sqrt(1 + log(C / last C)), which promises neither recovery nor ruin.

    Args:
        fit: the posterior.
        compute: in the unit of the fit.
        by: "run" or "recipe".
        seeds: of a recipe, its "typical" seed or a "new" one.
        only: places of the runs or recipes that are asked about, the N; default all.
    """
    R_XNC = fit.curves(by, seeds).only(only).at(compute)
    if by == "run":
        asked = range(len(fit.runs)) if only is None else only
        z_X1 = np.random.default_rng(DRAWS_SEED).normal(size=(len(R_XNC), 1))
        C_max_R, fell = fit.constant("C_max"), fallen(fit)
        C_NC = np.broadcast_to(compute, R_XNC.shape[1:])
        for n, r in enumerate(asked):
            if r in fell:
                level, C_last = fell[r]
                sd_C = FALLEN_SD * np.sqrt(1 + np.log(np.maximum(C_NC[n] / C_last, 1)))
                stays_XC = np.clip(level + sd_C * z_X1, 0, 1)
                R_XNC[:, n] = np.where(C_max_R[r] < C_NC[n], stays_XC, R_XNC[:, n])
    return R_XNC


def fallen(fit: Draws) -> dict[int, tuple[float, float]]:
    """Of every run that fell: mean of its last evaluations, also those not fitted, and the compute
    of the last one."""
    out = {}
    for run, z in fit.departed.items():
        if z < 0:
            rows = fit.evals.frame.loc[lambda frame, run=run: frame["run"] == run]
            level = float(rows["value"].iloc[-LAST:].mean())
            out[fit.runs.index(run)] = (level, float(rows["compute"].iloc[-1]))
    return out


def reach(
    fit: Draws,
    target: ArrayLike,
    by: str = "recipe",
    only: Sequence[int] | None = None,
) -> Floats:
    """Compute [X, N] at which the curve reaches `target` (one number, or [X, N]), inf where it
    never does, 0 where it starts above."""
    return fit.curves(by).only(only).compute_to(target)


def ceiling(fit: Draws, by: str = "recipe") -> Floats:
    """Ceilings A [X, N] as questions compare them: the asymptotes of the curves."""
    return fit.curves(by)["A"]
