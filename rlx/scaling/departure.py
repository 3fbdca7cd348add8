"""Runs that leave their curve: a pass rate that turns and falls cannot be part of a sigmoid.

For every run and every evaluation k the test asks whether a ramp d(C) = max(C - C_k, 0) explains
residuals that the run's own curve cannot, whatever its parameters are. With Sigma the covariance of
sampling noise and wander, J the derivative of the curve by (a, c, b) and r the residuals,

    z = d' V^-1 r / sqrt(d' V^-1 d),      V = Sigma + FREE^2 J J'

is a standard normal if the run follows its curve (a score test, Rao 1948). A collapse inflates the
fitted wander that it is measured with, so z is divided by the robust spread of all innovations if
that is below 1.

A clear fall of the pass rate can be seen without a curve. Before anything is fitted, the best mean
of w evaluations in a row is compared with the mean of all that came later,

    z = (best - later) / sqrt(v / w + v' / min(n', MOST_LATER))     all w in WIDTHS, all turns

with v the sampling variance or, where it is larger, that of the run's own steps. A run with z >
Z_DROP whose last evaluations lie LEAST_DROP below the best is cut at the best, so that neither its
own curve nor its siblings' wander has to explain the fall. A dip from which the run recovered does
not count, because the mean of all later evaluations includes the recovery.

Two things are tested on the pass rates themselves, because the score test cannot see them. A run
below its curve has fallen only if it is also below what it had reached; a run that never began to
rise has not fallen. And a run that falls from the start has no curve to measure the fall against,
so its last third is compared with its first.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from rlx.scaling.coordinates import Sites, columns_of
from rlx.scaling.model import Study, wander_filter, whiten

Floats = NDArray[np.float64]

Z_MAX = 4.5  # one false alarm in a few hundred studies, each with about 400 correlated tests
FREE = 1.0  # sd by which a, c and b may move to explain the residuals
MIN_BEFORE, MIN_AFTER = 3, 2  # evaluations before a turn, and after it
MIN_LATER = 3  # evaluations after a plain fall
TINY = 1e-12
LOWER = 2.0  # standard errors by which a fallen run lies below its best
Z_DROP = 6.0  # no false alarm in 3,400 simulated runs that never decline; their largest z is 4.9
LEAST_DROP = 0.02  # pass rate
WIDTHS = (1, 2, 3, 5, 8, 12)  # evaluations in a row whose mean may be the best
MOST_LATER = 12  # evaluations that count as independent
LEVEL_WANDER = 0.01  # sd of the wander of the mean of a third of a run, as the prior of wander_sd


@partial(jax.jit, static_argnames="curve")
def _scores(study: Study, sites: Sites, curve: str) -> Array:
    """z of a ramp from every evaluation on, [R, M]."""
    columns_MRn = columns_of(study, sites, sites["theta_run"], curve)
    C_MR = jnp.exp(study.log_C_RM.T)
    ramp_MRk = jnp.maximum(C_MR[..., None] - C_MR.T[None], 0.0)
    columns_MRn = jnp.concatenate([columns_MRn[..., jnp.array([0, 1, 2, -1])], ramp_MRk], -1)
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
    value_RM, var_RM = np.asarray(study.value_RM), np.asarray(study.var_RM)
    found = {}
    for r, n in enumerate(np.asarray(study.seen_RM).sum(1).astype(int)):
        value = value_RM[r, :n]
        scatter = np.diff(value).var() / 2 if n > 1 else 0.0
        var = np.where(var_RM[r, :n] > 0, var_RM[r, :n], scatter)
        inside = slice(MIN_BEFORE - 1, n - MIN_AFTER)
        z, sinks = z_RM[r, inside], sinking(value, var)
        k = int(np.abs(z).argmax()) if len(z) else 0
        if len(z) and np.abs(z[k]) > Z_MAX and (z[k] > 0 or below(value, var, k + MIN_BEFORE)):
            found[r] = (k + MIN_BEFORE - 1, float(z[k]))
        elif sinks < -Z_MAX:
            found[r] = (MIN_BEFORE - 1, sinks)
    return found


def drops(study: Study) -> dict[int, tuple[int, float]]:
    """run -> (evaluation k after which it fell, -z), for the runs with a clear fall."""
    value_RM, var_RM = np.asarray(study.value_RM), np.asarray(study.var_RM)
    found = {}
    for r, n in enumerate(np.asarray(study.seen_RM).sum(1).astype(int)):
        drop = largest_drop(value_RM[r, :n], var_RM[r, :n])
        if drop is not None:
            found[r] = drop
    return found


def largest_drop(value_M: Floats, var_M: Floats) -> tuple[int, float] | None:
    """(k, -z) of the module's docstring; None for a run that did not fall."""
    n = len(value_M)
    if n < MIN_BEFORE + MIN_LATER:
        return None
    steps = np.diff(value_M)
    var_M = np.where(var_M > 0, var_M, steps.var() / 2)
    var_M = np.maximum(var_M, (np.median(np.abs(steps)) / 0.6745) ** 2 / 2)
    last = value_M[-max(MIN_LATER, n // 8) :].mean()
    turn_T = np.arange(2, n - MIN_LATER + 1)
    later_T = np.array([value_M[turn:].mean() for turn in turn_T])
    var_T = np.array([var_M[turn:].mean() for turn in turn_T]) / np.minimum(n - turn_T, MOST_LATER)
    found = (0.0, 0, np.inf)
    for w in (w for w in WIDTHS if w <= turn_T[-1]):
        mean_I = np.convolve(value_M, np.ones(w) / w, "valid")
        var_I = sliding_window_view(var_M, w).mean(-1) / w
        top_I = np.maximum.accumulate(mean_I)
        first_I = np.maximum.accumulate(np.arange(len(mean_I)) * np.r_[1, mean_I[1:] > top_I[:-1]])
        after_T = turn_T >= w
        i_T = first_I[turn_T[after_T] - w]
        z_T = (mean_I[i_T] - later_T[after_T]) / np.sqrt(var_I[i_T] + var_T[after_T] + TINY)
        found = max(found, *zip(z_T, i_T + w - 1, mean_I[i_T], strict=True))
    z, k, best = found
    return (int(k), -float(z)) if z > Z_DROP and best - last > LEAST_DROP else None


def below(value_M: Floats, var_M: Floats, n: int) -> bool:
    """Whether the evaluations after the first n lie below the best three in a row before."""
    mean, var = (np.convolve(x, np.ones(3) / 3, "valid") for x in (value_M[:n], var_M[:n]))
    top, later = mean.argmax(), len(value_M) - n
    se = np.sqrt(var[top] / 3 + var_M[n:].mean() / later)
    return bool(value_M[n:].mean() < mean[top] - LOWER * se)


def thirds(value_M: Floats, var_M: Floats) -> tuple[Floats, Floats]:
    """Mean of the first and of the last third of a run's evaluations, and their variances."""
    m = max(len(value_M) // 3, 1)
    parts = (slice(0, m), slice(len(value_M) - m, None))
    mean = np.array([value_M[part].mean() for part in parts])
    return mean, np.array([var_M[part].mean() / m + LEVEL_WANDER**2 for part in parts])


def sinking(value_M: Floats, var_M: Floats) -> float:
    """z of the last third against the first; 0 for a run with too few evaluations."""
    if len(value_M) < MIN_BEFORE + MIN_AFTER:
        return 0.0
    (first, last), var = thirds(value_M, var_M)
    return float((last - first) / np.sqrt(var.sum()))


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
