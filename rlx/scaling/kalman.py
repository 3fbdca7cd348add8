"""The wander of a run and its Kalman filter, written once for NumPy and JAX.

    w_m     = rho_m w_(m-1) + sigma sqrt(1 - rho_m^2) z_m,   rho_m = exp(-gap_m / length)
    value_m = R(C_m) + w_m + e_m

an Ornstein-Uhlenbeck process of sd sigma, observed with noise e of known variance. `variances` and
`update` are one step of the filter: `rlx.scaling.model` scans them in JAX, `Kalman` loops over
them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlx.scaling.priors import Ops

Floats = NDArray[np.float64]


def drift(w: Any, rho: Any, sigma: Any, z: Any, ops: Ops) -> Any:
    """The wander after a gap, from a standard normal z."""
    return rho * w + sigma * ops.sqrt(1 - rho**2) * z


def variances(P: Any, rho: Any, sigma: Any, noise: Any, is_seen: Any) -> tuple[Any, Any, Any]:
    """From the variance P of the wander: its variance after the next evaluation, the gain of that
    evaluation, and the variance of its innovation.

    sigma: sd of the wander; noise: variance of e; is_seen: 1, or 0 if there is no evaluation.
    """
    ahead = sigma**2 + rho**2 * (P - sigma**2)
    innovation = ahead + noise
    gain = is_seen * ahead / innovation
    return ahead * (1 - gain), gain, innovation


def update(mean: Any, rho: Any, gain: Any, residual: Any) -> tuple[Any, Any]:
    """Mean of the wander after the next evaluation, and that evaluation's innovation."""
    ahead = rho * mean
    innovation = residual - ahead
    return ahead + gain * innovation, innovation


class Kalman:
    """The filter along the evaluations of R runs, for X settings, in NumPy."""

    def __init__(self, C_RM: Floats, sd_X: Floats, length_X: Floats):
        self.seen_RM = np.isfinite(C_RM)
        step_RM = np.diff(C_RM, axis=1, prepend=np.nan)
        inner = [step[np.isfinite(step)] for step in step_RM]
        self.gap_R = np.array([np.median(step) if len(step) else 1.0 for step in inner])
        gap_RM = np.where(np.isfinite(step_RM), step_RM / self.gap_R[:, None], np.inf)
        self.rho_XRM = np.exp(-gap_RM / length_X[:, None, None])
        self.sd_X1 = sd_X[:, None]

    def run(self, residual_XRM: Floats, var_XRM: Floats) -> tuple[Floats, Floats, Floats]:
        """One-step-ahead errors over their sd [X, R, M], NaN without an evaluation, and the mean
        and variance [X, R] of the wander after the last evaluation."""
        X, R = len(self.sd_X1), len(self.seen_RM)
        mean, P = np.zeros((X, R)), np.broadcast_to(self.sd_X1**2, (X, R))
        z_XRM = np.full((X, *self.seen_RM.shape), np.nan)
        for m in range(self.seen_RM.shape[1]):
            seen_R, rho = self.seen_RM[:, m], self.rho_XRM[..., m]
            P_next, gain, S = variances(P, rho, self.sd_X1, var_XRM[..., m], 1.0)
            residual = np.where(seen_R, residual_XRM[..., m], 0.0)
            mean_next, error = update(mean, rho, gain, residual)
            z_XRM[..., m] = np.where(seen_R, error / np.sqrt(S), np.nan)
            mean, P = np.where(seen_R, mean_next, mean), np.where(seen_R, P_next, P)
        return z_XRM, mean, P
