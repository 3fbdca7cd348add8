"""Point fit of the scaling curve: least squares, one run at a time.

`fit_point` is the default fit. `rlx.scaling.profile` gives an interval for its ceiling,
`rlx.scaling.robust` leaves outliers out, `rlx.scaling.paper` is the grid search of arXiv 2510.13786
for comparison with published numbers, and `rlx.scaling.run_fits` fits every run of a table.

A window that ends before the curve bends does not determine the ceiling: least squares then ends at
a bound. `PointFit.status` says so, and is "ok" otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import expit

from rlx.scaling.curve import sigmoid

Floats = NDArray[np.float64]

B_BOUNDS = (0.05, 20.0)
C_MID_BELOW, C_MID_ABOVE = 0.1, 100.0  # times the smallest and the largest compute of the window
A_ERROR_MAX = 0.05  # a ceiling with a larger standard error counts as not determined
TINY = np.finfo(np.float64).tiny


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

    A grid over (B, log C_mid), with the best A in closed form (`best_levels`), finds the basin;
    `scipy.optimize.least_squares` in (A, log C_mid, log B) refines it. There is no random start, so
    equal inputs give equal fits.

    Args:
        compute_M: compute of M evaluations, >= 0, in any unit.
        r0: a number; "first", the mean value at C = 0, or the first value if there is none, which
            makes A too low if the curve rises before it; "fit", a fourth parameter. Points at
            C = 0 inform R0 only.
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
    window = window_of(compute_M, value_M, r0, weights, drop_below)
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
class Window:
    """The points of a fit, and bounds of (A, log C_mid, log B, R0 / A)."""

    log_C: Floats  # -inf at C = 0
    value_M: Floats
    root_w_M: Floats  # square roots of the weights, which sum to 1
    R0: float | None  # None: fitted
    lo: Floats
    hi: Floats

    @property
    def n_parameters(self) -> int:
        return 4 if self.R0 is None else 3


def window_of(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    r0: float | str,
    weights: ArrayLike | None,
    drop_below: float,
) -> Window:
    compute_M, value_M = checked(compute_M, value_M)
    R0 = resolve_r0(compute_M, value_M, r0)
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
    return Window(
        log_C=log_C,
        value_M=value_M[seen_M],
        root_w_M=np.sqrt(weight_M[seen_M] / weight_M[seen_M].sum()),
        R0=R0,
        lo=np.array([0.0, np.log(C_lo * C_MID_BELOW), log_B_lo, 0.0]),
        hi=np.array([1.0, np.log(C_hi * C_MID_ABOVE), log_B_hi, 1.0]),
    )


def shapes_of(window: Window) -> tuple[Floats, Floats, Floats]:
    """log C_mid, log B and logistic values f_GM of a grid of 40 x 30 shapes."""
    log_mid, log_B = (np.linspace(window.lo[i], window.hi[i], n) for i, n in ((1, 40), (2, 30)))
    log_mid_G, log_B_G = (axis.ravel() for axis in np.meshgrid(log_mid, log_B))
    f_GM = expit(np.exp(log_B_G)[:, None] * (window.log_C - log_mid_G[:, None]))
    return log_mid_G, log_B_G, f_GM


def _basin(window: Window) -> Floats:
    """The best shape of the grid, as (A, log C_mid, log B, R0 / A)."""
    log_mid_G, log_B_G, f_GM = shapes_of(window)
    weight_M = window.root_w_M**2
    A_G, R0_G = best_levels(f_GM, window.value_M, weight_M, window.R0)
    error_GM = R0_G[:, None] + (A_G - R0_G)[:, None] * f_GM - window.value_M
    s = int(np.argmin(error_GM**2 @ weight_M))
    return np.array([A_G[s], log_mid_G[s], log_B_G[s], R0_G[s] / max(A_G[s], 1e-12)])


def checked(compute_M: ArrayLike, value_M: ArrayLike) -> tuple[Floats, Floats]:
    compute_M, value_M = np.asarray(compute_M, np.float64), np.asarray(value_M, np.float64)
    if compute_M.ndim != 1 or compute_M.shape != value_M.shape:
        raise ValueError(f"compute {compute_M.shape} and value {value_M.shape} are not one length")
    if not (np.isfinite(compute_M).all() and np.isfinite(value_M).all()):
        raise ValueError("compute or value is not finite")
    if (compute_M < 0).any():
        raise ValueError(f"compute {np.min(compute_M):g} is negative")
    return compute_M, value_M


def resolve_r0(compute_M: Floats, value_M: Floats, r0: float | str) -> float | None:
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


def _standard_error(jacobian_MQ: Floats, sse: float) -> float:
    """Standard error of the first parameter: sqrt((J^T J)^-1[0, 0] * sse / (M - Q)).

    NaN if there are no more points than parameters, inf if the Jacobian is singular.
    """
    M, Q = jacobian_MQ.shape
    if M <= Q:
        return np.nan
    try:
        variance = np.linalg.inv(jacobian_MQ.T @ jacobian_MQ)[0, 0]
    except np.linalg.LinAlgError:
        return np.inf
    return float(np.sqrt(max(variance, 0.0) * sse / (M - Q)))


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
        return f"A uncertain: standard error {A_error:.2f}"
    return "ok"
