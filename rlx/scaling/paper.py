"""The fits of arXiv 2510.13786, for comparison with published numbers: its grid search, its
comparison of efficiency at equal ceilings, and its power law."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from rlx.scaling.curve import power
from rlx.scaling.point import B_BOUNDS, TINY, PointFit, window_of
from rlx.scaling.profile import descend, errors_of

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

# arXiv 2510.13786, A.5: 71 ceilings, and 100 values of C_mid in [100, 40000] GPU-hours. The printed
# C_mid are not on that grid (its step is 403): 1675, 2542, 2818, 2857, 2896, 2936 and 3054 are on
# the first grid below, 10909 and 11272 on the second, 4242 (Scout) on neither.
PAPER_A = np.arange(0.450, 0.8001, 0.005)
PAPER_C_MID = np.linspace(100.0, 40000.0, 100)
PAPER_C_MID_SHORT = np.floor(np.linspace(100.0, 4000.0, 100))
PAPER_C_MID_LONG = np.floor(np.linspace(4000.0, 40000.0, 100))
PAPER_DROP_BELOW = 1500.0  # GPU-hours, about the first epoch (A.5)
PAPER_MARGIN = 0.02  # ceilings closer than this count as equal (A.5)


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


def fit_paper(
    compute_M: ArrayLike,
    value_M: ArrayLike,
    *,
    r0: float | str,
    A_grid: ArrayLike = PAPER_A,
    C_mid_grid: ArrayLike = PAPER_C_MID,
    drop_below: float = 0.0,
) -> PointFit:
    """The published procedure: the point of a grid over (A, C_mid) with the least squared error.

    At every point B is fitted alone by damped Gauss-Newton from B = 1, as
    `scipy.optimize.curve_fit` does with its default start; here all points advance together, and B
    stays within B_BOUNDS. The paper does not say where R0 comes from: "fit" gives every point its
    best R0 in [0, A] (in closed form given B), as `curve_fit` over (B, R0) would.

    Args:
        compute_M: compute of M evaluations, >= 0, in the unit of C_mid_grid.
        value_M: their pass rates, fractions.
        r0: a number, "first" or "fit", as in `fit_point`.
        A_grid: candidate ceilings; the paper's are 0.450, 0.455, ..., 0.800. One value fixes A.
        C_mid_grid: candidate C_mid; the paper states 100 values in [100, 40000] GPU-hours, and its
            printed values are on PAPER_C_MID_SHORT and PAPER_C_MID_LONG.
        drop_below: as in `fit_point`; the paper drops the first 1500 GPU-hours (PAPER_DROP_BELOW).

    Returns:
        The estimate, quantised to the grids. The status names a grid at whose edge it lies.

    Raises:
        ValueError: as `fit_point`, or if no candidate ceiling is above R0.

    Source: arXiv 2510.13786, A.5.
    """
    window = window_of(compute_M, value_M, r0, None, drop_below)
    A_grid, C_mid_grid = np.asarray(A_grid, np.float64), np.asarray(C_mid_grid, np.float64)
    floor = window.R0 or 0.0
    if A_grid.max() <= floor:
        raise ValueError(f"A_grid ends at {A_grid.max():g}, not above R0 = {floor:g}")
    A_K1, C_mid_K1 = (
        a.reshape(-1, 1) for a in np.meshgrid(A_grid[A_grid > floor], C_mid_grid, indexing="ij")
    )
    log_mid_K1 = np.log(C_mid_K1)

    def errors(log_B_k1: Floats, k: Indices) -> tuple[Floats, Floats]:
        residual_kM, slope_kM2, _ = errors_of(window, A_K1[k], log_mid_K1[k], log_B_k1)
        return residual_kM, slope_kM2[:, :, 1:]

    start_K1 = np.zeros(A_K1.shape)
    log_B_K1, sse_K = descend(errors, start_K1, window.lo[2:3], window.hi[2:3])
    k = int(np.argmin(sse_K))
    A, C_mid, B = float(A_K1[k, 0]), float(C_mid_K1[k, 0]), float(np.exp(log_B_K1[k, 0]))
    R0 = float(
        errors_of(window, A_K1[k : k + 1], log_mid_K1[k : k + 1], log_B_K1[k : k + 1])[2][0, 0]
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
    """Runs of equal ceiling, compared by B: each refitted with A fixed to their mean A.

    Args:
        curves: (compute_M, value_M) of each run.
        r0, C_mid_grid, drop_below: as in `fit_paper`.

    Returns:
        The refitted runs, largest B (most efficient) first.

    Raises:
        ValueError: as `fit_paper`, or if the freely fitted ceilings differ by more than 0.02
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
        drop_below: points below this compute are not fitted, nor are those at C = 0, where the
            power law is not defined.

    Returns:
        The estimate; D is in units of C^B. The status names a bound that was hit.

    Raises:
        ValueError: lengths differ, values are not finite, or fewer than 3 points are left.

    Source: arXiv 2510.13786, A.4.
    """
    window = window_of(compute_M, value_M, 0.0, None, drop_below)  # r0 is not used
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
