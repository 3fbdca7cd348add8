"""Runs that leave their curve: a pass rate that turns and falls cannot be part of a sigmoid.

For every run and every evaluation k the question is whether a ramp d(C) = max(C - C_k, 0) explains
what the run's own curve leaves over, whatever its parameters are. With Sigma the covariance of
sampling noise and wander, J the derivative of the curve by (a, c, b) and r the residuals,

    z = d' V^-1 r / sqrt(d' V^-1 d),      V = Sigma + FREE^2 J J'

is a standard normal if nothing happened (a score test, Rao 1948). A collapse inflates the fitted
wander that it is measured with, so z is divided by the robust spread of all innovations where that
is below 1.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.typing import NDArray

from rlx.scaling.coordinates import Sites, columns_of
from rlx.scaling.model import Study, wander_filter, whiten

Z_MAX = 4.5  # of one study's some 400 tests, correlated; one false alarm in a few hundred studies
FREE = 1.0  # sd that a, c and b may move by to explain the residuals
MIN_BEFORE, MIN_AFTER = 3, 2  # evaluations before a turn, and after it


@partial(jax.jit, static_argnames="curve")
def _scores(study: Study, sites: Sites, curve: str) -> Array:
    """z of a ramp from every evaluation on, [R, M]."""
    columns_MRn = columns_of(study, sites, sites["theta_run"], curve)
    C_MR = jnp.exp(study.log_C_RM.T)
    ramp_MRk = jnp.maximum(C_MR[..., None] - C_MR.T[None], 0.0)
    columns_MRn = jnp.concatenate([columns_MRn[..., jnp.array([0, 1, 2, 5])], ramp_MRk], -1)
    white = whiten(wander_filter(study, sites), columns_MRn)
    J, residual, ramp = white[..., :3], white[..., 3], white[..., 4:]
    seen_MR = study.seen_RM.T > 0
    spread = jnp.nanmedian(jnp.where(seen_MR, jnp.abs(residual), jnp.nan)) / 0.6745
    precision_RQQ = jnp.einsum("mrp,mrq->rpq", J, J) + jnp.eye(3)[None] / FREE**2
    J_ramp = jnp.einsum("mrp,mrk->rpk", J, ramp)
    solved = jnp.linalg.solve(precision_RQQ, J_ramp)
    J_residual = jnp.einsum("mrp,mr->rp", J, residual)
    top = jnp.einsum("mrk,mr->rk", ramp, residual) - jnp.einsum("rpk,rp->rk", solved, J_residual)
    square = (ramp**2).sum(0) - (J_ramp * solved).sum(1)
    return top / jnp.sqrt(jnp.maximum(square, 1e-12)) / jnp.minimum(spread, 1.0)


def departures(study: Study, sites: Sites, curve: str) -> dict[int, tuple[int, float]]:
    """run -> (evaluation k after which it left, z), for every run with |z| > Z_MAX."""
    z_RM = np.asarray(_scores(study, sites, curve))
    found = {}
    for r, n in enumerate(np.asarray(study.seen_RM).sum(1).astype(int)):
        inside = slice(MIN_BEFORE - 1, n - MIN_AFTER)
        z = z_RM[r, inside]
        if len(z) and np.abs(z).max() > Z_MAX:
            k = int(np.abs(z).argmax())
            found[r] = (k + MIN_BEFORE - 1, float(z[k]))
    return found


def without_falls(
    study: Study, found: dict[int, tuple[int, float]]
) -> tuple[Study, NDArray[np.bool_]]:
    """The study without the evaluations after a fall, and which runs fell."""
    seen_RM = np.array(study.seen_RM)
    fell_R = np.zeros(len(seen_RM), bool)
    for r, (k, z) in found.items():
        if z < 0:
            seen_RM[r, k + 1 :] = 0.0
            fell_R[r] = True
    return study._replace(seen_RM=jnp.asarray(seen_RM)), fell_R
