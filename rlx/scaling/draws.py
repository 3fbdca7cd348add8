"""`Draws`: a posterior over the curves of a study, as named arrays: the input of all questions.

A fit is an `xarray.DataTree` in ArviZ's layout, and this class reads nothing else, so a loaded fit
answers like the original. It does not need JAX. Everything that follows from the draws is a
function of them in another module (see rlx.scaling).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.doubt import Doubt, random
from rlx.scaling.families import FAMILIES, Family
from rlx.scaling.kalman import Kalman
from rlx.scaling.priors import NUMPY, Priors, prior_theta

Floats = NDArray[np.float64]

MAX_RHAT, MIN_ESS, MIN_BFMI = 1.01, 400, 0.3  # bounds of a sampler that has converged
FARTHEST = 30.0  # bound of a, c and b, beyond which exp would overflow


class NotConverged(RuntimeError):
    """The sampler has not converged, so its answers are not reliable."""


@dataclass(frozen=True)
class Curves:
    """Draws of curves: the parameters of a family by name, [X, N] each."""

    family: Family
    parameters: dict[str, Floats]

    def __getitem__(self, name: str) -> Floats:
        """A, C_mid, B, R0, one of the family's own, or B_tail (see `Family.tail`)."""
        if name == "B_tail":
            own = {k: self.parameters[k] for k in self.family.own}
            return self.family.tail(B=self.parameters["B"], **own)
        return self.parameters[name]

    def at(self, compute: Floats) -> Floats:
        """Pass rate [X, N, C] at computes [C] or [N, C]."""
        return self.family.at(compute, **{k: x[..., None] for k, x in self.parameters.items()})

    def compute_to(self, target: ArrayLike) -> Floats:
        """Compute [X, N] at which the curve reaches a pass rate, inf if it never does."""
        return self.family.compute_to(target, **self.parameters)

    def only(self, index: Sequence[int] | None) -> Curves:
        """The given ones of the N; None: all."""
        if index is None:
            return self
        chosen = list(index)
        return Curves(self.family, {k: x[:, chosen] for k, x in self.parameters.items()})


