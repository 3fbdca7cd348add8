"""Priors of the hierarchical model (`rlx.scaling.model`), printable and replaceable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]

COORDINATES = ("a", "c", "b")
PRIOR_DRAWS = 4000
NEAR_START = 0.05  # share of a run's last compute up to which its first evaluation tells R0
LATE_RISE = 2.0  # logit: how far the pass rate may have risen before a late first evaluation


@dataclass(frozen=True)
class Priors:
    """Defaults of every prior. Normal: (mean, sd). Log-normal: (median, sd of the log).

    a is the logit of (A - R0) / (1 - R0), c = log(C_mid / C_ref) with C_ref the median compute of
    the fitted evaluations, b = log B.
    """

    mean_a: tuple[float, float] = (0.0, 1.0)  # normal
    mean_c: tuple[float, float] = (1.0, 1.5)  # normal
    mean_b: tuple[float, float] = (0.4, 0.4)  # normal
    effect_a: float = 0.5  # sd of a level's effect, which has mean 0
    effect_c: float = 0.5
    effect_b: float = 0.25
    recipe_sd_a: tuple[float, float] = (0.35, 0.5)  # log-normal
    recipe_sd_c: tuple[float, float] = (0.40, 0.5)
    recipe_sd_b: tuple[float, float] = (0.15, 0.5)
    seed_sd_a: tuple[float, float] = (0.10, 0.5)  # log-normal; 0.10 moves A by about 0.02
    seed_sd_c: tuple[float, float] = (0.12, 0.5)
    seed_sd_b: tuple[float, float] = (0.07, 0.5)
    log_kappa: tuple[float, float] = (0.0, 0.5)  # normal
    wander_sd: tuple[float, float] = (0.01, 0.7)  # log-normal, a pass rate
    wander_length: tuple[float, float] = (3.0, 0.7)  # log-normal, in median gaps of a run
    noise_sd: tuple[float, float] = (0.01, 1.0)  # log-normal; if no sampling error is known
    # normal, logit R0 - logit(first value), without C = 0; wider if that is late, see arrays.py
    start: tuple[float, float] = (-0.2, 0.5)
    student_df: float = 4.0
    concentration: tuple[float, float] = (300.0, 1.0)  # log-normal, of the beta-binomial


class Ops(NamedTuple):
    """The functions used by curves and priors, of NumPy or of JAX."""

    sqrt: Callable[..., Any]
    exp: Callable[..., Any]
    log: Callable[..., Any]
    expm1: Callable[..., Any]
    softplus: Callable[..., Any]
    logistic: Callable[..., Any]


NUMPY = Ops(np.sqrt, np.exp, np.log, np.expm1, lambda u: np.logaddexp(0.0, u), expit)


class Site(NamedTuple):
    """An unknown of the model, on the real line, and its normal prior.

    dims: axes of its values: "coordinate" (a, c, b), "effect", "start", "recipe", "run",
        "evaluation"; empty for a single number.
    prior: (mean, sd) from the priors, the values of earlier sites, and `Ops`.
    """

    name: str
    dims: tuple[str, ...]
    prior: Callable[[Priors, dict[str, Any], Ops], tuple[Any, Any]]


def prior_theta(
    priors: Priors, design_JE: Floats, sites: Sequence[Site] = (), seed: int = 0
) -> dict[str, Floats]:
    """Prior draws of a recipe's and a run's (a, c, b), [X, J, 3] each, under "recipe" and "run",
    and of a family's own `sites`, [X] if shared, [X, J] if per recipe."""
    rng = np.random.default_rng(seed)
    X, (J, E) = PRIOR_DRAWS, design_JE.shape

    def pairs(kind: str) -> Floats:
        return np.array([getattr(priors, f"{kind}_{q}") for q in COORDINATES])

    def log_normal(kind: str) -> Floats:
        median, sd = pairs(kind).T
        return median * np.exp(sd * rng.normal(size=(X, 3)))

    loc, scale = pairs("mean").T
    mu = loc + scale * rng.normal(size=(X, 3))
    effect_sd = np.array([priors.effect_a, priors.effect_c, priors.effect_b])
    effect = np.einsum("jk,xkq->xjq", design_JE, effect_sd * rng.normal(size=(X, E, 3)))
    z_recipe, z_run = rng.normal(size=(2, X, J, 3))
    recipe = mu[:, None] + effect + log_normal("recipe_sd")[:, None] * z_recipe
    run = recipe + log_normal("seed_sd")[:, None] * z_run
    drawn: dict[str, Floats] = {}
    for site in sites:
        above = {name: x[:, None] if site.dims and x.ndim == 1 else x for name, x in drawn.items()}
        mean, sd = site.prior(priors, above, NUMPY)
        drawn[site.name] = mean + sd * rng.normal(size=(X, J) if site.dims else X)
    return {"recipe": recipe, "run": run} | drawn
