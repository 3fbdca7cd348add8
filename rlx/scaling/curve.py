"""The scaling curve of a run: pass rate against training compute.

The sigmoid of "The Art of Scaling Reinforcement Learning Compute for LLMs" (arXiv 2510.13786,
Eq. 1). Written as a logistic in log C it neither overflows nor loses R0 at C = 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit


def sigmoid(
    compute_C: ArrayLike, *, A: ArrayLike, B: ArrayLike, C_mid: ArrayLike, R0: ArrayLike
) -> NDArray[np.float64]:
    """Pass rate after compute C.

        R = R0 + (A - R0) / (1 + (C_mid / C)^B) = R0 + (A - R0) * logistic(B * log(C / C_mid))

    Args:
        compute_C: training compute, >= 0, in any unit; exactly 0 gives exactly R0.
        A: ceiling, a fraction in [0, 1].
        B: steepness, > 0, no unit.
        C_mid: compute where half of A - R0 is gained, > 0, in the unit of compute_C.
        R0: pass rate at C = 0, a fraction in [0, 1].

    Returns:
        Pass rates, a fraction; the arguments broadcast.

    Raises:
        ValueError: some compute is negative.

    Source: arXiv 2510.13786, Eq. 1.
    """
    compute_C = np.asarray(compute_C, dtype=np.float64)
    if np.any(compute_C < 0):
        raise ValueError(f"compute_C={compute_C.min():g}: negative; compute starts at 0")
    with np.errstate(divide="ignore"):  # log 0 = -inf, where the logistic is exactly 0
        log_C = np.log(compute_C)
    return R0 + (np.asarray(A) - R0) * expit(B * (log_C - np.log(C_mid)))


def compute_to(
    target: ArrayLike, *, A: ArrayLike, B: ArrayLike, C_mid: ArrayLike, R0: ArrayLike
) -> NDArray[np.float64]:
    """Compute at which the curve reaches `target`: the inverse of `sigmoid`.

        C = C_mid * ((y - R0) / (A - y))^(1 / B)

    Args:
        target: pass rate y, a fraction.
        A, B, C_mid, R0: as in `sigmoid`.

    Returns:
        Compute in the unit of C_mid; inf where A <= y (never reached), 0 where y <= R0 (reached
        before training); the arguments broadcast.

    Source: arXiv 2510.13786, Eq. 1, solved for C.
    """
    target, A, B, C_mid, R0 = np.broadcast_arrays(target, A, B, C_mid, R0)
    gained = np.maximum(np.asarray(target - R0, dtype=np.float64), 0.0)
    left = np.asarray(A - target, dtype=np.float64)
    odds = np.divide(gained, left, out=np.full(left.shape, np.inf), where=left > 0)
    return np.where(gained == 0, np.where(left > 0, 0.0, np.inf), C_mid * odds ** (1 / B))
