"""Comparisons: which is higher, and the compute to reach a pass rate."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from rlx.errors import InputError
from rlx.scaling.draws import Draws, computes, number, quantiles
from rlx.scaling.forecast import curve, curve_prior_share
from rlx.scaling.parameters import param as draws_of
from rlx.scaling.parameters import prior_share
from rlx.scaling.paths import ceiling, reach

Floats = NDArray[np.float64]

SHARE = 0.8  # of the gain to the lower ceiling, at which compute is compared
RATES = ("A", "asymptote", "R0", "curve")  # parameters that are pass rates
FRACTION = "give a number, of a pass rate 0.02 for 2 %"


def prob(
    fit: Draws,
    param: str,
    left: str,
    sign: str,
    right: str,
    *,
    margin: float = 0.0,
    at: float | None = None,
    by: str = "recipe",
) -> pd.Series:
    """P(param of `left` > that of `right` + margin), or < with margin below.

    Args:
        param: A, C_mid, B, B_tail, or "curve" for the pass rate at compute `at`.
        left, right: recipes (or runs).
        sign: ">" or "<".
        margin: by how much, of a pass rate as a fraction.
        at: for "curve" only.

    Returns:
        prob, mcse (Monte Carlo standard error), extrapolation and prior_share.

    Raises:
        InputError: an unknown name or sign; a margin or a compute out of range.
    """
    fit.guard()
    if sign not in (">", "<"):
        raise InputError("sign", sign, "unknown", "use > or <")
    i, j = fit.index(by, left), fit.index(by, right)
    most = 1.0 if param in RATES else np.inf
    margin = number("margin", margin, -most, most, f"not a difference of {param}", FRACTION)
    if param == "curve":
        if at is None:
            raise InputError("at", at, "no compute given", "give at=COMPUTE")
        at_C = one_compute(at)
        x = curve(fit, at_C, by).values[..., 0]
        far = float(at_C[0] / min(fit.last_compute(by)[[i, j]]))
        share = float(curve_prior_share(fit, at_C, by)[[i, j], 0].max())
    else:
        if at is not None:
            raise InputError("at", at, f"not read with param {param}", 'give param "curve"')
        x, far = draws_of(fit, param, by).values, np.nan
        share = float(prior_share(fit, param, by)[[i, j]].max())
    difference = x[..., i] - x[..., j]
    true = (difference > margin) if sign == ">" else (difference < -margin)
    return pd.Series(_probability(true) | {"extrapolation": far, "prior_share": share})


def prob_best(fit: Draws, at: str | float = "ceiling", by: str = "recipe") -> xr.DataArray:
    """P(highest ceiling), or P(highest pass rate at a compute), per recipe.

    Raises InputError if `at` is neither "ceiling" nor a compute.
    """
    x = draws_of(fit, "A", by) if at == "ceiling" else curve(fit, one_compute(at), by)[..., 0]
    best = x.values.reshape(-1, x.sizes[by]).argmax(-1)
    share = np.bincount(best, minlength=x.sizes[by]) / len(best)
    return xr.DataArray(share, dims=(by,), coords={by: fit.names(by)}, name="prob_best")


def compute_to(fit: Draws, target: float, prob: float = 0.9, by: str = "recipe") -> pd.DataFrame:
    """Compute at which a pass rate is first reached; inf if not within REACHABLE (1000) times the
    last compute.

    Columns: prob_reachable = P(it is reached by then); quantiles of the compute; budget, the
    compute that reaches the target with probability `prob`; extrapolation of the median;
    prior_share of A.

    Raises InputError if the target is not a pass rate in [0, 1].
    """
    fit.guard()
    target = pass_rate(target)
    C = reach(fit, target, by)
    table = pd.DataFrame({"name": fit.names(by), "target": target})
    table["prob_reachable"] = np.isfinite(C).mean(0)
    table = table.join(quantiles(C, prob))
    table["budget"] = np.quantile(C, prob, axis=0, method="inverted_cdf")
    table["extrapolation"] = np.quantile(C, 0.5, axis=0, method="inverted_cdf") / fit.last_compute(
        by
    )
    table["prior_share"] = prior_share(fit, "A", by)
    return table


def efficiency(
    fit: Draws,
    left: str,
    right: str,
    target: float | None = None,
    *,
    prob: float = 0.9,
    by: str = "recipe",
) -> pd.Series:
    """Compute that `left` needs over what `right` needs for the same pass rate.

    target: pass rate; default, draw by draw, R0 + 0.8 (min(A_left, A_right) - R0).

    Returns:
        Quantiles of the ratio over the draws in which both reach it, prob_both of these,
        prob_cheaper = P(left needs less, or right never reaches it), target (mean), extrapolation.
    """
    fit.guard()
    i, j = fit.index(by, left), fit.index(by, right)
    target = None if target is None else pass_rate(target)
    ratio, y, C = compute_ratio(fit, i, j, target, by)
    both = np.isfinite(ratio)
    cheaper = np.where(np.isfinite(C[0]) | np.isfinite(C[1]), C[0] < C[1], False)
    row = quantiles(ratio[both][:, None] if both.any() else np.full((1, 1), np.nan), prob)
    far = np.median(np.maximum(C[0] / fit.last_compute(by)[i], C[1] / fit.last_compute(by)[j]))
    return pd.Series(
        row.iloc[0].to_dict()
        | {"prob_both": both.mean(), "prob_cheaper": cheaper.mean(), "target": y.mean()}
        | {"extrapolation": far, "prior_share": prior_share(fit, "C_mid", by)[[i, j]].max()}
    )


def compute_ratio(
    fit: Draws, i: int, j: int, target: float | None, by: str
) -> tuple[Floats, Floats, Floats]:
    """Of one pair: ratio of compute-to-target [X] (NaN unless both reach it), the target [X] of
    `efficiency`, and both computes [2, X]."""
    A, R0 = ceiling(fit, by), fit.curves(by)["R0"]
    if target is None:
        low = np.maximum(R0[:, i], R0[:, j])
        y = low + SHARE * (np.minimum(A[:, i], A[:, j]) - low)
    else:
        y = np.full(len(A), float(target))
    C = reach(fit, y[:, None], by, only=(i, j)).T
    both = np.isfinite(C[0]) & np.isfinite(C[1]) & (C[1] > 0) & (C[0] > 0)
    with np.errstate(all="ignore"):
        return np.where(both, C[0] / C[1], np.nan), y, C


def pass_rate(target: float) -> float:
    """A target. Raises InputError if it is not in [0, 1]."""
    low, high = np.nextafter(0, -1), np.nextafter(1, 2)
    return number("target", target, low, high, "not a pass rate", "give a fraction, 0.6 for 60 %")


def one_compute(at: ArrayLike) -> Floats:
    """`at` as [1]. Raises InputError unless it is one compute."""
    at_C = computes("at", at)
    if len(at_C) > 1:
        raise InputError("at", at, "several computes", "ask at one")
    return at_C


def _probability(true: NDArray[np.bool_]) -> dict[str, float]:
    """Frequency of [chain, draw] events and its Monte Carlo standard error."""
    from arviz_stats.base import array_stats

    p = float(true.mean())
    if p in (0.0, 1.0):
        return {"prob": p, "mcse": 1 / true.size}
    ess = float(array_stats.ess(true.astype(float), chain_axis=0, draw_axis=1, method="mean"))
    return {"prob": p, "mcse": float(np.sqrt(p * (1 - p) / ess))}
