"""Point fits of the scaling curve: least squares, one run at a time.

`fit_point` is the fit to use and `profile_A` its interval for the ceiling; `fit_robust` leaves
outliers out. `fit_paper` and `compare_efficiency` are the grid search of arXiv 2510.13786 and
`fit_power` its power law, for comparison with published numbers. `fit_study` fits every run of a
table (see rlx.scaling.data) on the first part of its compute and scores the forecast of the rest.

A window that ends before the curve bends does not determine the ceiling: the least-squares
solution then runs to a bound. `PointFit.status` says so, and is "ok" otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares, minimize_scalar
from scipy.special import expit
from scipy.stats import f as f_distribution

from rlx.errors import InputError
from rlx.scaling.curve import power, sigmoid

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

B_BOUNDS = (0.05, 20.0)
C_MID_BELOW, C_MID_ABOVE = 0.1, 100.0  # of the smallest and of the largest compute of the window
C_MID_FAR = 1e12  # in a profile, of the largest compute: a smaller bound would itself bound A
A_ERROR_MAX = 0.05  # a ceiling with a larger standard error counts as not determined
MAX_WIDTH = 0.1  # nor does one with a wider profile interval
TRIM_STARTS = 20  # random halves from which trimming starts
TINY = np.finfo(np.float64).tiny

# arXiv 2510.13786, A.5: 71 ceilings, and 100 values of C_mid in [100, 40000] GPU-hours. The C_mid
# in print are not cells of that grid (its step is 403): 1675, 2542, 2818, 2857, 2896, 2936 and 3054
# are cells of the first grid below, 10909 and 11272 of the second, 4242 (Scout) of neither.
PAPER_A = np.arange(0.450, 0.8001, 0.005)
PAPER_C_MID = np.linspace(100.0, 40000.0, 100)
PAPER_C_MID_SHORT = np.floor(np.linspace(100.0, 4000.0, 100))
PAPER_C_MID_LONG = np.floor(np.linspace(4000.0, 40000.0, 100))
PAPER_DROP_BELOW = 1500.0  # GPU-hours, about the first epoch (A.5)
PAPER_MARGIN = 0.02  # ceilings closer than this count as equal (A.5)


@dataclass(frozen=True)
class PointFit:
    """Least-squares estimate of one run's curve; `rmse` is over the `n` fitted points."""

    A: float
    B: float
    C_mid: float
    R0: float
    rmse: float
    n: int
    status: str = "ok"

    @property
    def identified(self) -> bool:
        """Whether the window determines the ceiling A."""
        return self.status == "ok"

    def at(self, compute_C: ArrayLike) -> Floats:
        """Pass rate of the fitted curve after compute C."""
        return sigmoid(compute_C, A=self.A, B=self.B, C_mid=self.C_mid, R0=self.R0)


@dataclass(frozen=True)
class PowerFit:
    """Least-squares estimate of R = A - D / C^B; `rmse` is over the `n` fitted points."""

    A: float
    B: float
    D: float
    rmse: float
    n: int
    status: str = "ok"

    def at(self, compute_C: ArrayLike) -> Floats:
        """Pass rate of the fitted power law after compute C > 0."""
        return power(compute_C, A=self.A, B=self.B, D=self.D)


def best_levels(
    f_KM: Floats, value_M: Floats, weight_M: Floats, R0: float | None
) -> tuple[Floats, Floats]:
    """Closed-form least squares for the levels of K candidate shapes f, of y = R0 + (A - R0) f.

        R0 known:   A = R0 + sum w f (y - R0) / sum w f^2
        R0 unknown: the 2x2 normal equations of y = R0 (1 - f) + A f

    Both are then clipped to 0 <= R0 <= A <= 1.

    Args:
        f_KM: logistic values in [0, 1] of K shapes at M points.
        value_M: pass rates y.
        weight_M: weights w of the squared residuals, summing to 1.
        R0: pass rate at C = 0, or None to fit it.

    Returns:
        A_K, R0_K.
    """
    ff_K = (f_KM**2) @ weight_M
    if R0 is None:
        g_KM = 1 - f_KM
        gg_K, fg_K = (g_KM**2) @ weight_M, (f_KM * g_KM) @ weight_M
        fy_K, gy_K = f_KM @ (weight_M * value_M), g_KM @ (weight_M * value_M)
        det_K = np.maximum(ff_K * gg_K - fg_K**2, TINY)
        R0_K = np.clip((ff_K * gy_K - fg_K * fy_K) / det_K, 0.0, 1.0)
    else:
        R0_K = np.full(len(f_KM), R0)
    gain_K = (f_KM @ (weight_M * value_M) - R0_K * (f_KM @ weight_M)) / np.maximum(ff_K, TINY)
    return R0_K + np.clip(gain_K, 0.0, 1.0 - R0_K), R0_K


