"""Parameters of a posterior: draws, tables, and whether a ceiling is identified."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.draws import Draws, quantiles
from rlx.scaling.paths import ceiling, horizon, paths

Floats = NDArray[np.float64]

PARAMS = ("A", "asymptote", "C_mid", "B", "B_tail", "R0")


def param(fit: Draws, name: str, by: str = "recipe") -> xr.DataArray:
    """Draws of A, asymptote, C_mid, B, R0, B_tail, the exponent of the gap to the asymptote, or one
    of the family's own parameters (`second` under two_rises).

    A is the ceiling at a horizon: the pass rate at 10 times the largest compute of the study, with
    the discrepancy beyond the data. `asymptote` is the limit of the fitted curve, which no data
    show: the family determines it. A recipe's parameters are those of its typical seed. B_tail = B
    kappa under burr.
    """
    fit.guard()
    known = (*PARAMS, *fit.family.own)
    if name not in known:
        raise InputError("param", name, "unknown", f"use {', '.join(known)}")
    if name == "A":
        return fit.label(ceiling(fit, by), by)
    return fit.label(fit.curves(by)["A" if name == "asymptote" else name], by)


def prior_ceiling(fit: Draws, by: str) -> Floats:
    """Draws of `ceiling` from the prior, without doubt, [X, N]."""
    curves = fit.prior_curves(by)
    return curves["A"] if fit.doubt is None else curves.at(np.array([horizon(fit)]))[..., 0]


def prior_share(fit: Draws, param: str, by: str = "recipe") -> Floats:
    """sd of the posterior over sd of the prior [N]; C_mid and B on a log scale, B for B_tail."""
    param = "B" if param == "B_tail" else param
    if param == "R0":
        sd_S = fit.constant("start_sd")
        start_R = fit.constant("start_of_run").astype(int)
        share_S = fit.site("logit_R0").std(0) / sd_S
        if by == "run":
            return share_S[start_R]
        first = [int(np.argmax(fit.recipe_of_run == j)) for j in range(len(fit.recipes))]
        return share_S[start_R[first]]
    if param == "A":
        return ceiling(fit, by).std(0) / prior_ceiling(fit, by).std(0)
    name = "A" if param == "asymptote" else param
    link = (lambda x: x) if name == "A" else np.log
    return link(fit.curves(by)[name]).std(0) / link(fit.prior_curves(by)[name]).std(0)


def summary(fit: Draws, by: str = "recipe", prob: float = 0.9) -> pd.DataFrame:
    """Mean, interval, contraction, phase and status of PARAMS, see `param`.

    Columns: level, name, param, mean, quantiles, contraction (1 - prior share), phase (last
    compute / C_mid, median), gained (median, see `gained`) and status: "ok", or why the ceiling is
    not identified.
    """
    fit.guard()
    names, last, curves = fit.names(by), fit.last_compute(by), fit.curves(by)
    made, phase = gained(fit, by), np.median(last / curves["C_mid"], 0)
    statuses = status(fit, by)
    parts = []
    for name in PARAMS:
        x = param(fit, name, by).values.reshape(-1, len(names))
        part = pd.DataFrame({"level": by, "name": names, "param": name, "mean": x.mean(0)})
        part = part.join(quantiles(x, prob))
        part["contraction"], part["phase"] = 1 - prior_share(fit, name, by), phase
        part["gained"], part["status"] = np.median(made, 0), statuses
        parts.append(part)
    order = {name: i for i, name in enumerate(names)}
    table = pd.concat(parts, ignore_index=True)
    return table.sort_values("name", key=lambda s: s.map(order), kind="stable", ignore_index=True)


def gained(fit: Draws, by: str) -> Floats:
    """Share [X, N] of the gain up to the ceiling at the horizon reached at the last compute,
    (R_T - R0) / (max(A, R_T) - R0)."""
    now = paths(fit, fit.last_compute(by)[:, None], by)[..., 0]
    R0 = fit.curves(by)["R0"]
    return (now - R0) / np.maximum(np.maximum(ceiling(fit, by), now) - R0, 1e-9)


def status(fit: Draws, by: str = "recipe") -> list[str]:
    """Per recipe or run: "ok", "departed", or "ceiling not identified" with the reason."""
    curves, last = fit.curves(by), fit.last_compute(by)
    of_curve = (curves.at(last[:, None])[..., 0] - curves["R0"]) / np.maximum(
        curves["A"] - curves["R0"], 1e-9
    )
    lo, hi = np.quantile(of_curve, [0.05, 0.95], axis=0)
    share = prior_share(fit, "asymptote", by)
    gone, past = fit.departed, (last > curves["C_mid"]).mean(0)
    out = []
    for i, name in enumerate(fit.names(by)):
        mine = [name] if by == "run" else fit.runs_of(i)
        if any(run in gone for run in mine):
            out.append("departed")
        elif past[i] < 0.5:
            out.append(f"ceiling not identified: P(C_mid reached) = {past[i]:.2f}")
        elif share[i] > 0.5:
            out.append(f"ceiling not identified: prior share {share[i]:.2f}")
        elif hi[i] - lo[i] > 0.3:
            out.append(f"ceiling not identified: {lo[i]:.0%} to {hi[i]:.0%} of the gain reached")
        else:
            out.append("ok")
    return out
