"""Forecasts: the curve, the next evaluation, and the gain of more compute."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from rlx.errors import InputError
from rlx.scaling.doubt import random
from rlx.scaling.draws import Draws, computes, number, quantiles
from rlx.scaling.parameters import prior_share
from rlx.scaling.paths import paths

Floats = NDArray[np.float64]

MAX_CELLS = 10_000_000  # draws x curves x computes at once


def curve(
    fit: Draws, compute: ArrayLike, by: str = "recipe", seeds: str = "typical"
) -> xr.DataArray:
    """Latent pass rate at `compute`: draws (chain, draw, recipe|run, compute).

    seeds: of a recipe, its "typical" seed or a "new" one.

    Raises InputError if `compute` is not numbers from 0 on.
    """
    fit.guard()
    compute_C = computes("compute", compute)
    x = fit.label(paths(fit, compute_C, by, seeds), by, compute=compute_C)
    return x.assign_coords(
        extrapolation=((by, "compute"), compute_C / fit.last_compute(by)[:, None]),
        prior_share=((by, "compute"), curve_prior_share(fit, compute_C, by)),
    )


def curve_prior_share(fit: Draws, compute_C: Floats, by: str) -> Floats:
    """sd of the pass rate at C over that of the prior [N, C]."""
    sd_NC = fit.prior_curves(by).at(compute_C).std(0)
    return paths(fit, compute_C, by).std(0) / np.maximum(sd_NC, 1e-9)


def predict(
    fit: Draws, compute: ArrayLike, by: str = "run", trials: float | None = None
) -> xr.DataArray:
    """A new evaluation at `compute`: draws of curve + wander + sampling noise.

    The wander of a run is that of its evaluations around `compute`; beyond the last it carries over
    and decays with the gap. A recipe's is that of a new seed. `trials`: graded samples, default as
    the run's fitted evaluations (without those, the noise of the fit).

    Raises InputError if they are not above 0, or `compute` not numbers from 0 on.
    """
    fit.guard()
    compute_C = computes("compute", compute)
    if trials is not None and not trials > 0:
        raise InputError("trials", trials, "no graded samples", "give a number above 0")
    latent = paths(fit, compute_C, by, "new" if by == "recipe" else "typical")
    mean, var = wander_at(fit, compute_C, by)
    p = np.clip(latent + mean + np.sqrt(var) * random("wander").normal(size=latent.shape), 0, 1)
    x = p + noise_sd(fit, p, by, trials) * random("evaluation").normal(size=p.shape)
    return fit.label(np.clip(x, 0, 1), by, compute=compute_C).assign_coords(
        extrapolation=((by, "compute"), compute_C / fit.last_compute(by)[:, None])
    )


def bands(
    fit: Draws, compute_C: Floats, by: str, prob: float = 0.9, *, new: bool = False
) -> Floats:
    """Lower, median and upper quantile [3, N, C] of `curve`, or if `new` of `predict`, by parts of
    at most MAX_CELLS numbers."""
    sizes = fit.tree["posterior"].sizes
    cells = sizes["chain"] * sizes["draw"] * len(fit.names(by)) * len(compute_C)
    points = ((1 - prob) / 2, 0.5, (1 + prob) / 2)
    ask = predict if new else curve
    parts = np.array_split(compute_C, math.ceil(cells / MAX_CELLS))
    drawn = (ask(fit, part, by).values for part in parts)
    return np.concatenate([np.quantile(x, points, axis=(0, 1)) for x in drawn], axis=-1)


def predictive(
    fit: Draws, compute: list[Floats], stderr: list[Floats], runs: list[int]
) -> tuple[Floats, Floats, Floats]:
    """Draws, and mean and sd given theta, [X, n], of given evaluations of given runs.

    The n points of all runs are concatenated. NaN in stderr: the default of
    `predict`.
    """
    fit.guard()
    width = max(map(len, compute))
    compute_RC = np.ones((len(fit.runs), width))
    use = np.zeros(compute_RC.shape, bool)
    sd_RC = np.zeros(compute_RC.shape)
    for i, C, sd in zip(runs, compute, stderr, strict=True):
        compute_RC[i, : len(C)], sd_RC[i, : len(C)], use[i, : len(C)] = C, sd, True
    wander, var = wander_at(fit, np.where(use, compute_RC, np.inf), "run")
    mean = np.clip(paths(fit, compute_RC, "run") + wander, 0, 1)
    fitted = noise_sd(fit, mean, "run", None)
    sd = np.sqrt(var + np.where(np.isnan(sd_RC), fitted, sd_RC) ** 2)
    mean, sd = mean[:, use], np.broadcast_to(sd, mean.shape)[:, use]
    z = random("evaluation").normal(size=mean.shape)
    return mean + sd * z, mean, sd


def wander_at(fit: Draws, compute_C: Floats, by: str) -> tuple[Floats, Floats]:
    """Mean and variance [X, N, C] of the wander at computes [C] or [N, C]."""
    var_X = np.exp(2 * fit.site("log_wander_sd"))[:, None, None]
    if by == "recipe" or fit.attrs["noise"] == "betabinomial":
        shape = (len(var_X), len(fit.names(by)), compute_C.shape[-1])
        return np.zeros(shape), np.broadcast_to(var_X, shape)
    mean_XR, P_XR, gap_R = fit.wander
    last_R = fit.last_compute("run")
    ahead = np.maximum(compute_C - last_R[:, None], 0) / gap_R[:, None]
    decay = np.exp(-ahead[None] / np.exp(fit.site("log_wander_length"))[:, None, None])
    mean, var = decay * mean_XR[..., None], var_X + decay**2 * (P_XR[..., None] - var_X)
    filtered_R = np.minimum(last_R, np.nanmax(fit.constant("compute"), axis=1))
    before = compute_C < filtered_R[:, None]
    if not before.any():
        return mean, var
    earlier = fit.wander_before(np.broadcast_to(compute_C, before.shape))
    return np.where(before, earlier[0], mean), np.where(before, earlier[1], var)


def noise_sd(fit: Draws, p: Floats, by: str, trials: float | None) -> Floats:
    """sd of the sampling noise of a new evaluation with pass rates p [X, N, C]: by `trials`, else
    the median of the fitted evaluations, else, where they have none, the noise of the fit."""
    if trials is not None:
        return np.sqrt(p * (1 - p) / trials)
    later = fit.evals.frame[fit.evals.frame["compute"] > 0]  # not pooled
    sd_N = later.groupby("run")["stderr"].median().loc[fit.runs].to_numpy()
    if by == "recipe":
        own = [sd_N[(fit.recipe_of_run == j) & ~np.isnan(sd_N)] for j in range(len(fit.recipes))]
        sd_N = np.array([sd.mean() if len(sd) else np.nan for sd in own])
    sd_XN = sd_N[None]
    if "log_noise_sd" in fit.tree["posterior"]:
        sd_XN = np.where(np.isnan(sd_N), np.exp(fit.site("log_noise_sd"))[:, None], sd_N)
    return sd_XN[..., None]


def gain(fit: Draws, extra: float, by: str = "run", prob: float = 0.9) -> pd.DataFrame:
    """Gain of `extra` compute beyond the last evaluation: R(C + extra) - R(C).

    Raises InputError if `extra` is not above 0.
    """
    fit.guard()
    extra = number("extra", extra, 0, np.inf, "not a positive compute", "give a compute above 0")
    last = fit.last_compute(by)
    ends_N2 = np.stack([np.nextafter(last, np.inf), last + extra], 1)  # after a fall
    more = np.diff(paths(fit, ends_N2, by))[..., 0]
    table = pd.DataFrame({"name": fit.names(by), "compute": last, "extra": extra})
    table["mean"] = more.mean(0)
    table = table.join(quantiles(more, prob))
    table["per_compute"], table["extrapolation"] = more.mean(0) / extra, (last + extra) / last
    table["prior_share"] = prior_share(fit, "A", by)
    return table