def fit_point(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    *,
    r0: float | str,
    weights: ArrayLike | None = None,
    drop_below: float = 0.0,
) -> PointFit:
    """Least squares for R0 + (A - R0) / (1 + (C_mid / C)^B) with R0 < A <= 1.

    A grid over (B, log C_mid), where the best A is known in closed form (`best_levels`), finds the
    basin; `scipy.optimize.least_squares` in (A, log C_mid, log B) polishes. There is no random
    start, so equal inputs give equal fits.

    Args:
        compute_M: compute of M evaluations, >= 0, in any unit.
        value_M: their pass rates, fractions.
        r0: a number; "first", the mean value at C = 0, or the first value where there is none;
            "fit", a fourth parameter. Points at C = 0 inform R0 only.
        weights: of the squared residuals (default: equal); only their ratios matter.
        drop_below: points with 0 < C < drop_below are not fitted, in the unit of compute_M.

    Returns:
        The estimate. Its status is "ok", or says why the window does not determine the ceiling.

    Raises:
        ValueError: lengths differ, values are not finite, R0 is not in [0, 1), or there are fewer
            points with C > 0 than parameters.

    Source: the curve is arXiv 2510.13786 Eq. 1; the paper searches A and C_mid on a grid
    (`fit_paper`).
    """
    window = _window(compute_M, value_M, r0, weights, drop_below)
    log_C, value_M, R0, root_w_M = window.log_C, window.value_M, window.R0, window.root_w_M
    lo, hi = window.lo.copy(), window.hi.copy()

    def curve(x: Floats) -> tuple[float, Floats]:
        level = x[3] * x[0] if R0 is None else R0  # R0 as a share of A keeps R0 <= A
        return level, level + (x[0] - level) * expit(np.exp(x[2]) * (log_C - x[1]))

    start = _basin(window)
    if R0 is not None:
        lo[0] = R0
    use = slice(0, window.n_parameters)
    solution = least_squares(
        lambda x: root_w_M * (curve(x)[1] - value_M),
        start[use],
        bounds=(lo[use], hi[use]),
        x_scale="jac",
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
        max_nfev=500,
    )
    level, fitted_M = curve(solution.x)
    A, C_mid, B = float(solution.x[0]), float(np.exp(solution.x[1])), float(np.exp(solution.x[2]))
    rmse = float(np.sqrt(np.mean((fitted_M - value_M) ** 2)))
    A_error = _standard_error(solution.jac, 2 * solution.cost)
    status = _status(A, B, C_mid, float(level), float(np.exp(log_C.max())), A_error)
    return PointFit(A, B, C_mid, float(level), rmse, len(value_M), status)


@dataclass(frozen=True)
class _Window:
    """The points that a fit sees, and bounds of (A, log C_mid, log B, R0 / A)."""

    log_C: Floats  # -inf at C = 0
    value_M: Floats
    root_w_M: Floats  # square roots of the weights, which sum to 1
    R0: float | None  # None: a parameter
    lo: Floats
    hi: Floats

    @property
    def n_parameters(self) -> int:
        return 4 if self.R0 is None else 3


