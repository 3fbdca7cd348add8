"""The doubt that forecasts add to the fitted curve: it may be wrong beyond the data.

Real curves fit no family exactly: they bend later than a sigmoid, or in two steps. Within the data
the wander absorbs this. Beyond the last evaluation, at C > C_T with L = log(C / C_T), every draw of
the posterior is

    R(C) = curve(C) + drift * (line(C) - curve(C)) + sd * W(L)

    line(C) = R_T + (1 - R_T) (1 - exp(-pace L / (1 - R_T)))     goes on at the pace in log C
    pace    = (R(C_T) - R(C_T / 3)) / log 3                      of the fitted curve
    drift   ~ normal                                             0: the curve is right; 1: the line
    sd^2    = walk^2 + (walk_pace * pace)^2
    W       Brownian motion

so the doubt grows with log C and with the pace of the run. Drift and W are drawn per recipe, and a
share `shared` of their variance is common to the study. On the sets where this was measured, the
errors of a recipe's seeds agree to within 0.005; those of recipes have an sd of 0.01 to 0.05 around
a mean of the study that is as large. Differences are therefore better known than levels.

The constants were chosen on the sets of `experiments.calibration sets=all`; docs/results.md says
what they score there, and on groups of sets that did not choose them.

Letters: X draws, J recipes, N runs or recipes, C computes, K knots.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PAST = 3.0  # factor of compute over which the pace is taken
KNOTS = np.r_[0.0, np.geomspace(0.01, 16.0, 24)]  # of W, in log C
LEAST_ROOM = 1e-6  # least difference between 1 and a pass rate
PURPOSES = (
    "evaluation", "doubt", "seed", "wander", "fate", "level", "bought run", "bought seed",
    "fallen",
)  # fmt: skip


@dataclass(frozen=True)
class Doubt:
    """Constants of the doubt, see the module's docstring; for `stays` see rlx.scaling.fate."""

    drift: tuple[float, float] = (0.2, 0.4)  # mean, sd
    walk: float = 0.014  # pass rate per root of log C
    walk_pace: float = 0.1  # of the pace, per root of log C
    shared: float = 0.6  # of the variance of drift and W, common to the recipes of a study
    stays: float = 0.5  # share of draws in which a run that has not begun to rise stays level

    @staticmethod
    def text(doubt: Doubt | None) -> str:
        """As JSON."""
        return json.dumps(None if doubt is None else asdict(doubt))

    @classmethod
    def of(cls, text: str | None) -> Doubt | None:
        """From `text`; the default where there is none."""
        if text is None:
            return cls()
        held = json.loads(text)
        return None if held is None else cls(**held | {"drift": tuple(held["drift"])})


@dataclass(frozen=True)
class Noise:
    """Random numbers of the doubt, the same for every question."""

    drift_XJ: Floats
    W_XJK: Floats  # at KNOTS


def random(purpose: str) -> np.random.Generator:
    """Random numbers of one of PURPOSES, independent of those of the others; always the same, so
    that equal questions get equal answers."""
    return np.random.default_rng(PURPOSES.index(purpose))


def noise(X: int, J: int, doubt: Doubt, rng: np.random.Generator | None = None) -> Noise:
    """Draws of drift and W; part of each is common to the study, part is the recipe's own."""
    rng = random("doubt") if rng is None else rng

    def shared(*shape: int) -> Floats:
        study, recipe = rng.normal(size=(X, 1, *shape)), rng.normal(size=(X, J, *shape))
        return doubt.shared**0.5 * study + (1 - doubt.shared) ** 0.5 * recipe

    mean, sd = doubt.drift
    steps = shared(len(KNOTS) - 1) * np.sqrt(np.diff(KNOTS))
    W = np.concatenate([np.zeros((X, J, 1)), steps.cumsum(-1)], -1)
    return Noise(mean + sd * shared(), W)


def brownian(W_XNK: Floats, L_NC: Floats) -> Floats:
    """W at L [X, N, C]: linear between knots, scaled to the variance L of Brownian motion."""
    k_NC = np.clip(np.searchsorted(KNOTS, L_NC, side="right") - 1, 0, len(KNOTS) - 2)
    left, width = KNOTS[k_NC], np.diff(KNOTS)[k_NC]
    u_NC = (L_NC - left) / width
    here, after = (np.take_along_axis(W_XNK, (k_NC + i)[None], axis=2) for i in (0, 1))
    variance = left + u_NC**2 * width
    scale = np.sqrt(np.divide(L_NC, variance, out=np.ones_like(L_NC), where=variance > 0))
    return scale * ((1 - u_NC) * here + u_NC * after)


def doubted(
    curve_XNC: Floats,
    L_NC: Floats,
    now_XN: Floats,
    before_XN: Floats,
    noise: Noise,
    recipe_N: NDArray[np.int64],
    doubt: Doubt,
) -> Floats:
    """Pass rates with the doubt [X, N, C]; unchanged where L <= 0.

    Args:
        curve_XNC: the fitted curves.
        L_NC: log(C / C_T), at most 0 up to C_T.
        now_XN, before_XN: the curves at C_T and at C_T / PAST.
        noise: random numbers.
        recipe_N: the recipe of each run.
        doubt: constants.
    """
    L_NC = np.maximum(L_NC, 0.0)
    pace_XN1 = ((now_XN - before_XN) / np.log(PAST))[..., None]
    room_XN1 = np.maximum(1 - now_XN, LEAST_ROOM)[..., None]
    line_XNC = now_XN[..., None] - room_XN1 * np.expm1(-pace_XN1 * L_NC / room_XN1)
    sd_XN1 = np.hypot(doubt.walk, doubt.walk_pace * pace_XN1)
    drift_XN1 = noise.drift_XJ[:, recipe_N, None]
    moved = drift_XN1 * (line_XNC - curve_XNC) + sd_XN1 * brownian(noise.W_XJK[:, recipe_N], L_NC)
    return np.where(L_NC > 0, np.clip(curve_XNC + moved, 0.0, 1.0), curve_XNC)