class Draws:
    """A posterior over scaling curves. unsafe: answer even if the sampler did not converge."""

    def __init__(self, tree: xr.DataTree, *, unsafe: bool = False):
        self.tree, self.is_unsafe = tree, unsafe

    # ------------------------------------------------------------ what it is

    def __repr__(self) -> str:
        a, state = self.attrs, "laplace, a preview"
        if a["method"] == "nuts":
            words = "converged" if self.converged else "NOT CONVERGED"
            state = f"{words}: rhat {a['rhat']:.3f}, ess {a['ess']:.0f}"
            state += f", {a['divergences']} divergences"
        many = f"{len(self.runs)} runs of {len(self.recipes)} recipes"
        return f"{type(self).__name__}({a['curve']}, {many}, {state})"

    @property
    def attrs(self) -> dict:
        return self.tree.attrs

    @property
    def family(self) -> Family:
        """The family of its curves."""
        return FAMILIES[self.attrs["curve"]]

    @property
    def runs(self) -> list[str]:
        return [str(x) for x in self.group("posterior")["run"].values]

    @property
    def recipes(self) -> list[str]:
        return [str(x) for x in self.group("posterior")["recipe"].values]

    @property
    def levels(self) -> pd.DataFrame:
        """Level of every recipe (rows) on every axis (columns), as text."""
        levels = self.group("levels")
        columns = {str(k).removeprefix("axis_"): levels[k].values for k in levels.data_vars}
        return pd.DataFrame(columns).astype(str)

    @property
    def axes(self) -> list[str]:
        """Columns that `effects` can compare: design choices with two levels or more."""
        return [str(axis) for axis, levels in self.levels.items() if levels.nunique() > 1]

    @property
    def priors(self) -> Priors:
        stored: dict[str, Any] = json.loads(self.attrs["priors"])
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()
        }
        return Priors(**fields)

    @cached_property
    def evals(self) -> Evals:
        """The evaluations that were fitted."""
        stored = self.group("evals")
        frame = pd.DataFrame({name: stored[name].values for name in stored.data_vars})
        axes = tuple(json.loads(stored.attrs["axes"]))
        labels = {k: stored.attrs[k] for k in ("compute_label", "value_label", "title")}
        return Evals(frame, axes=axes, **labels)

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `rlx.scaling.fit` that determine what was fitted."""
        axes, r0 = (json.loads(self.attrs[name]) for name in ("axes", "r0"))
        held = {"axes": None if axes is None else tuple(axes), "r0": r0}
        held |= {name: self.attrs[name] for name in ("curve", "noise")}
        return held | {"priors": self.priors, "doubt": self.doubt}

    @property
    def departed(self) -> dict[str, float]:
        """Runs that departed from their curve, with z of the departure; see rlx.scaling.departure.

        Evaluations after a fall (z < 0) were not fitted.
        """
        return json.loads(self.attrs["departed"])

    @property
    def converged(self) -> bool:
        """R-hat, bulk and tail effective samples and E-BFMI within bounds, and no divergence."""
        a = self.attrs
        good = a["rhat"] <= MAX_RHAT and a["ess"] >= MIN_ESS and a["bfmi"] > MIN_BFMI
        return bool(good and a["divergences"] == 0)

    def unsafe(self) -> Self:
        """The same posterior, answering even if it has not converged."""
        return type(self)(self.tree, unsafe=True)

    @cached_property
    def doubt(self) -> Doubt | None:
        """The discrepancy beyond the data, see rlx.scaling.doubt; older files get the default."""
        return Doubt.of(self.attrs.get("doubt"))

    def with_doubt(self, doubt: Doubt | None) -> Self:
        """The same posterior with another discrepancy beyond the data; None: the curves alone."""
        tree = self.tree.copy()
        tree.attrs["doubt"] = Doubt.text(doubt)
        return type(self)(tree, unsafe=self.is_unsafe)

    @cached_property
    def kept(self) -> dict[str, Any]:
        """Cache of the questions."""
        return {}

    def thinned(self, most: int) -> Self:
        """Every n-th draw, so that about `most` remain."""
        every = -(-len(self.site("theta_run")) // most)
        tree = self.tree.copy()
        tree["posterior"] = self.group("posterior").isel(draw=slice(None, None, every))
        return type(self)(tree, unsafe=self.is_unsafe)

    def guard(self) -> None:
        """Raises NotConverged unless the sampler converged or the fit is `unsafe`."""
        if self.attrs["method"] == "nuts" and not self.converged and not self.is_unsafe:
            a = self.attrs
            raise NotConverged(
                f"rhat={a['rhat']:.3f}: the sampler has not converged (ess {a['ess']:.0f}, "
                f"{a['divergences']} divergences, bfmi {a['bfmi']:.2f}); see fit.check(), or use "
                "fit.unsafe()"
            )

    # ------------------------------------------------------------ arrays by name

    def group(self, name: str) -> xr.Dataset:
        return self.tree[name].to_dataset()

    def constant(self, name: str) -> NDArray[Any]:
        return np.asarray(self.group("constant_data")[name])

    def site(self, name: str) -> Floats:
        """[X, ...] draws of a site, chains joined."""
        x = np.asarray(self.group("posterior")[name])
        return x.reshape(-1, *x.shape[2:])

    @cached_property
    def recipe_of_run(self) -> NDArray[np.int64]:
        return self.constant("recipe_of_run").astype(int)

    def runs_of(self, recipe: int) -> list[str]:
        return [run for run, j in zip(self.runs, self.recipe_of_run, strict=True) if j == recipe]

    def names(self, by: str) -> list[str]:
        """The recipes, or the runs. Raises InputError for another level."""
        if by not in ("recipe", "run"):
            raise InputError("by", by, "unknown level", "use recipe or run")
        return self.recipes if by == "recipe" else self.runs

    def index(self, by: str, name: str) -> int:
        """The index of a recipe, or a run. Raises InputError for an unknown name."""
        names = self.names(by)
        if name not in names:
            there = ", ".join(f'"{name}"' for name in names)  # names have commas in them
            raise InputError(by, name, "not in this fit", f"use one of {there}")
        return names.index(name)

    def label(self, x: Floats, by: str, **coords: ArrayLike) -> xr.DataArray:
        """[X, N, ...] as (chain, draw, recipe|run, ...)."""
        chains = self.group("posterior").sizes["chain"]
        dims = ("chain", "draw", by, *coords)
        named = {by: self.names(by), **{k: np.asarray(v) for k, v in coords.items()}}
        return xr.DataArray(x.reshape(chains, -1, *x.shape[1:]), dims=dims, coords=named)

    def last_compute(self, by: str) -> Floats:
        """Last fitted compute [N]."""
        C_R = self.constant("C_max")
        if by == "run":
            return C_R
        return np.array([C_R[self.recipe_of_run == j].max() for j in range(len(self.recipes))])

    # ------------------------------------------------------------ curves

    def theta(self, by: str, seeds: str = "typical") -> Floats:
        """(a, c, b) [X, N, 3]; seeds="new" adds a new seed's deviation to a recipe's."""
        theta = self.site(f"theta_{by}")
        if seeds not in ("typical", "new") or (seeds == "new" and by == "run"):
            raise InputError(
                "seeds", seeds, f"unknown for by={by}", "use typical or new, by=recipe"
            )
        if seeds == "new":
            z = random("seed").normal(size=theta.shape)
            theta = theta + np.exp(self.site("log_seed_sd"))[:, None] * z
        return theta

    def R0(self, by: str) -> Floats:
        """[X, N]; for a recipe whose runs have several starts, the mean of their logits."""
        logit_R0_XS = self.site("logit_R0")
        logit_R0_XR = logit_R0_XS[:, self.constant("start_of_run").astype(int)]
        if by == "run":
            return expit(logit_R0_XR)
        members = self.recipe_of_run[None] == np.arange(len(self.recipes))[:, None]
        return expit(logit_R0_XR @ (members / members.sum(1, keepdims=True)).T)

    def curves(self, by: str, seeds: str = "typical") -> Curves:
        """The fitted curves; of recipes, those of their typical seed, or of a "new" one."""
        held = self._curves
        if (by, seeds) not in held:
            theta = np.clip(self.theta(by, seeds), -FARTHEST, FARTHEST)
            held[by, seeds] = self.curves_of(theta, self.R0(by), self.site, by)
        return held[by, seeds]

    @cached_property
    def _curves(self) -> dict[tuple[str, str], Curves]:
        return {}

    def curves_of(
        self, theta: Floats, R0: Floats, site: Callable[[str], Floats], by: str
    ) -> Curves:
        """The curves of theta [X, N, 3], R0 [X, N], and the draws site(name) of other sites."""
        a, c, b = np.moveaxis(theta, -1, 0)
        A, B = R0 + (1 - R0) * expit(a), np.exp(b)
        p = {"A": A, "B": B, "C_mid": self.attrs["C_ref"] * np.exp(c)}
        p["R0"] = np.broadcast_to(R0, A.shape)
        own = {}
        for name, (held, _) in self.family.own.items():
            x = site(held)
            x_XN = x[:, None] if x.ndim == 1 else x[:, self.recipe_of_run] if by == "run" else x
            own[name] = np.broadcast_to(x_XN, A.shape)
        return Curves(self.family, p | self.family.of_sites(own, NUMPY))

    @cached_property
    def _prior(self) -> dict[str, Floats]:
        return prior_theta(self.priors, self.constant("design"), self.family.sites)

    def prior_curves(self, by: str) -> Curves:
        """Curves drawn from the prior, with the posterior mean of R0."""
        theta = self._prior[by]
        if by == "run":
            theta = theta[:, self.recipe_of_run]
        return self.curves_of(theta, self.R0(by).mean(0)[None], self._prior.__getitem__, by)

    @cached_property
    def wander(self) -> tuple[Floats, Floats, Floats]:
        """Wander at each run's last evaluation: mean and variance [X, R]; median gap [R]."""
        kalman, residual_XRM = self._filter()
        _, mean_XR, P_XR = kalman.run(residual_XRM, self.noise_variance())
        return mean_XR, P_XR, kalman.gap_R

    def wander_before(self, compute_RC: Floats) -> tuple[Floats, Floats]:
        """Mean and variance [X, R, C] of the wander, given the fitted evaluations before and after;
        for computes before the last of them."""
        kalman, residual_XRM = self._filter()
        return kalman.at(compute_RC, residual_XRM, self.noise_variance())

    def _filter(self) -> tuple[Kalman, Floats]:
        """The filter of the wander, and the residuals [X, R, M] that it runs along."""
        compute_RM = self.constant("compute")
        sd_X, length_X = (np.exp(self.site(f"log_wander_{name}")) for name in ("sd", "length"))
        latent_XRM = self.curves("run").at(np.nan_to_num(compute_RM, nan=1.0))
        residual_XRM = np.asarray(self.group("observed_data")["value"]) - latent_XRM
        return Kalman(compute_RM, sd_X, length_X), residual_XRM

    def noise_variance(self) -> Floats:
        """Sampling variance of the fitted evaluations [X or 1, R, M]; 1 for padding."""
        sd_RM = self.constant("stderr")
        known = np.nan_to_num(sd_RM, nan=0.0) ** 2
        if "log_noise_sd" not in self.tree["posterior"]:
            return np.where(known > 0, known, 1.0)[None]
        var = np.exp(2 * self.site("log_noise_sd"))[:, None, None] * self.constant("unknown")
        return np.where(known + var > 0, known + var, 1.0)