def _window(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    r0: float | str,
    weights: ArrayLike | None,
    drop_below: float,
) -> _Window:
    compute_M, value_M = _checked(compute_M, value_M)
    R0 = _resolve_r0(compute_M, value_M, r0)
    weight_M = np.ones(len(value_M)) if weights is None else np.asarray(weights, dtype=np.float64)
    seen_M = (compute_M > 0) & (compute_M >= drop_below)
    n_parameters = 4 if R0 is None else 3
    if np.count_nonzero(seen_M) < n_parameters:
        above = f" and C >= {drop_below:g}" if drop_below else ""
        n = np.count_nonzero(seen_M)
        raise ValueError(f"{n} points with C > 0{above} for {n_parameters} parameters")
    C_lo, C_hi = compute_M[seen_M].min(), compute_M[seen_M].max()
    if R0 is None:
        seen_M |= compute_M == 0
    with np.errstate(divide="ignore"):
        log_C = np.log(compute_M[seen_M])
    log_B_lo, log_B_hi = np.log(B_BOUNDS)
    return _Window(
        log_C=log_C,
        value_M=value_M[seen_M],
        root_w_M=np.sqrt(weight_M[seen_M] / weight_M[seen_M].sum()),
        R0=R0,
        lo=np.array([0.0, np.log(C_lo * C_MID_BELOW), log_B_lo, 0.0]),
        hi=np.array([1.0, np.log(C_hi * C_MID_ABOVE), log_B_hi, 1.0]),
    )


def _shapes(window: _Window) -> tuple[Floats, Floats, Floats]:
    """log C_mid, log B and logistic values f_SM of a grid of 40 x 30 shapes."""
    log_mid, log_B = (np.linspace(window.lo[i], window.hi[i], n) for i, n in ((1, 40), (2, 30)))
    log_mid_S, log_B_S = (axis.ravel() for axis in np.meshgrid(log_mid, log_B))
    f_SM = expit(np.exp(log_B_S)[:, None] * (window.log_C - log_mid_S[:, None]))
    return log_mid_S, log_B_S, f_SM


def _basin(window: _Window) -> Floats:
    """The best shape of the grid, as (A, log C_mid, log B, R0 / A)."""
    log_mid_S, log_B_S, f_SM = _shapes(window)
    weight_M = window.root_w_M**2
    A_S, R0_S = best_levels(f_SM, window.value_M, weight_M, window.R0)
    error_SM = R0_S[:, None] + (A_S - R0_S)[:, None] * f_SM - window.value_M
    s = int(np.argmin(error_SM**2 @ weight_M))
    return np.array([A_S[s], log_mid_S[s], log_B_S[s], R0_S[s] / max(A_S[s], 1e-12)])


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
    window = _window(compute_M, value_M, r0, weights, drop_below)
    fit = fit_point(compute_M, value_M, r0=r0, weights=weights, drop_below=drop_below)
    floor = window.R0 or 0.0
    spare = len(window.value_M) - window.n_parameters
    if spare <= 0:
        return floor, np.inf
    shapes = _shapes(window)
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


def _levels(window: _Window, fit: PointFit) -> Floats:
    """Values of a fitted curve at the points of a window."""
    return fit.R0 + (fit.A - fit.R0) * expit(fit.B * (window.log_C - np.log(fit.C_mid)))


def _profile(window: _Window, shapes: tuple[Floats, Floats, Floats], A_K: Floats) -> Floats:
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
        residual_kM, slope_kM2, _ = _errors(window, A_J1[k], x_k2[:, :1], x_k2[:, 1:])
        return residual_kM, slope_kM2

    far_2 = window.hi[1:3] + [np.log(C_MID_FAR / C_MID_ABOVE), 0.0]
    sse_J = _descend(errors, start_J2, window.lo[1:3], far_2)[1]
    return sse_J.reshape(len(basins), -1).min(axis=0)


