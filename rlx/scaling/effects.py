"""Which design choices matter: ceiling movers and efficiency shapers."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.compare import SHARE, compute_ratio
from rlx.scaling.draws import Draws
from rlx.scaling.parameters import prior_ceiling
from rlx.scaling.paths import ceiling, reach

Floats = NDArray[np.float64]

MARGIN_A, MARGIN_COMPUTE = 0.02, 0.10  # differences that count: of a pass rate, of a ratio

QUANTITIES = ("dA", "compute_ratio", "pace_ratio", "dlogC_mid", "B_ratio", "B_tail_ratio")


def effects(
    fit: Draws,
    axis: str,
    *,
    reference: object = None,
    margin_A: float = MARGIN_A,
    margin_compute: float = MARGIN_COMPUTE,
    target: float | None = None,
    prob: float = 0.9,
    decide: float = 0.9,
) -> pd.DataFrame:
    """Each level of an ablation axis against a reference level: ceiling movers, efficiency shapers.

    Averages over pairs of recipes (i at the level, j at the reference) that agree on every other
    axis, in each draw; C*(y) is the compute at which a curve reaches pass rate y:

        dA            = mean (A_i - A_j)
        compute_ratio = exp mean log(C*_i(y) / C*_j(y)),   y = target, or R0 + 0.8 (min(A) - R0)
        pace_ratio    = the same, each at 0.8 of its own gain, y_i = R0_i + 0.8 (A_i - R0_i)
        dlogC_mid     = mean log(C_mid_i / C_mid_j)
        B_ratio, B_tail_ratio   geometric means likewise

    A higher ceiling alone makes any fixed pass rate cheaper; pace_ratio does not count that.
    B_tail = B kappa is the exponent with which the gap to the ceiling closes, the B of arXiv
    2510.13786 (Eq. 1); under `burr`, B itself is not. With kappa shared by all runs the two ratios
    agree.

    If a curve never reaches y, C* = inf: the ratio is inf if the level never does, 0 if the
    reference never does. Draws in which neither does (or both start above y) are left out of the
    quantiles and counted as `p_uncompared`, neither for nor against a difference. With several
    pairs, the others are averaged; an infinite one dominates.

    Args:
        fit: the posterior.
        axis: a column of the study's axes, or "recipe".
        reference: the level to compare with; default the lowest of a numeric axis, else the first.
        margin_A: difference of ceilings that matters; 0.02 is the error margin of arXiv 2510.13786.
        margin_compute: relative difference of compute that matters.
        target: pass rate y; see above.
        prob: mass of the equal-tailed intervals.
        decide: probability that a verdict requires.

    Returns:
        One row per other level, by value on a numeric axis: axis, level, reference, matched (pairs
        that agree on the other axes, ignoring recipe names if none agrees on those too; 0: all
        cells of the level against all of the reference); quantiles of the above (`dA_q05`, ...);
        p_raises = P(dA > margin_A), p_lowers = P(dA < -margin_A), p_ceiling, their sum;
        p_cheaper = P(log compute_ratio < -log(1 + margin_compute)), p_dearer, p_efficiency
        likewise; p_sooner, p_later, p_pace likewise of pace_ratio; p_reach, p_reach_reference =
        P(C* is finite); p_uncompared; verdict; extrapolation (of C*, the farther of a pair, over
        the last compute; median); prior_share of dA (posterior sd / prior sd).

        verdict, for a direction beyond the margin with probability `decide` or more: "ceiling
        mover" (A is raised, or lowered), "both" (and sooner, or later), "efficiency shaper"
        (cheaper and sooner, or dearer and later: at equal pass rate, not only through its ceiling).
        "neither" (p_ceiling and p_efficiency + p_uncompared <= 1 - decide), else "undecided": a
        wide posterior has mass beyond both margins without a direction. How often equal recipes get
        a verdict: experiments/verdicts.py.

    Raises:
        InputError: an unknown axis or level, an axis with one level, an option out of range.

    Source: after arXiv 2510.13786, sections 3 and 4, which judge by |dA| > 0.02 and B of
        point fits.
    """
    fit.guard()
    _check_effects(margin_A, margin_compute, target, prob, decide)
    cells = _levels(fit, axis)
    names = _ordered(cells[axis])
    reference = names[0] if reference is None else _find_level(axis, reference, names)
    rows = []
    for level in (name for name in names if name != reference):
        pairs, matched = _pairs(cells, axis, level, reference)
        contrast = _contrasts(fit, pairs, target)
        p = _probabilities(contrast, margin_A, np.log1p(margin_compute))
        row: dict[str, object] = {"axis": axis, "level": level, "reference": reference}
        row["matched"] = matched
        for name in QUANTITIES:
            row.update(_quantiles(contrast[name], prob, name))
        row.update(p, verdict=_verdict(p, decide))
        row["extrapolation"] = float(np.median(contrast["far"]))
        row["prior_share"] = _prior_share(fit, pairs, contrast["dA"])
        rows.append(row)
    return pd.DataFrame(rows)


def _check_effects(margin_A, margin_compute, target, prob, decide) -> None:
    for key, value in (("margin_A", margin_A), ("margin_compute", margin_compute)):
        if not value >= 0:
            raise InputError(key, value, "negative", "give a margin of 0 or more")
    if target is not None and not 0 < target < 1:
        raise InputError("target", target, "not a pass rate", "give a fraction between 0 and 1")
    if not 0 < prob < 1:
        raise InputError("prob", prob, "not the mass of an interval", "give 0.9")
    if not 0.5 < decide <= 1:
        raise InputError("decide", decide, "not in (0.5, 1]", "give more than 0.5, at most 1")


def _levels(fit: Draws, axis: str) -> pd.DataFrame:
    """Level of every recipe (rows) on every axis (columns)."""
    cells = fit.levels
    if axis not in cells:
        raise InputError("axis", axis, "not in this fit", f"use one of {', '.join(cells)}")
    if cells[axis].nunique() < 2:
        reason = f"has one level, {cells[axis].iloc[0]}"
        raise InputError("axis", axis, reason, "compare recipes that differ on an axis")
    return cells


def _ordered(levels: pd.Series) -> list[str]:
    """By value if all are numbers, else in order of appearance."""
    names = list(dict.fromkeys(levels))
    values = pd.to_numeric(pd.Series(names), errors="coerce")
    return names if values.isna().any() else [names[i] for i in np.argsort(values, kind="stable")]


def _find_level(axis: str, level: object, names: list[str]) -> str:
    if str(level) not in names:
        reason = f"not a level of {axis}"
        raise InputError("reference", level, reason, f"use one of {', '.join(names)}")
    return str(level)


def _pairs(
    cells: pd.DataFrame, axis: str, level: str, reference: str
) -> tuple[list[tuple[int, int]], int]:
    """Recipes (i at the level, j at the reference) to compare, and how many of them are matched."""
    left, right = (np.flatnonzero(cells[axis] == name) for name in (level, reference))
    others = [name for name in cells if name != axis]
    every = [(int(i), int(j)) for i in left for j in right]
    for same in (others, [name for name in others if name != "recipe"]):
        key = [tuple(row) for row in cells[same].to_numpy()]
        pairs = [(i, j) for i, j in every if key[i] == key[j]]
        if pairs and (same or not others):
            return pairs, len(pairs)
    return every, 0


def _contrasts(fit: Draws, pairs: list[tuple[int, int]], target: float | None) -> dict[str, Floats]:
    """The quantities of `effects` [X], `reach` and `reach_reference` (shares of the pairs), and
    `far`, C* over the last compute."""
    i_P, j_P = np.array(pairs).T
    curves = fit.curves("recipe")
    A, R0 = ceiling(fit, "recipe"), curves["R0"]
    pace = reach(fit, R0 + SHARE * (A - R0), "recipe")
    C_PX = [compute_ratio(fit, i, j, target, "recipe")[2] for i, j in pairs]
    C_i, C_j = np.stack(C_PX, axis=1)
    last = fit.last_compute("recipe")

    def ratio(x_XJ: Floats) -> Floats:
        return np.exp(_mean_over_pairs(_log_ratio(x_XJ[:, i_P].T, x_XJ[:, j_P].T)))

    far_PX = np.maximum(C_i / last[i_P, None], C_j / last[j_P, None])
    return {
        "dA": (A[:, i_P] - A[:, j_P]).mean(1),
        "compute_ratio": np.exp(_mean_over_pairs(_log_ratio(C_i, C_j))),
        "pace_ratio": ratio(pace),
        "dlogC_mid": np.log(ratio(curves["C_mid"])),
        "B_ratio": ratio(curves["B"]),
        "B_tail_ratio": ratio(curves["B_tail"]),
        "reach": np.isfinite(C_i).mean(0),
        "reach_reference": np.isfinite(C_j).mean(0),
        "far": far_PX.mean(0),
    }


def _log_ratio(C_i: Floats, C_j: Floats) -> Floats:
    """log(C_i / C_j); NaN where both are inf, or both 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(C_i) - np.log(C_j)