def number(key: str, x: Any, least: float, most: float, reason: str, remedy: str) -> float:
    """An argument of a question as a float. Raises InputError unless it is in (least, most)."""
    try:
        value = float(x)
    except (TypeError, ValueError):
        value = np.nan
    if not least < value < most:
        raise InputError(key, x, reason, remedy)
    return value


def computes(key: str, x: ArrayLike) -> Floats:
    """Computes that a question asks about [C]. Raises InputError unless finite and 0 or more."""
    try:
        compute_C = np.atleast_1d(np.asarray(x, float))
    except (TypeError, ValueError):
        compute_C = np.zeros(0)
    valid = np.isfinite(compute_C) & (compute_C >= 0)
    if compute_C.ndim > 1 or not compute_C.size or not valid.all():
        reason, remedy = "not computes", "give numbers from 0 on, in the unit of the fit"
        raise InputError(key, x, reason, remedy)
    return compute_C


def quantiles(x_XN: Floats, prob: float) -> pd.DataFrame:
    """Equal-tailed interval and median of [X, N]; inf if as many draws are infinite."""
    prob = number("prob", prob, 0, 1, "not the mass of an interval", "give 0.9")
    points = ((1 - prob) / 2, 0.5, (1 + prob) / 2)
    q = np.quantile(x_XN, points, axis=0, method="inverted_cdf")
    return pd.DataFrame({f"q{100 * p:02.0f}": row for p, row in zip(points, q, strict=True)})