def _errors(
    window: _Window, A_K1: Floats, log_mid_K1: Floats, log_B_K1: Floats
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


def _descend(
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


def fit_paper(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    *,
    r0: float | str,
    A_grid: ArrayLike = PAPER_A,
    C_mid_grid: ArrayLike = PAPER_C_MID,
    drop_below: float = 0.0,
) -> PointFit:
    """The published procedure: the cell of a grid over (A, C_mid) with the least squared error.

    In every cell B is fitted alone by damped Gauss-Newton from B = 1, which is what
    `scipy.optimize.curve_fit` does with its default start; here all cells advance together, and B
    stays within B_BOUNDS. The paper does not say where R0 comes from: "fit" gives every cell the
    R0 in [0, A] that is best for it (in closed form given B), as `curve_fit` over (B, R0) would.

    Args:
        compute_M: compute of M evaluations, >= 0, in the unit of C_mid_grid.
        value_M: their pass rates, fractions.
        r0: a number, "first" or "fit", as in `fit_point`.
        A_grid: candidate ceilings; the paper's are 0.450, 0.455, ..., 0.800. One value fixes A.
        C_mid_grid: candidate C_mid; the paper states 100 values in [100, 40000] GPU-hours, and its
            printed values are on PAPER_C_MID_SHORT and PAPER_C_MID_LONG.
        drop_below: as in `fit_point`; the paper drops the first 1500 GPU-hours (PAPER_DROP_BELOW).

    Returns:
        The estimate, quantised to the grids. The status names a grid whose edge was chosen.

    Raises:
        ValueError: as `fit_point`, or no candidate ceiling is above R0.

    Source: arXiv 2510.13786, A.5.
    """
    window = _window(compute_M, value_M, r0, None, drop_below)
    A_grid, C_mid_grid = np.asarray(A_grid, np.float64), np.asarray(C_mid_grid, np.float64)
    floor = window.R0 or 0.0
    if A_grid.max() <= floor:
        raise ValueError(f"A_grid ends at {A_grid.max():g}, not above R0 = {floor:g}")
    A_K1, C_mid_K1 = (
        a.reshape(-1, 1) for a in np.meshgrid(A_grid[A_grid > floor], C_mid_grid, indexing="ij")
    )
    log_mid_K1 = np.log(C_mid_K1)

    def errors(log_B_k1: Floats, k: Indices) -> tuple[Floats, Floats]:
        residual_kM, slope_kM2, _ = _errors(window, A_K1[k], log_mid_K1[k], log_B_k1)
        return residual_kM, slope_kM2[:, :, 1:]

    start_K1 = np.zeros(A_K1.shape)
    log_B_K1, sse_K = _descend(errors, start_K1, window.lo[2:3], window.hi[2:3])
    k = int(np.argmin(sse_K))
    A, C_mid, B = float(A_K1[k, 0]), float(C_mid_K1[k, 0]), float(np.exp(log_B_K1[k, 0]))
    R0 = float(
        _errors(window, A_K1[k : k + 1], log_mid_K1[k : k + 1], log_B_K1[k : k + 1])[2][0, 0]
    )
    edges = [
        f"{name} at the edge of its grid"
        for name, value, grid in (("A", A, A_grid), ("C_mid", C_mid, C_mid_grid))
        if grid.size > 1 and value in (grid.min(), grid.max())
    ]
    status = "; ".join(edges) or "ok"
    return PointFit(A, B, C_mid, R0, float(np.sqrt(sse_K[k])), len(window.value_M), status)


def compare_efficiency(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    r0: float | str,
    C_mid_grid: ArrayLike = PAPER_C_MID,
    drop_below: float = 0.0,
) -> dict[str, PointFit]:
    """Runs of equal ceiling, compared by B: each refitted with A fixed to their average A.

    Args:
        curves: (compute_M, value_M) of each run.
        r0, C_mid_grid, drop_below: as in `fit_paper`.

    Returns:
        The refitted runs, largest B (most efficient) first.

    Raises:
        ValueError: as `fit_paper`, or the freely fitted ceilings lie further apart than 0.02
            (PAPER_MARGIN): then A decides, and B at a common A means nothing.

    Source: arXiv 2510.13786, A.5 and Fig. 7.
    """
    search = partial(fit_paper, r0=r0, C_mid_grid=C_mid_grid, drop_below=drop_below)
    A = {run: search(C, y).A for run, (C, y) in curves.items()}
    low, high = min(A, key=A.__getitem__), max(A, key=A.__getitem__)
    if A[high] - A[low] > PAPER_MARGIN + 1e-9:
        raise ValueError(
            f"ceilings differ: A = {A[low]:.3f} ({low}) and {A[high]:.3f} ({high}) are more than "
            f"{PAPER_MARGIN:g} apart; compare A"
        )
    mean = [sum(A.values()) / len(A)]
    fits = {run: search(C, y, A_grid=mean) for run, (C, y) in curves.items()}
    return dict(sorted(fits.items(), key=lambda item: -item[1].B))


def fit_power(compute_M: ArrayLike, value_M: ArrayLike, *, drop_below: float = 0.0) -> PowerFit:
    """Least squares for the power law R = A - D / C^B with A <= 1 and D >= 0.

    Given B the problem is linear in (A, D) and solved exactly; B is searched on a grid of 200
    values, then by Brent's method between the neighbours of the best.

    Args:
        compute_M: compute of M evaluations, >= 0, in any unit.
        value_M: their pass rates, fractions.
        drop_below: points below this compute are not fitted, nor are those at C = 0, where the
            power law has no value.

    Returns:
        The estimate; D is in units of C^B. The status names a bound that was hit.

    Raises:
        ValueError: lengths differ, values are not finite, or fewer than 3 points are left.

    Source: arXiv 2510.13786, A.4.
    """
    window = _window(compute_M, value_M, 0.0, None, drop_below)  # r0 plays no part
    y_M, log_ref = window.value_M, window.log_C.mean()

    def solve(log_B: float) -> tuple[float, float, float]:
        """SSE, A and D * C_ref^-B of the best power law with exponent B."""
        x_M = np.exp(-np.exp(log_B) * (window.log_C - log_ref))
        off_M = x_M - x_M.mean()
        D = max(-float(off_M @ y_M) / max(float(off_M @ off_M), TINY), 0.0)
        A = float(y_M.mean() + D * x_M.mean())
        if A > 1:
            A, D = 1.0, float(x_M @ (1 - y_M)) / float(x_M @ x_M)
        return float(np.sum((A - D * x_M - y_M) ** 2)), A, D

    grid = np.linspace(window.lo[2], window.hi[2], 200)
    k = int(np.argmin([solve(log_B)[0] for log_B in grid]))
    bracket = (grid[max(k - 1, 0)], grid[min(k + 1, 199)])
    found = minimize_scalar(
        lambda log_B: solve(log_B)[0], bounds=bracket, method="bounded", options={"xatol": 1e-10}
    )
    sse, A, D = solve(found.x)
    B = float(np.exp(found.x))
    status = "ok"
    if D == 0:
        status = "no gain"
    elif A > 1 - 1e-3:
        status = "A at its bound 1"
    elif not 1.01 * B_BOUNDS[0] < B < 0.99 * B_BOUNDS[1]:
        status = f"B at its bound {B:.3g}"
    n = len(y_M)
    return PowerFit(A, B, D * float(np.exp(B * log_ref)), float(np.sqrt(sse / n)), n, status)


def fit_robust(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    *,
    r0: float | str,
    tau: float = 2.5,
    alpha: float | None = None,
) -> tuple[PointFit, Mask]:
    """`fit_point` without the evaluations that do not follow the run's curve.

        outliers:  |0.6745 (r - med r)| / MAD > tau,  MAD = med |r - med r|,  r = value - curve
        trimming:  the h = floor(alpha n) smallest |r| of the n points left

    Outliers are judged among all points after each fit, so one may return; the rounds end when a
    set repeats. Trimming (least trimmed squares) alternates between fitting and keeping the h best
    (C-steps) until a set repeats, from that fit and from 20 random halves of the n points; the
    least sum of h squared residuals wins. The halves are drawn with a fixed seed, so equal inputs
    give equal fits.

    Args:
        compute_M, value_M, r0: as in `fit_point`; R0 is resolved before any point is left out.
        tau: threshold of the modified z-score; the source uses 2.5, 3 and 4.
        alpha: share of points that trimming keeps, the source's 0.75 or 0.85; None: no trimming.

    Returns:
        The estimate, and which of the M points it used. Its rmse and status see only those, so both
        are optimistic.

    Raises:
        ValueError: as `fit_point`, also when too few points are left.

    Source: arXiv 2512.11470, robust fitting; least trimmed squares and C-steps: Rousseeuw and Van
    Driessen 2006, Data Mining and Knowledge Discovery 12:29.
    """
    compute_M, value_M = _checked(compute_M, value_M)
    R0 = _resolve_r0(compute_M, value_M, r0)
    start = "fit" if R0 is None else R0
    point_M = compute_M >= 0 if R0 is None else compute_M > 0

    def residual_after(used_M: Mask) -> Floats:
        return value_M - fit_point(compute_M[used_M], value_M[used_M], r0=start).at(compute_M)

    def without_outliers(used_M: Mask) -> Mask:
        off_M = residual_after(used_M)
        off_M = off_M - np.median(off_M[point_M])
        mad = max(float(np.median(np.abs(off_M[point_M]))), 1e-9)  # rounding is no outlier
        return point_M & (0.6745 * np.abs(off_M) <= tau * mad)

    used_M = _until_it_repeats(without_outliers, point_M)
    if alpha is not None:
        used_M = _trimmed(residual_after, used_M, alpha, n_parameters=4 if R0 is None else 3)
    return fit_point(compute_M[used_M], value_M[used_M], r0=start), used_M


def _until_it_repeats(step: Callable[[Mask], Mask], used_M: Mask) -> Mask:
    """The first set of points that `step` comes back to."""
    seen: set[bytes] = set()
    while used_M.tobytes() not in seen:
        seen.add(used_M.tobytes())
        used_M = step(used_M)
    return used_M


def _trimmed(
    residual_after: Callable[[Mask], Floats], pool_M: Mask, alpha: float, n_parameters: int
) -> Mask:
    """The floor(alpha n) of n points whose own fit has the least sum of squares (`fit_robust`)."""
    pool = np.flatnonzero(pool_M)
    h = int(np.floor(alpha * len(pool)))
    rng = np.random.default_rng(0)
    half = max(len(pool) // 2, n_parameters + 1)

    def subset(members: Indices) -> Mask:
        return np.isin(np.arange(len(pool_M)), members)

    def h_best(used_M: Mask) -> Mask:
        size = np.abs(residual_after(used_M)[pool])
        return subset(pool[np.argsort(size, kind="stable")[:h]])

    starts = [pool_M, *(subset(rng.choice(pool, half, replace=False)) for _ in range(TRIM_STARTS))]
    ends = [_until_it_repeats(h_best, start_M) for start_M in starts]
    return min(ends, key=lambda used_M: float(np.sum(residual_after(used_M)[used_M] ** 2)))


@dataclass(frozen=True)
class RunFit:
    """One run of a study: its labels, its fit up to compute `C_fit`, and its forecast's error.

    `fit` is None where too little of the run lies below C_fit; `status` then says so. A_lo and A_hi
    are its `profile_A`; `status` also says where that is wider than MAX_WIDTH.
    """

    run: str
    recipe: str
    seed: object
    axes: str
    truth: float  # exact ceiling, NaN when unknown
    fit: PointFit | None
    A_lo: float  # 90 %, NaN without a fit
    A_hi: float  # inf where the data do not bound A
    C_fit: float  # the last fitted compute
    rmse_heldout: float  # NaN when nothing is held out
    status: str


def fit_study(
    frame: pd.DataFrame, *, holdout: float = 0.5, r0: float | str = "first"
) -> list[RunFit]:
    """`fit_point` of every run on C <= (1 - holdout) * C_max, scored on the rest.

        rmse_heldout = sqrt(mean over held-out points of (curve(C) - value)^2)

    Args:
        frame: table of curves (`frame` of rlx.scaling.data.Evals).
        holdout: share of each run's compute range that is held out, in [0, 1); 0 fits everything.
        r0: a number, "first" or "fit" (see `fit_point`), or the name of a column of `frame`.

    Returns:
        One RunFit per run, in the order of the table.

    Raises:
        InputError: holdout or r0 cannot be used.
    """
    if not 0 <= holdout < 1:
        raise InputError("holdout", holdout, "not in [0, 1)", "0.5 holds out the second half")
    return [_fit_run(str(run), rows, holdout, r0) for run, rows in frame.groupby("run", sort=False)]


def _fit_run(run: str, rows: pd.DataFrame, holdout: float, r0: float | str) -> RunFit:
    compute_M, value_M = rows["compute"].to_numpy(), rows["value"].to_numpy()
    seen_M = compute_M <= (1 - holdout) * compute_M.max()
    if not seen_M.any():
        seen_M[0] = True
    C_fit = float(compute_M[seen_M].max())
    start = _start(run, rows, r0)
    try:
        fit = fit_point(compute_M[seen_M], value_M[seen_M], r0=start)
        A_lo, A_hi = profile_A(compute_M[seen_M], value_M[seen_M], r0=start)
    except ValueError as error:
        fit, rmse, status = None, np.nan, f"too short: {error}"
        A_lo = A_hi = np.nan
    else:
        status = fit.status
        if fit.identified and min(A_hi, 1) - A_lo > MAX_WIDTH:
            status = f"ceiling not determined: {A_lo:.2f} to {min(A_hi, 1):.2f}"
        residual = fit.at(compute_M[~seen_M]) - value_M[~seen_M]
        rmse = float(np.sqrt(np.mean(residual**2))) if residual.size else np.nan
    first = rows.iloc[0]
    return RunFit(
        run=run,
        recipe=str(first["recipe"]),
        seed=first["seed"],
        axes=str(first["axes"]),
        truth=float(first["truth"]),
        fit=fit,
        A_lo=A_lo,
        A_hi=A_hi,
        C_fit=C_fit,
        rmse_heldout=rmse,
        status=status,
    )


def _start(run: str, rows: pd.DataFrame, r0: float | str) -> float | str:
    """`r0` of fit_point for one run: the value of the named column where r0 names one."""
    if isinstance(r0, str) and r0 not in ("first", "fit"):
        if r0 not in rows:
            raise InputError("r0", r0, "unknown", "use first, fit, a number or a column's name")
        r0 = float(rows[r0].iloc[0])
    if not isinstance(r0, str) and not 0 <= r0 < 1:
        raise InputError(
            "r0", f"{r0:g}", f"run {run}: not a pass rate in [0, 1)", "give it in the unit of value"
        )
    return r0


def _checked(compute_M: ArrayLike, value_M: ArrayLike) -> tuple[Floats, Floats]:
    compute_M, value_M = np.asarray(compute_M, np.float64), np.asarray(value_M, np.float64)
    if compute_M.ndim != 1 or compute_M.shape != value_M.shape:
        raise ValueError(f"compute {compute_M.shape} and value {value_M.shape} are not one length")
    if not (np.isfinite(compute_M).all() and np.isfinite(value_M).all()):
        raise ValueError("compute or value is not finite")
    if (compute_M < 0).any():
        raise ValueError(f"compute {np.min(compute_M):g} is negative")
    return compute_M, value_M


def _resolve_r0(compute_M: Floats, value_M: Floats, r0: float | str) -> float | None:
    """R0 as a number, or None when it is a parameter."""
    if r0 == "fit":
        return None
    if r0 == "first":
        at_zero = compute_M == 0
        r0 = float(value_M[at_zero].mean() if at_zero.any() else value_M[0])
    R0 = float(r0)
    if not 0 <= R0 < 1:
        raise ValueError(f"R0 = {R0:g} is not in [0, 1)")
    return R0


def _standard_error(jacobian_MP: Floats, sse: float) -> float:
    """Standard error of the first parameter: sqrt((J^T J)^-1[0, 0] * sse / (M - P)).

    NaN with no more points than parameters, inf where the Jacobian is singular.
    """
    M, P = jacobian_MP.shape
    if M <= P:
        return np.nan
    try:
        variance = np.linalg.inv(jacobian_MP.T @ jacobian_MP)[0, 0]
    except np.linalg.LinAlgError:
        return np.inf
    return float(np.sqrt(max(variance, 0.0) * sse / (M - P)))


def _status(A: float, B: float, C_mid: float, R0: float, C_hi: float, A_error: float) -> str:
    """Why the window does not determine the ceiling; "ok" if it does."""
    if A - R0 < 1e-4:
        return "no gain over R0"
    if A > 1 - 1e-3:
        return "A at its bound 1"
    if C_mid > C_hi:
        return "C_mid beyond the data"
    if not 1.01 * B_BOUNDS[0] < B < 0.99 * B_BOUNDS[1]:
        return f"B at its bound {B:.3g}"
    if np.isnan(A_error):
        return "as many points as parameters"
    if A_error > A_ERROR_MAX:
        return f"A loose: standard error {A_error:.2f}"
    return "ok"