def _mean_over_pairs(x_PX: Floats) -> Floats:
    """Mean over the pairs that are not NaN; inf and -inf make NaN."""
    known_PX = ~np.isnan(x_PX)
    with np.errstate(invalid="ignore"):
        return np.where(known_PX, x_PX, 0.0).sum(0) / known_PX.sum(0)


def _quantiles(x_X: Floats, prob: float, name: str) -> dict[str, float]:
    """Equal-tailed interval and median of the draws that are not NaN."""
    points = ((1 - prob) / 2, 0.5, (1 + prob) / 2)
    known = x_X[~np.isnan(x_X)]
    q = np.quantile(known, points, method="inverted_cdf") if len(known) else [np.nan] * 3
    return {f"{name}_q{100 * p:02.0f}": float(x) for p, x in zip(points, q, strict=True)}


def _probabilities(
    contrast: dict[str, Floats], margin_A: float, margin_log: float
) -> dict[str, float]:
    dA = contrast["dA"]
    with np.errstate(divide="ignore"):
        log_ratio, log_pace = np.log(contrast["compute_ratio"]), np.log(contrast["pace_ratio"])
    true = {
        "p_ceiling": np.abs(dA) > margin_A,
        "p_raises": dA > margin_A,
        "p_lowers": dA < -margin_A,
        "p_efficiency": np.abs(log_ratio) > margin_log,
        "p_cheaper": log_ratio < -margin_log,
        "p_dearer": log_ratio > margin_log,
        "p_pace": np.abs(log_pace) > margin_log,
        "p_sooner": log_pace < -margin_log,
        "p_later": log_pace > margin_log,
        "p_reach": contrast["reach"],
        "p_reach_reference": contrast["reach_reference"],
        "p_uncompared": np.isnan(log_ratio),
    }
    return {name: float(np.mean(x)) for name, x in true.items()}


def _verdict(p: dict[str, float], decide: float) -> str:
    moves = max(p["p_raises"], p["p_lowers"]) >= decide
    paces = max(p["p_sooner"], p["p_later"]) >= decide
    if moves:
        return "both" if paces else "ceiling mover"
    if any(
        min(p[a], p[b]) >= decide for a, b in (("p_cheaper", "p_sooner"), ("p_dearer", "p_later"))
    ):
        return "efficiency shaper"
    possible = p["p_efficiency"] + p["p_uncompared"]
    return "neither" if max(p["p_ceiling"], possible) <= 1 - decide else "undecided"


def _prior_share(fit: Draws, pairs: list[tuple[int, int]], dA_X: Floats) -> float:
    i_P, j_P = np.array(pairs).T
    A_XJ = prior_ceiling(fit, "recipe")
    return float(dA_X.std() / (A_XJ[:, i_P] - A_XJ[:, j_P]).mean(1).std())
