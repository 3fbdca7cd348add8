"""Tests of the residuals of a fit, on the evaluations that it has seen.

With Sigma the covariance of sampling noise and wander, m_X the draws of the curves and r = value -
mean(m_X), the residuals of a right model have covariance Sigma - Cov(m_X), as far as curves are
linear in their parameters: the curves have absorbed what they can. So for any direction d,

    z = d' Sigma^-1 r / sqrt(d' Sigma^-1 d - Var_X(d' Sigma^-1 m_X))

is a standard normal, as it is for a sum over any runs, whatever parameters they share:

    late     d = 1 over the last quarter of a run: its mean residual
    slope    d = C - C_k over the last third, after evaluation k: does it rise as its curve does

Runs may be wrong one by one or together, so both are tested for every run, for the runs of each
recipe and for all runs. With u = L^-1 r the innovations (Sigma = L L'), every run has two more:

    memory   sum_m u_m u_(m-1) / sqrt(n - 1), a standard normal: stretches on one side of the curve
    scatter  sum_m u_m^2, a chi^2 with n - trace(Sigma^-1 Cov(m_X)) degrees of freedom

Sigma is that of the median wander and noise. The wander is fitted to the same residuals and hides
some of what is wrong, so a finding proves more than no finding. With method=laplace the mean curve
may itself be off by a standard error, which the test of all runs together shows; the remedy is then
method=nuts.

Source: the covariance is that of the normal linear model, r = Sigma (Sigma + P)^-1 (value - prior
mean) with P the prior covariance of the curves. Robins, van der Vaart and Ventura 2000 (JASA
95:1143) explain why a posterior predictive p-value without it rejects too rarely.

Letters: X draws, R runs, M evaluations, K directions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from rlx.scaling.draws import Draws
from rlx.scaling.kalman import Kalman
from rlx.scaling.priors import COORDINATES, NUMPY

Floats = NDArray[np.float64]

MOST_DRAWS = 400
LEAST = 6  # evaluations that a run needs for a test
FREE = 0.1  # share of d' Sigma^-1 d that the curve must leave for a test
FAR = 3.0  # prior sds


def residual_tests(fit: Draws) -> pd.DataFrame:
    """Every test of the module's docstring: test, level (run, recipe, study), name, z, by (mean
    residual in the direction, a pass rate), p_value."""
    every = -(-len(fit.site("theta_run")) // MOST_DRAWS)
    C_RM, value_RM = fit.constant("compute"), np.asarray(fit.group("observed_data")["value"])
    curve_XRM = fit.curves("run").at(np.nan_to_num(C_RM, nan=1.0))[::every]
    residual_RM = np.where(np.isfinite(value_RM), value_RM - curve_XRM.mean(0), 0.0)
    n_R = np.isfinite(value_RM).sum(1)
    innovation_RM = whitened(fit, residual_RM[None])[0]
    curve_XRM = whitened(fit, curve_XRM - curve_XRM.mean(0))
    members = groups(fit, np.flatnonzero(n_R >= LEAST))
    rows = []
    for test, d_RM in directions(C_RM, n_R).items():
        white_RM = whitened(fit, d_RM[None])[0]
        norm_R = np.sqrt(np.maximum((white_RM**2).sum(1), 1e-300))
        white_RM = white_RM / norm_R[:, None]
        score_R = (white_RM * innovation_RM).sum(1)
        taken_XR = np.einsum("rm,xrm->xr", white_RM, curve_XRM)
        for level, name, runs in members:
            left = len(runs) - taken_XR[:, runs].sum(1).var()
            if left < FREE * len(runs):
                continue
            z = score_R[runs].sum() / np.sqrt(left)
            by = np.mean([np.average(residual_RM[r], weights=d_RM[r]) for r in runs])
            rows.append((test, level, name, z, by, 2 * norm.sf(abs(z))))
    for _, name, (r, *_) in [x for x in members if x[0] == "run"]:
        u_M, n = innovation_RM[r, : n_R[r]], n_R[r]
        memory = (u_M[1:] * u_M[:-1]).sum() / np.sqrt(n - 1)
        rows.append(("memory", "run", name, memory, np.nan, norm.sf(memory)))
        free = max(n - curve_XRM[:, r].var(0).sum(), 1.0)
        p_value = chi2.sf((u_M**2).sum(), free)
        rows.append(
            ("scatter", "run", name, norm.isf(p_value), np.sqrt((u_M**2).sum() / free), p_value)
        )
    return pd.DataFrame(rows, columns=["test", "level", "name", "z", "by", "p_value"])


def whitened(fit: Draws, x_KRM: Floats) -> Floats:
    """L^-1 x, 0 where nothing was seen."""
    wander = {name: np.exp(np.median(fit.site(f"log_wander_{name}"))) for name in ("sd", "length")}
    sd_K, length_K = (np.full(len(x_KRM), x) for x in wander.values())
    var_RM = np.median(fit.noise_variance(), 0)
    if "log_weight" in fit.tree["posterior"]:
        weight_RM = np.exp(np.median(fit.site("log_weight"), 0))[:, : var_RM.shape[1]]
        var_RM = var_RM / weight_RM
    return np.nan_to_num(
        Kalman(fit.constant("compute"), sd_K, length_K).run(x_KRM, var_RM[None])[0]
    )


def directions(C_RM: Floats, n_R: NDArray[np.int64]) -> dict[str, Floats]:
    """d of `late` and `slope`, [R, M], scaled so that the largest of each run is 1."""
    d = {"late": np.zeros(C_RM.shape), "slope": np.zeros(C_RM.shape)}
    for r, n in enumerate(n_R):
        if n >= LEAST:
            d["late"][r, n - n // 4 : n] = 1.0
            k = n - n // 3
            d["slope"][r, k:n] = (C_RM[r, k:n] - C_RM[r, k - 1]) / (C_RM[r, n - 1] - C_RM[r, k - 1])
    return d


def groups(fit: Draws, some: NDArray[np.int64]) -> list[tuple[str, str, list[int]]]:
    """(level, name, runs): each of `some` runs, the runs of each recipe, and all of them, without
    runs that departed upwards; no set of runs twice."""
    kept = [int(r) for r in some if fit.departed.get(fit.runs[r], -1.0) < 0]
    found = [("run", fit.runs[r], [r]) for r in kept]
    for j, recipe in enumerate(fit.recipes):
        found.append(("recipe", recipe, [r for r in kept if fit.recipe_of_run[r] == j]))
    found.append(("study", "all runs", kept))
    first: dict[tuple[int, ...], tuple[str, str, list[int]]] = {}
    for group in found:
        if group[2]:
            first.setdefault(tuple(group[2]), group)
    return list(first.values())


def far_from_prior(fit: Draws) -> pd.DataFrame:
    """Sites whose posterior mean lies FAR prior sds from the prior's, or farther: site, mean, sds.

    Tested are the population's mean, the wander, the noise and the family's own parameters. The sds
    between recipes and between seeds are not, because any value of them is plausible.
    """
    held = {str(name): fit.site(str(name)).mean(0) for name in fit.group("posterior").data_vars}
    means = np.array([getattr(fit.priors, f"mean_{q}") for q in COORDINATES]).T
    priors: dict[str, tuple[Any, Any]] = {"mu": (means[0], means[1])}
    for kind in ("wander_sd", "wander_length", "noise_sd", "concentration"):
        median, sd = getattr(fit.priors, kind)
        priors[f"log_{kind}"] = np.log(median), sd
    for site in fit.family.sites:
        priors[site.name] = site.prior(fit.priors, held, NUMPY)
    rows = []
    for name, (mean, sd) in priors.items():
        if name in held:
            z, value = (np.ravel(x) for x in ((held[name] - mean) / sd, held[name]))
            worst = int(np.abs(z).argmax())
            rows.append((name, float(value[worst]), float(z[worst])))
    table = pd.DataFrame(rows, columns=["site", "mean", "sds"])
    return table[table["sds"].abs() >= FAR]
