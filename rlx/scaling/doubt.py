"""What a forecast adds to the fitted curve: the model's own doubt about what lies beyond the data.

Real curves are in no family: they bend later than a sigmoid, in two steps, or not at all. Inside
the data that is the wander's to explain; beyond the last evaluation, at C > C_T, every draw of
the posterior gets, with L = log(C / C_T),

    R(C) = curve(C) + drift * (line(C) - curve(C)) + sd * W(L)

    line(C) = R_T + (1 - R_T) (1 - exp(-pace L / (1 - R_T)))     the present pace in log C, kept up
    pace    = (R(C_T) - R(C_T / 3)) / log 3                      of the fitted curve
    drift   ~ normal, most of it shared by all runs of a study: they are wrong together
    sd^2    = walk^2 + (walk_pace * pace)^2
    W       Brownian motion in log C, of each run its own

At drift = 0 the curve is right; at 1 the run goes on to climb as it does now. So a forecast's sd
grows with log C and with the pace, and differences between the runs of a study stay sharp, for the
shared part cancels. Two kinds of runs have no curve to follow. A run that fell (`departure`) stays
at its last level, give or take FALLEN_SD sqrt(1 + L). A run that has not begun to rise stays where
it is in a share `stays` of the draws, and follows its siblings' curves in the others.

The constants were chosen on the sets of `experiments.calibration sets=all`, each group of sets
scored with those chosen on the others.

Letters: X draws, N runs or recipes, C computes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PAST = 3.0  # factor of compute over which the pace is taken
KNOTS = np.r_[0.0, np.geomspace(0.01, 16.0, 24)]  # of W, in log C
DOUBT_SEED = 1  # equal questions get equal answers


@dataclass(frozen=True)
class Doubt:
    """Constants of the doubt; see the module's docstring."""

    drift: tuple[float, float] = (0.2, 0.5)  # mean, sd
    shared: float = 0.6  # of the drift's variance, common to the runs of a study
    walk: float = 0.012  # pass rate per root of log C
    walk_pace: float = 0.1  # of the pace, per root of log C
    stays: float = 0.5  # of draws, where a run has not begun to rise


@dataclass(frozen=True)
class Paths:
    """Random numbers of the doubt, the same for every question."""

    drift_XN: Floats
    steps_XNK: Floats  # of W from knot to knot
    fate_XN: Floats  # uniform: which draws stay

    @classmethod
    def draw(cls, X: int, N: int, doubt: Doubt) -> Paths:
        rng = np.random.default_rng(DOUBT_SEED)
        common_X1 = rng.normal(size=(X, 1))
        mean, sd = doubt.drift
        own_XN = rng.normal(size=(X, N))
        drift = mean + sd * (doubt.shared**0.5 * common_X1 + (1 - doubt.shared) ** 0.5 * own_XN)
        steps = rng.normal(size=(X, N, len(KNOTS) - 1)) * np.sqrt(np.diff(KNOTS))
        return cls(drift, steps, rng.random((X, N)))

    def brownian(self, L_NC: Floats) -> Floats:
        """W at L [X, N, C]: between knots a line, scaled to the variance L of a Brownian motion."""
        W_XNK = np.concatenate([np.zeros((*self.steps_XNK.shape[:2], 1)), self.steps_XNK], -1).cumsum(-1)
        k_NC = np.clip(np.searchsorted(KNOTS, L_NC, side="right") - 1, 0, len(KNOTS) - 2)
        left, width = KNOTS[k_NC], np.diff(KNOTS)[k_NC]
        u_NC = (L_NC - left) / width
        ends = [np.take_along_axis(W_XNK, (k_NC + i)[None], axis=2) for i in (0, 1)]
        variance = left + u_NC**2 * width
        scale = np.sqrt(np.divide(L_NC, variance, out=np.ones_like(L_NC), where=variance > 0))
        return scale * ((1 - u_NC) * ends[0] + u_NC * ends[1])


def beyond(
    curve_XNC: Floats, L_NC: Floats, now_XN: Floats, before_XN: Floats, paths: Paths, doubt: Doubt
) -> Floats:
    """Pass rates with the doubt [X, N, C].

    Args:
        curve_XNC: the fitted curves.
        L_NC: log(C / C_T), 0 up to C_T, where nothing changes.
        now_XN, before_XN: the curves at C_T and C_T / PAST.
        paths: random numbers.
        doubt: constants.
    """
    pace_XN1 = ((now_XN - before_XN) / np.log(PAST))[..., None]
    room_XN1 = np.maximum(1 - now_XN, 1e-6)[..., None]
    line_XNC = now_XN[..., None] - room_XN1 * np.expm1(-pace_XN1 * L_NC / room_XN1)
    sd_XN1 = np.hypot(doubt.walk, doubt.walk_pace * pace_XN1)
    moved = paths.drift_XN[..., None] * (line_XNC - curve_XNC) + sd_XN1 * paths.brownian(L_NC)
    return np.clip(curve_XNC + np.where(L_NC > 0, moved, 0.0), 0.0, 1.0)
