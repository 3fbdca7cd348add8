"""What the figures of a posterior share: labels, colours, intervals and exact ceilings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.data import short_names
from rlx.scaling.paths import HORIZON
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.style import COLORS, recipe_colors

Floats = NDArray[np.float64]

CEILING = f"pass rate at {HORIZON:g}x the compute seen"
CHOICE, UNCHANGED = "ablation", "none"  # the axis whose levels count as recipes, and its baseline


def cells(fit: ScalingFit) -> tuple[list[str], list[str]]:
    """For each recipe, its short name, and the levels of its axes, "key=value, key=value"."""
    levels = fit.levels
    base = levels["recipe"].tolist()
    axes = [[_said(axis, x) for x in levels[axis]] for axis in fit.evals.axes]
    level: list[str] = [", ".join(filter(None, of_one)) for of_one in zip(*axes, strict=True)]
    return [short_names(base)[name] for name in base], level or [""] * len(base)


def _said(axis: str, level: str) -> str:
    """An ablation by its name, another axis as the last word of its key with the level."""
    if axis == CHOICE:
        return "" if level == UNCHANGED else level
    return f"{axis.rpartition('.')[2]}={level}"


def conditions(fit: ScalingFit) -> list[str]:
    """For each recipe, the levels of its axes except ablations; it is compared at the same ones."""
    axes = [axis for axis in fit.evals.axes if axis != CHOICE]
    return [" ".join(map(str, of_one)) for of_one in fit.levels[axes].to_numpy()]


def labels(fit: ScalingFit) -> list[str]:
    """For each recipe, the two of `cells` in one label."""
    return [", ".join(filter(None, names)) for names in zip(*cells(fit), strict=True)]


def colors(fit: ScalingFit) -> list[str]:
    """For each recipe, a colour that is the same at all levels of the axes except ablations.

    If only levels differ, each level has a colour.
    """
    levels = fit.levels.assign(**({} if CHOICE in fit.levels else {CHOICE: UNCHANGED}))
    keys = [f"{x[CHOICE]} {x['recipe']}" for _, x in levels.iterrows()]
    keys = keys if len(set(keys)) > 1 else fit.recipes
    of_key = recipe_colors(sorted(keys, key=lambda key: not key.startswith(f"{UNCHANGED} ")))
    return [of_key[key] for key in keys]


def apart(colors_J: Sequence[str]) -> list[str]:
    """Colours of recipes that share a panel: their own, or by rank if two are the same."""
    if len(set(colors_J)) == len(colors_J):
        return list(colors_J)
    return [COLORS[i % len(COLORS)] for i in range(len(colors_J))]


def interval(x: Floats, prob: float) -> Floats:
    """Lower, median and upper quantile [3, ...] over the first two dimensions, chain and draw."""
    check_prob(prob)
    return np.quantile(x, ((1 - prob) / 2, 0.5, (1 + prob) / 2), axis=(0, 1))


def check_prob(prob: float) -> None:
    if not 0 < prob < 1:
        raise InputError("prob", prob, "not in (0, 1)", "give 0.9 for a 90 % interval")


def truths(fit: ScalingFit, recipes: Sequence[int] | None = None) -> list[float]:
    """The known exact ceilings of all runs, or of the runs of some recipes."""
    truth_R = fit.constant("truth")
    if recipes is not None:
        truth_R = truth_R[np.isin(fit.recipe_of_run, recipes)]
    return sorted({round(float(x), 6) for x in truth_R[np.isfinite(truth_R)]})
