"""Interval of a run's ceiling by least squares with the ceiling held fixed, and the solver of many
small problems at once that it takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import f as f_distribution

from rlx.scaling.point import C_MID_ABOVE, TINY, PointFit, Window, fit_point, shapes_of, window_of

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

C_MID_FAR = 1e12  # in a profile, of the largest compute: a smaller bound would itself bound A


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
        lo, hi. hi is inf where the window does not bound the ceiling: A = 1 is not rejected, and a
        pass rate cannot be higher. lo is the smallest possible A (R0, or 0 where R0 is fitted)
        where that is not rejected. With n <= p nothing is rejected.

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

    Three basins are descended from the best shape of the grid in each: a bend within the data, a
    steep one (B > 1) after them, and slow growth that has not bent yet.
    """
    log_mid_S, log_B_S, f_SM = shapes
    A_K1, weight_M = A_K[:, None], window.root_w_M**2
    y_M = window.value_M if window.R0 is None else window.value_M - window.R0
    top_K1 = A_K1 if window.R0 is None else A_K1 - window.R0
    fy_S, ff_S = f_SM @ (weight_M * y_M), f_SM**2 @ weight_M
    sse_KS = y_M**2 @ weight_M - 2 * top_K1 * fy_S + top_K1**2 * ff_S
    if window.R0 is None:  # minus what the best R0 explains of y - A f
        g_SM = 1 - f_SM
        gg_S = np.maximum(g_SM**2 @ weight_M, TINY)
        rest_KS = g_SM @ (weight_M * y_M) - A_K1 * ((f_SM * g_SM) @ weight_M)
        R0_KS = np.clip(rest_KS / gg_S, 0.0, A_K1)
        sse_KS += R0_KS * (R0_KS * gg_S - 2 * rest_KS)
    late_S, steep_S = log_mid_S > window.log_C.max(), log_B_S > 0
    basins = (~late_S, late_S & steep_S, late_S & ~steep_S)
    s_J = np.concatenate([np.where(b_S, sse_KS, np.inf).argmin(axis=1) for b_S in basins])
    A_J1 = np.tile(A_K1, (len(basins), 1))  # J = 3 K
    start_J2 = np.stack([log_mid_S[s_J], log_B_S[s_J]], axis=1)

    def errors(x_k2: Floats, k: Indices) -> tuple[Floats, Floats]:
        residual_kM, slope_kM2, _ = errors_of(window, A_J1[k], x_k2[:, :1], x_k2[:, 1:])
        return residual_kM, slope_kM2

    far_2 = window.hi[1:3] + [np.log(C_MID_FAR / C_MID_ABOVE), 0.0]
    sse_J = descend(errors, start_J2, window.lo[1:3], far_2)[1]
    return sse_J.reshape(len(basins), -1).min(axis=0)


def errors_of(
    window: Window, A_K1: Floats, log_mid_K1: Floats, log_B_K1: Floats
) -> tuple[Floats, Floats, Floats]:
    """Weighted residuals of K curves, slopes in (log C_mid, log B), and R0.

    A fitted R0 takes its best value in [0, A] given the rest, and the slopes are those of the
    residuals after R0 has followed (variable projection, Kaufman 1975).
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
    at_zero_M = np.isneginf(window.log_C)  # where f is 0 whatever the shape
    slope_KM2 = np.stack([-rise_KM, rise_KM * np.where(at_zero_M, 0.0, u_KM)], axis=2)
    if window.R0 is None:
        g_KM1 = g_KM[:, :, None] * (R0_K1 == free_K1)[:, :, None]
        follow_K12 = (g_KM1 * slope_KM2).sum(axis=1, keepdims=True) / gg_K1[:, :, None]
        slope_KM2 = slope_KM2 - g_KM1 * follow_K12
    return residual_KM, slope_KM2, R0_K1


def descend(
    errors: Callable[[Floats, Indices], tuple[Floats, Floats]],
    x_KP: Floats,
    lo_P: Floats,
    hi_P: Floats,
) -> tuple[Floats, Floats]:
    """Damped Gauss-Newton (Levenberg-Marquardt) for K small problems at once, inside bounds.

    `errors(x_kP, k)` gives the residuals_kM of the problems k at x_kP, and their slopes_kMP.
    Returns the best x_KP and its sums of squared residuals. A problem ends when a step moves
    nothing by more than 1e-7.
    """
    k = np.arange(len(x_KP))  # the problems still moving
    x_KP, damping_K = x_KP.copy(), np.full(len(x_KP), 1e-3)
    residual_KM, slope_KMP = errors(x_KP, k)
    sse_K = (residual_KM**2).sum(axis=1)
    for _ in range(100):
        uphill_kP = np.einsum("kmp,km->kp", slope_KMP[k], residual_KM[k])
        pinned_kP = (x_KP[k] <= lo_P) & (uphill_kP > 0) | (x_KP[k] >= hi_P) & (uphill_kP < 0)
        free_kMP = np.where(pinned_kP[:, None, :], 0.0, slope_KMP[k])
        bend_kPP = np.einsum("kmp,kmq->kpq", free_kMP, free_kMP)
        damped_kP = damping_K[k, None] * np.einsum("kpp->kp", bend_kPP) + 1e-30
        damped_kPP = bend_kPP + damped_kP[:, :, None] * np.eye(x_KP.shape[1])
        step_kP1 = np.linalg.solve(damped_kPP, np.where(pinned_kP, 0.0, uphill_kP)[:, :, None])
        trial_kP = np.clip(x_KP[k] - np.clip(step_kP1[:, :, 0], -1.0, 1.0), lo_P, hi_P)
        trial_residual_kM, trial_slope_kMP = errors(trial_kP, k)
        trial_sse_k = (trial_residual_kM**2).sum(axis=1)
        better_k = trial_sse_k < sse_K[k]
        moving_k = np.abs(trial_kP - x_KP[k]).max(axis=1) > 1e-7
        damping_K[k] *= np.where(better_k, 0.2, 5.0)
        won = k[better_k]
        x_KP[won], sse_K[won] = trial_kP[better_k], trial_sse_k[better_k]
        residual_KM[won], slope_KMP[won] = trial_residual_kM[better_k], trial_slope_kMP[better_k]
        k = k[moving_k]
        if not k.size:
            break
    return x_KP, sse_K
