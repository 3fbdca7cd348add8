"""The wander of a run and its Kalman filter, written once for NumPy and JAX.

    w_m     = rho_m w_(m-1) + sigma sqrt(1 - rho_m^2) z_m,   rho_m = exp(-gap_m / length)
    value_m = R(C_m) + w_m + e_m

an Ornstein-Uhlenbeck process of sd sigma, observed with noise e of known variance. `variances` and
`update` are one step of the filter: `rlx.scaling.model` scans them in JAX, `Kalman` loops over
them.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        self.C_RM, self.sd_X, self.length_X = C_RM, sd_X, length_X
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
        mean, P = self._before()
        z_XRM = np.full((len(mean), *self.seen_RM.shape), np.nan)
        for m, (z, mean, P) in enumerate(self._steps(residual_XRM, var_XRM)):  # noqa: B007
            z_XRM[..., m] = z
        return z_XRM, mean, P

    def at(self, C_RC: Floats, residual_XRM: Floats, var_XRM: Floats) -> tuple[Floats, Floats]:
        """Mean and variance [X, R, C] of the wander at computes C, given all evaluations.

        Those up to C leave it with mean m and variance P, those after C, filtered backwards, with
        m' and P', and without any it has variance sigma^2:

            1 / V = 1 / P + 1 / P' - 1 / sigma^2,   mean = V (m / P + m' / P')
        """
        first_RC = np.sum(self.C_RM[:, None] <= C_RC[..., None], axis=-1)  # evaluations up to C
        mean, P = self._after(first_RC, C_RC, residual_XRM, var_XRM)
        back = Kalman(-self.C_RM[:, ::-1], self.sd_X, self.length_X)
        later_RC = self.C_RM.shape[1] - first_RC
        later = back._after(later_RC, -C_RC, residual_XRM[..., ::-1], var_XRM[..., ::-1])
        var = self.sd_X1[..., None] ** 2
        share, later_share = P / var, later[1] / var
        total = share + later_share - share * later_share
        return (mean * later_share + later[0] * share) / total, P * later_share / total

    def _after(
        self, first_RC: NDArray[np.int64], C_RC: Floats, residual_XRM: Floats, var_XRM: Floats
    ) -> tuple[Floats, Floats]:
        """Mean and variance [X, R, C] of the wander at C, given the first columns up to C."""
        states = [self._before(), *(s[1:] for s in self._steps(residual_XRM, var_XRM))]
        mean, P = (
            np.take_along_axis(np.stack(x, axis=-1), first_RC[None], axis=-1)
            for x in zip(*states, strict=True)
        )
        last_RC = np.take_along_axis(self.C_RM, np.maximum(first_RC - 1, 0), axis=-1)
        gap_RC = np.nan_to_num((C_RC - last_RC) / self.gap_R[:, None])  # NaN: nothing to forget
        rho = np.exp(-np.maximum(gap_RC, 0) / self.length_X[:, None, None])
        var = self.sd_X1[..., None] ** 2
        return rho * mean, var + rho**2 * (P - var)

    def _before(self) -> tuple[Floats, Floats]:
        """Mean and variance [X, R] of the wander before any evaluation."""
        shape = (len(self.sd_X), len(self.C_RM))
        return np.zeros(shape), np.broadcast_to(self.sd_X1**2, shape)

    def _steps(
        self, residual_XRM: Floats, var_XRM: Floats
    ) -> Iterator[tuple[Floats, Floats, Floats]]:
        """After each column: its error over its sd, mean and variance of the wander [X, R]."""
        mean, P = self._before()
        for m in range(self.seen_RM.shape[1]):
            seen_R, rho = self.seen_RM[:, m], self.rho_XRM[..., m]
            P_next, gain, S = variances(P, rho, self.sd_X1, var_XRM[..., m], 1.0)
            residual = np.where(seen_R, residual_XRM[..., m], 0.0)
            mean_next, error = update(mean, rho, gain, residual)
            mean, P = np.where(seen_R, mean_next, mean), np.where(seen_R, P_next, P)
            yield np.where(seen_R, error / np.sqrt(S), np.nan), mean, P
