"""The filter of the wander, an Ornstein-Uhlenbeck process seen with noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Kalman:
    """Filter of an Ornstein-Uhlenbeck wander along the evaluations of R runs, for X settings."""

    def __init__(self, C_RM: Floats, sd_X: Floats, length_X: Floats):
        self.seen_RM = np.isfinite(C_RM)
        step_RM = np.diff(C_RM, axis=1, prepend=np.nan)
        inner = [step[np.isfinite(step)] for step in step_RM]
        self.gap_R = np.array([np.median(step) if len(step) else 1.0 for step in inner])
        gap_RM = np.where(np.isfinite(step_RM), step_RM / self.gap_R[:, None], np.inf)
        self.decay_XRM = np.exp(-gap_RM / length_X[:, None, None])
        self.var_X1 = sd_X[:, None] ** 2

    def run(self, residual_XRM: Floats, var_XRM: Floats) -> tuple[Floats, Floats, Floats]:
        """One-step-ahead errors over their sd [X, R, M], NaN where nothing was seen, and the mean
        and variance [X, R] of the wander after the last evaluation."""
        X, R = len(self.var_X1), len(self.seen_RM)
        mean, P = np.zeros((X, R)), np.broadcast_to(self.var_X1, (X, R))
        z_XRM = np.full((X, *self.seen_RM.shape), np.nan)
        for m in range(self.seen_RM.shape[1]):
            seen_R, decay = self.seen_RM[:, m], self.decay_XRM[..., m]
            ahead, P_ahead = decay * mean, self.var_X1 + decay**2 * (P - self.var_X1)
            S = P_ahead + var_XRM[..., m]
            error = np.where(seen_R, residual_XRM[..., m], 0.0) - ahead
            z_XRM[..., m] = np.where(seen_R, error / np.sqrt(S), np.nan)
            mean = np.where(seen_R, ahead + P_ahead / S * error, mean)
            P = np.where(seen_R, P_ahead * (1 - P_ahead / S), P)
        return z_XRM, mean, P
