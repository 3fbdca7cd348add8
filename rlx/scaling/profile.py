"""Profile interval of a run's ceiling by least squares, and a solver for many small problems at
once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import f as f_distribution

from rlx.scaling.point import C_MID_ABOVE, TINY, PointFit, Window, fit_point, shapes_of, window_of

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

C_MID_FAR = 1e12  # in a profile, times the largest compute: a smaller bound would itself bound A


def profile_A(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    *,
    r0: float | str,
    weights: ArrayLike | None = None,
    drop_below: float = 0.0,
    prob: float = 0.90,
) -> tuple[float, float]:
    """Profile interval of the ceiling: the A that least squares does not reject.

        SSE(A) = min over C_mid, B (and R0) of sum_M w (y - curve)^2, with A held fixed
        interval = {A : SSE(A) <= SSE_min * (1 + F / (n - p))}

    F is the `prob` quantile of the F distribution with 1 and n - p degrees of freedom, for n points
    and p parameters: exact for a linear model with independent normal noise of equal, unknown
    variance. Noise that persists from one evaluation to the next makes the interval too short.

    Args:
        compute_M, value_M, r0, weights, drop_below: as in `fit_point`.
        prob: nominal coverage.

    Returns:
        lo, hi. hi is inf if the window does not bound the ceiling: A = 1, the highest pass rate, is
        not rejected. lo is the smallest possible A (R0, or 0 if R0 is fitted) if that is not
        rejected. With n <= p nothing is rejected.

    Raises:
        ValueError: as `fit_point`.

    Source: profile likelihood for a subset of nonlinear regression parameters (Bates and Watts
    1988, Nonlinear Regression Analysis, section 6.1).
    """
    window = window_of(compute_M, value_M, r0, weights, drop_below)
    fit = fit_point(compute_M, value_M, r0=r0, weights=weights, drop_below=drop_below)
    floor = window.R0 or 0.0
    spare = len(window.value_M) - window.n_parameters
    if spare <= 0:
        return floor, np.inf
    shapes = shapes_of(window)
    A_K = np.sort(np.append(np.linspace(floor, 1.0, 65), fit.A))
    sse_K = _profile(window, shapes, A_K)
    at_fit = window.root_w_M * (_levels(window, fit) - window.value_M)
    sse_K[A_K == fit.A] = least = min(float(at_fit @ at_fit), sse_K.min())
    limit = least * (1 + float(f_distribution.ppf(prob, 1, spare)) / spare)
    inside = np.flatnonzero(sse_K <= limit)
    first, last = inside[0], inside[-1]
    lo = (A_K[max(first - 1, 0)], A_K[first])  # rejected, kept
    hi = (A_K[min(last + 1, len(A_K) - 1)], A_K[last])
    for _ in range(4):  # each round narrows both brackets tenfold
        ends_2K = np.linspace((lo[0], hi[0]), (lo[1], hi[1]), 11, axis=1)
        kept_2K = _profile(window, shapes, ends_2K.ravel()).reshape(2, -1) <= limit
        kept_2K[:, -1] = True
        lo, hi = (
            (ends[max(k - 1, 0)], ends[k])
            for ends, k in zip(ends_2K, kept_2K.argmax(axis=1), strict=True)
        )
    return float(lo[1]), float(hi[1]) if last < len(A_K) - 1 else np.inf


def _levels(window: Window, fit: PointFit) -> Floats:
    """Values of a fitted curve at the points of a window."""
    return fit.R0 + (fit.A - fit.R0) * expit(fit.B * (window.log_C - np.log(fit.C_mid)))


def _profile(window: Window, shapes: tuple[Floats, Floats, Floats], A_K: Floats) -> Floats:
    """SSE of the best curve with each of K ceilings.

    The search starts in three basins, from the best shape of the grid in each: a bend within the
    data, a steep one (B > 1) after them, and slow growth that has not bent yet.
    """
    log_mid_G, log_B_G, f_GM = shapes
    A_K1, weight_M = A_K[:, None], window.root_w_M**2
    y_M = window.value_M if window.R0 is None else window.value_M - window.R0
    top_K1 = A_K1 if window.R0 is None else A_K1 - window.R0
    fy_G, ff_G = f_GM @ (weight_M * y_M), f_GM**2 @ weight_M
    sse_KG = y_M**2 @ weight_M - 2 * top_K1 * fy_G + top_K1**2 * ff_G
    if window.R0 is None:  # minus the part of y - A f explained by the best R0
        g_GM = 1 - f_GM
        gg_G = np.maximum(g_GM**2 @ weight_M, TINY)
        rest_KG = g_GM @ (weight_M * y_M) - A_K1 * ((f_GM * g_GM) @ weight_M)
        R0_KG = np.clip(rest_KG / gg_G, 0.0, A_K1)
        sse_KG += R0_KG * (R0_KG * gg_G - 2 * rest_KG)
    late_G, steep_G = log_mid_G > window.log_C.max(), log_B_G > 0
    basins = (~late_G, late_G & steep_G, late_G & ~steep_G)
    s_L = np.concatenate([np.where(b_G, sse_KG, np.inf).argmin(axis=1) for b_G in basins])
    A_L1 = np.tile(A_K1, (len(basins), 1))  # L = 3 K
    start_L2 = np.stack([log_mid_G[s_L], log_B_G[s_L]], axis=1)

    def errors(x_k2: Floats, k: Indices) -> tuple[Floats, Floats]:
        residual_kM, slope_kM2, _ = errors_of(window, A_L1[k], x_k2[:, :1], x_k2[:, 1:])
        return residual_kM, slope_kM2

    far_2 = window.hi[1:3] + [np.log(C_MID_FAR / C_MID_ABOVE), 0.0]
    sse_L = descend(errors, start_L2, window.lo[1:3], far_2)[1]
    return sse_L.reshape(len(basins), -1).min(axis=0)


def errors_of(
    window: Window, A_K1: Floats, log_mid_K1: Floats, log_B_K1: Floats
) -> tuple[Floats, Floats, Floats]:
    """Weighted residuals of K curves, slopes in (log C_mid, log B), and R0.

    A fitted R0 takes its best value in [0, A] given the rest, and the slopes include how R0 follows
    (variable projection, Kaufman 1975).
    """
    u_KM = window.log_C - log_mid_K1
    f_KM = expit(np.exp(log_B_K1) * u_KM)
    if window.R0 is not None:
        R0_K1 = np.full(A_K1.shape, window.R0)
    else:
        g_KM = window.root_w_M * (1 - f_KM)
        gg_K1 = np.maximum((g_KM**2).sum(axis=1, keepdims=True), TINY)
        rest_KM = window.root_w_M * (window.value_M - A_K1 * f_KM)
        free_K1 = (g_KM * rest_KM).sum(axis=1, keepdims=True) / gg_K1
        R0_K1 = np.clip(free_K1, 0.0, A_K1)
    gap_K1 = A_K1 - R0_K1
    residual_KM = window.root_w_M * (R0_K1 + gap_K1 * f_KM - window.value_M)
    rise_KM = window.root_w_M * gap_K1 * f_KM * (1 - f_KM) * np.exp(log_B_K1)
    at_zero_M = np.isneginf(window.log_C)  # where f is 0 for all shapes
    slope_KM2 = np.stack([-rise_KM, rise_KM * np.where(at_zero_M, 0.0, u_KM)], axis=2)
    if window.R0 is None:
        g_KM1 = g_KM[:, :, None] * (R0_K1 == free_K1)[:, :, None]
        follow_K12 = (g_KM1 * slope_KM2).sum(axis=1, keepdims=True) / gg_K1[:, :, None]
        slope_KM2 = slope_KM2 - g_KM1 * follow_K12
    return residual_KM, slope_KM2, R0_K1


def descend(
    errors: Callable[[Floats, Indices], tuple[Floats, Floats]],
    x_KQ: Floats,
    lo_Q: Floats,
    hi_Q: Floats,
) -> tuple[Floats, Floats]:
    """Damped Gauss-Newton (Levenberg-Marquardt) for K small problems at once, inside bounds.

    `errors(x_kQ, k)` gives the residuals_kM of the problems k at x_kQ, and their slopes_kMQ.
    Returns the best x_KQ and its sums of squared residuals. A problem ends when a step changes
    nothing by more than 1e-7.
    """
    k = np.arange(len(x_KQ))  # the problems still moving
    x_KQ, damping_K = x_KQ.copy(), np.full(len(x_KQ), 1e-3)
    residual_KM, slope_KMQ = errors(x_KQ, k)
    sse_K = (residual_KM**2).sum(axis=1)
    for _ in range(100):
        uphill_kQ = np.einsum("kmp,km->kp", slope_KMQ[k], residual_KM[k])
        pinned_kQ = (x_KQ[k] <= lo_Q) & (uphill_kQ > 0) | (x_KQ[k] >= hi_Q) & (uphill_kQ < 0)
        free_kMQ = np.where(pinned_kQ[:, None, :], 0.0, slope_KMQ[k])
        bend_kQQ = np.einsum("kmp,kmq->kpq", free_kMQ, free_kMQ)
        damped_kQ = damping_K[k, None] * np.einsum("kpp->kp", bend_kQQ) + 1e-30
        damped_kQQ = bend_kQQ + damped_kQ[:, :, None] * np.eye(x_KQ.shape[1])
        step_kQ1 = np.linalg.solve(damped_kQQ, np.where(pinned_kQ, 0.0, uphill_kQ)[:, :, None])
        trial_kQ = np.clip(x_KQ[k] - np.clip(step_kQ1[:, :, 0], -1.0, 1.0), lo_Q, hi_Q)
        trial_residual_kM, trial_slope_kMQ = errors(trial_kQ, k)
        trial_sse_k = (trial_residual_kM**2).sum(axis=1)
        better_k = trial_sse_k < sse_K[k]
        moving_k = np.abs(trial_kQ - x_KQ[k]).max(axis=1) > 1e-7
        damping_K[k] *= np.where(better_k, 0.2, 5.0)
        won = k[better_k]
        x_KQ[won], sse_K[won] = trial_kQ[better_k], trial_sse_k[better_k]
        residual_KM[won], slope_KMQ[won] = trial_residual_kM[better_k], trial_slope_kMQ[better_k]
        k = k[moving_k]
        if not k.size:
            break
    return x_KQ, sse_K
