"""Point fits without the evaluations that do not follow the curve."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlx.scaling.point import PointFit, checked, fit_point, resolve_r0

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]

TRIM_STARTS = 20  # random halves from which trimming starts


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

    Outliers are judged among all points after each fit, so a point may return; the rounds end when
    a set repeats. Trimming (least trimmed squares) alternates between fitting and keeping the h
    best (C-steps) until a set repeats, from that fit and from 20 random halves of the n points; the
    smallest sum of h squared residuals wins. The halves have a fixed seed, so equal inputs give
    equal fits.

    Args:
        compute_M, value_M, r0: as in `fit_point`; R0 is resolved before any point is left out.
        tau: threshold of the modified z-score; the source uses 2.5, 3 and 4.
        alpha: share of points that trimming keeps, the source's 0.75 or 0.85; None: no trimming.

    Returns:
        The estimate, and which of the M points it used. Its rmse and status are over only those, so
        both are optimistic.

    Raises:
        ValueError: as `fit_point`, also when too few points are left.

    Source: arXiv 2512.11470, robust fitting; least trimmed squares and C-steps: Rousseeuw and Van
    Driessen 2006, Data Mining and Knowledge Discovery 12:29.
    """
    compute_M, value_M = checked(compute_M, value_M)
    R0 = resolve_r0(compute_M, value_M, r0)
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
