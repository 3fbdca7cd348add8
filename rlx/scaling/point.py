"""Point fits of the scaling curve: least squares, one run at a time.

`fit_point` is the fit to use; `fit_paper` is the grid of arXiv 2510.13786 A.5, kept for
comparison with published numbers. `fit_study` fits every run of a table (see rlx.scaling.data)
on the first part of its compute and scores the forecast of the rest.

A window that ends before the curve bends does not determine the ceiling: the least-squares
solution then runs to a bound. `PointFit.status` says so, and is "ok" otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import expit

from rlx.scaling.curve import sigmoid
from rlx.scaling.data import DataError

Floats = NDArray[np.float64]

B_BOUNDS = (0.05, 20.0)
C_MID_BELOW, C_MID_ABOVE = 0.1, 100.0  # of the smallest and of the largest compute of the window
A_ERROR_MAX = 0.05  # a ceiling with a larger standard error counts as not determined
PAPER_A = np.arange(0.450, 0.8001, 0.005)
PAPER_C_MID = np.linspace(100.0, 40000.0, 100)  # GPU-hours


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
    tiny = np.finfo(np.float64).tiny
    ff_K = (f_KM**2) @ weight_M
    if R0 is None:
        g_KM = 1 - f_KM
        gg_K, fg_K = (g_KM**2) @ weight_M, (f_KM * g_KM) @ weight_M
        fy_K, gy_K = f_KM @ (weight_M * value_M), g_KM @ (weight_M * value_M)
        det_K = np.maximum(ff_K * gg_K - fg_K**2, tiny)
        R0_K = np.clip((ff_K * gy_K - fg_K * fy_K) / det_K, 0.0, 1.0)
    else:
        R0_K = np.full(len(f_KM), R0)
    gain_K = (f_KM @ (weight_M * value_M) - R0_K * (f_KM @ weight_M)) / np.maximum(ff_K, tiny)
    return R0_K + np.clip(gain_K, 0.0, 1.0 - R0_K), R0_K


def fit_point(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    *,
    r0: float | str,
    weights: ArrayLike | None = None,
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

    Returns:
        The estimate. Its status is "ok", or says why the window does not determine the ceiling.

    Raises:
        ValueError: lengths differ, values are not finite, R0 is not in [0, 1), or there are fewer
            points with C > 0 than parameters.

    Source: the curve is arXiv 2510.13786 Eq. 1; the paper searches A and C_mid on a grid
    (`fit_paper`).
    """
    compute_M, value_M = _checked(compute_M, value_M)
    R0 = _resolve_r0(compute_M, value_M, r0)
    use_M = compute_M >= 0 if R0 is None else compute_M > 0
    weight_M = np.ones(len(value_M)) if weights is None else np.asarray(weights, dtype=np.float64)
    n_parameters = 4 if R0 is None else 3
    positive = int(np.count_nonzero(compute_M > 0))
    if positive < n_parameters:
        raise ValueError(f"{positive} points with C > 0 for {n_parameters} parameters")
    compute_M, value_M, weight_M = compute_M[use_M], value_M[use_M], weight_M[use_M]
    weight_M = weight_M / weight_M.sum()
    C_lo, C_hi = np.min(compute_M[compute_M > 0]), np.max(compute_M)
    with np.errstate(divide="ignore"):
        log_C = np.log(compute_M)

    lo = np.array([0.0, np.log(C_lo * C_MID_BELOW), np.log(B_BOUNDS[0]), 0.0])
    hi = np.array([1.0, np.log(C_hi * C_MID_ABOVE), np.log(B_BOUNDS[1]), 1.0])

    def curve(x: Floats) -> tuple[float, Floats]:
        level = x[3] * x[0] if R0 is None else R0  # R0 as a share of A keeps R0 <= A
        return level, level + (x[0] - level) * expit(np.exp(x[2]) * (log_C - x[1]))

    start = _basin(log_C, value_M, weight_M, R0, lo, hi)
    if R0 is not None:
        lo[0] = R0
    use = slice(0, n_parameters)
    solution = least_squares(
        lambda x: np.sqrt(weight_M) * (curve(x)[1] - value_M),
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
    status = _status(A, B, C_mid, float(level), C_hi, A_error)
    return PointFit(A, B, C_mid, float(level), rmse, len(value_M), status)


def _basin(
    log_C: Floats, value_M: Floats, weight_M: Floats, R0: float | None, lo: Floats, hi: Floats
) -> Floats:
    """The best of 30 x 40 shapes, as (A, log C_mid, log B, R0 / A); lo and hi bound that vector."""
    grid = np.meshgrid(np.linspace(lo[1], hi[1], 40), np.linspace(lo[2], hi[2], 30))
    log_mid_K, log_B_K = (axis.ravel() for axis in grid)
    f_KM = expit(np.exp(log_B_K)[:, None] * (log_C - log_mid_K[:, None]))
    A_K, R0_K = best_levels(f_KM, value_M, weight_M, R0)
    error_K = (R0_K[:, None] + (A_K - R0_K)[:, None] * f_KM - value_M) ** 2 @ weight_M
    k = int(np.argmin(error_K))
    return np.array([A_K[k], log_mid_K[k], log_B_K[k], R0_K[k] / max(A_K[k], 1e-12)])


def fit_paper(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    *,
    r0: float | str,
    A_grid: ArrayLike = PAPER_A,
    C_mid_grid: ArrayLike = PAPER_C_MID,
) -> PointFit:
    """The published procedure: the cell of a grid over (A, C_mid) with the least squared error.

    In every cell B is fitted alone by damped Gauss-Newton from B = 1, which is what
    `scipy.optimize.curve_fit` does with its default start; here all cells advance together.

    Args:
        compute_M: compute of M evaluations, >= 0, in the unit of C_mid_grid.
        value_M: their pass rates, fractions.
        r0: a number, or "first" as in `fit_point`.
        A_grid: candidate ceilings; the paper's are 0.450, 0.455, ..., 0.800.
        C_mid_grid: candidate C_mid; the paper states 100 values in [100, 40000] GPU-hours.

    Returns:
        The estimate, quantised to the grids. The status names a grid whose edge was chosen.

    Raises:
        ValueError: as `fit_point`, or r0="fit".

    Source: arXiv 2510.13786, A.5.
    """
    compute_M, value_M = _checked(compute_M, value_M)
    R0 = _resolve_r0(compute_M, value_M, r0)
    if R0 is None:
        raise ValueError("r0='fit': the grid of the paper has no R0; give a number or 'first'")
    compute_M, value_M = compute_M[compute_M > 0], value_M[compute_M > 0]
    if len(value_M) < 3:
        raise ValueError(f"{len(value_M)} points with C > 0 for 3 parameters")
    A_grid, C_mid_grid = np.asarray(A_grid, np.float64), np.asarray(C_mid_grid, np.float64)
    A_K, C_mid_K = (a.ravel() for a in np.meshgrid(A_grid, C_mid_grid, indexing="ij"))
    u_KM = np.log(compute_M) - np.log(C_mid_K)[:, None]
    B_K, sse_K = _fit_B(u_KM, value_M - R0, (A_K - R0)[:, None])
    k = int(np.argmin(sse_K))
    edges = [
        f"{name} at the edge of its grid"
        for name, value, grid in (("A", A_K[k], A_grid), ("C_mid", C_mid_K[k], C_mid_grid))
        if value in (np.min(grid), np.max(grid))
    ]
    rmse, n = float(np.sqrt(sse_K[k] / len(value_M))), len(value_M)
    status = "; ".join(edges) or "ok"
    return PointFit(float(A_K[k]), float(B_K[k]), float(C_mid_K[k]), R0, rmse, n, status)


def _fit_B(u_KM: Floats, rise_M: Floats, gain_K1: Floats) -> tuple[Floats, Floats]:
    """B_K that minimises sum_M (rise - gain * logistic(B u))^2, and that sum, for K cells."""

    def error(B_K: Floats) -> tuple[Floats, Floats]:
        f_KM = expit(B_K[:, None] * u_KM)
        residual_KM = rise_M - gain_K1 * f_KM
        slope_KM = gain_K1 * f_KM * (1 - f_KM) * u_KM
        curvature_K = np.maximum((slope_KM**2).sum(1), 1e-300)
        return (residual_KM**2).sum(1), (slope_KM * residual_KM).sum(1) / curvature_K

    B_K, damping_K = np.ones(len(u_KM)), np.full(len(u_KM), 1e-3)
    sse_K, step_K = error(B_K)
    for _ in range(60):
        trial_K = B_K + np.clip(step_K / (1 + damping_K), -1.0, 1.0)
        trial_sse_K, trial_step_K = error(trial_K)
        better_K = trial_sse_K < sse_K
        damping_K = np.where(better_K, damping_K / 5, damping_K * 5)
        B_K = np.where(better_K, trial_K, B_K)
        sse_K = np.where(better_K, trial_sse_K, sse_K)
        step_K = np.where(better_K, trial_step_K, step_K)
        if (damping_K > 1e6).all():  # no step of any cell has helped for a while
            break
    return B_K, sse_K


@dataclass(frozen=True)
class RunFit:
    """One run of a study: its labels, its fit up to compute `C_fit`, and its forecast's error.

    `fit` is None where too little of the run lies below C_fit; `status` then says so.
    """

    run: str
    recipe: str
    seed: object
    axes: str
    truth: float  # exact ceiling, NaN when unknown
    fit: PointFit | None
    C_fit: float  # the last fitted compute
    rmse_heldout: float  # NaN when nothing is held out
    status: str


def fit_study(
    frame: pd.DataFrame, *, holdout: float = 0.5, r0: float | str = "first"
) -> list[RunFit]:
    """`fit_point` of every run on C <= (1 - holdout) * C_max, scored on the rest.

        rmse_heldout = sqrt(mean over held-out points of (curve(C) - value)^2)

    Args:
        frame: table of curves (rlx.scaling.data.read).
        holdout: share of each run's compute range that is held out, in [0, 1); 0 fits everything.
        r0: a number, "first" or "fit" (see `fit_point`), or the name of a column of `frame`.

    Returns:
        One RunFit per run, in the order of the table.

    Raises:
        DataError: holdout or r0 cannot be used.
    """
    if not 0 <= holdout < 1:
        raise DataError("holdout", holdout, "not in [0, 1)", "0.5 holds out the second half")
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
    except ValueError as error:
        fit, rmse, status = None, np.nan, f"too short: {error}"
    else:
        status = fit.status
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
        C_fit=C_fit,
        rmse_heldout=rmse,
        status=status,
    )


def _start(run: str, rows: pd.DataFrame, r0: float | str) -> float | str:
    """`r0` of fit_point for one run: the value of the named column where r0 names one."""
    if isinstance(r0, str) and r0 not in ("first", "fit"):
        if r0 not in rows:
            raise DataError("r0", r0, "unknown", "use first, fit, a number or a column's name")
        r0 = float(rows[r0].iloc[0])
    if not isinstance(r0, str) and not 0 <= r0 < 1:
        raise DataError(
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
