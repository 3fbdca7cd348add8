"""`ScalingFit`: the posterior of a study, and the questions it answers.

    fit = sc.fit(evals)                          # NUTS; method="laplace" for a preview
    print(fit.check())                           # may I believe it?
    fit.summary()                                # A, C_mid, B of every recipe, with intervals
    fit.predict(2e4)                             # the next evaluations
    fit.prob("A", "cispo", ">", "dapo")          # which ceiling is higher
    fit.save("posterior.nc"); sc.load("posterior.nc")

A fit is an `xarray.DataTree` in ArviZ's layout (`fit.tree`) and this class reads nothing else, so
a loaded fit answers as the fitted one does. Needs no JAX. Draws keep their (chain, draw)
dimensions; tables have one row per recipe or run with equal-tailed intervals. Two columns go with
every answer: `extrapolation`, the compute asked about over the last fitted compute, and
`prior_share`, posterior sd over prior sd (1: the data said nothing).
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from rlx.checksum import crc32
from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.families import FAMILIES, Family
from rlx.scaling.priors import NUMPY, Priors, prior_theta

Floats = NDArray[np.float64]

PARAMS = ("A", "C_mid", "B", "R0")
FARTHEST = 30.0  # bound of a, c and b, beyond which exp would overflow
FALLEN_SD = 0.08  # of the pass rate of a run that fell; measured on falls of sweep=hard_mix
LAST = 3  # evaluations whose mean is the level of such a run
PREDICT_SEED = 0  # of simulated noise: equal questions get equal answers


class NotConverged(RuntimeError):
    """The sampler has not converged: answers would not mean what they say."""


def load(path: Path | str) -> ScalingFit:
    """A fit that `ScalingFit.save` wrote.

    Raises:
        InputError: no such file; not a netCDF file; of something else; or damaged.
    """
    path, remedy = Path(path), "give a file that fit.save wrote"
    if not path.is_file():
        raise InputError("posterior", path, "no such file", remedy)
    try:
        held = io.BytesIO(path.read_bytes())  # xarray keeps files that it could not read open
        tree = xr.load_datatree(held, engine="h5netcdf")
        fit = ScalingFit(tree)
        groups = [name for name in GROUPS if name not in tree]
        attrs = [name for name in ATTRS if name not in tree.attrs]
        lost = [*groups, *attrs, *(() if groups else missing(tree))]
    except Exception as error:  # whatever a reader of netCDF says of bytes that are none
        said = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        reason = f"cannot be read, {said}"
        raise InputError("posterior", path, reason, remedy) from error
    if lost:
        raise InputError("posterior", path, f"not a fit: lacks {', '.join(lost)}", remedy)
    if tree.attrs.get("crc32", checksum(tree)) != checksum(tree):
        raise InputError("posterior", path, "damaged: its checksum differs", "fit again")
    return fit


GROUPS = ("posterior", "observed_data", "constant_data", "levels", "evals")
ATTRS = ("curve", "noise", "method", "C_ref", "priors", "departed")
SITES = ("theta_recipe", "theta_run", "logit_R0", "log_seed_sd", "log_wander_sd")
SITES += ("log_wander_length",)
CONSTANTS = ("compute", "stderr", "recipe_of_run", "start_of_run", "C_max", "design")


def missing(tree: xr.DataTree) -> list[str]:
    """Variables that every question may need and the tree lacks."""
    need: dict[str, tuple[str, ...]] = {"posterior": SITES, "constant_data": CONSTANTS}
    need |= {"observed_data": ("value",), "evals": ("run", "compute", "value", "stderr")}
    need["posterior"] += tuple(site.name for site in FAMILIES[tree.attrs["curve"]].sites)
    return [f"{group}/{name}" for group in need for name in need[group] if name not in tree[group]]


def checksum(tree: xr.DataTree) -> str:
    """CRC-32 of the names, values and attributes of a tree, the checksum itself left out."""
    crc = 0
    for node in tree.subtree:
        attrs = {k: str(v) for k, v in sorted(node.attrs.items()) if k != "crc32"}
        crc = zlib.crc32(f"{node.path} {attrs}".encode(), crc)
        for name, x in sorted(node.variables.items(), key=lambda item: str(item[0])):
            crc = zlib.crc32(f"{name} {x.dims} {crc32(x)}".encode(), crc)
    return f"{crc:08x}"


class ScalingFit:
    """A posterior over scaling curves. `unsafe` answers even when the sampler did not converge."""

    def __init__(self, tree: xr.DataTree, *, unsafe: bool = False):
        self.tree, self.is_unsafe = tree, unsafe

    # ------------------------------------------------------------ what it is

    def __repr__(self) -> str:
        a = self.attrs
        state = (
            a["method"]
            if a["method"] != "nuts"
            else "converged"
            if self.converged
            else "NOT CONVERGED"
        )
        return (
            f"ScalingFit({a['curve']}, {len(self.runs)} runs of {len(self.recipes)} recipes, "
            f"{state}: rhat {a['rhat']:.3f}, ess {a['ess']:.0f}, {a['divergences']} divergences)"
        )

    @property
    def attrs(self) -> dict:
        return self.tree.attrs

    @property
    def family(self) -> Family:
        """The family of its curves."""
        return FAMILIES[self.attrs["curve"]]

    @property
    def runs(self) -> list[str]:
        return [str(x) for x in self._group("posterior")["run"].values]

    @property
    def recipes(self) -> list[str]:
        return [str(x) for x in self._group("posterior")["recipe"].values]

    @property
    def axes(self) -> list[str]:
        """Columns that `effects` can compare: design choices with two levels or more."""
        levels = self._group("levels")
        names = [str(name).removeprefix("axis_") for name in levels.data_vars]
        return [name for name in names if len(set(levels[f"axis_{name}"].values.tolist())) > 1]

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
        stored = self._group("evals")
        frame = pd.DataFrame({name: stored[name].values for name in stored.data_vars})
        axes = tuple(json.loads(stored.attrs["axes"]))
        labels = {k: stored.attrs[k] for k in ("compute_label", "value_label", "title")}
        return Evals(frame, axes=axes, **labels)

    @property
    def departed(self) -> dict[str, float]:
        """Runs that left their curve, with the z of the departure, see rlx.scaling.departure.

        What follows a fall (z < 0) was not fitted.
        """
        return json.loads(self.attrs["departed"])

    @property
    def converged(self) -> bool:
        """R-hat <= 1.01, bulk and tail effective samples >= 400, no divergence, E-BFMI > 0.3."""
        a = self.attrs
        good = a["rhat"] <= 1.01 and a["ess"] >= 400 and a["bfmi"] > 0.3
        return bool(good and a["divergences"] == 0)

    def unsafe(self) -> ScalingFit:
        """The same posterior, answering although it has not converged."""
        return ScalingFit(self.tree, unsafe=True)

    def _guard(self) -> None:
        if self.attrs["method"] == "nuts" and not self.converged and not self.is_unsafe:
            a = self.attrs
            raise NotConverged(
                f"rhat={a['rhat']:.3f}: the sampler has not converged (ess {a['ess']:.0f}, "
                f"{a['divergences']} divergences, bfmi {a['bfmi']:.2f}); see fit.check(), or ask "
                "fit.unsafe()"
            )

    def save(self, path: Path | str) -> None:
        """Write the fit as one netCDF file, with the checksum that `load` compares."""
        self.tree.attrs["crc32"] = checksum(self.tree)
        self.tree.to_netcdf(path, engine="h5netcdf")

    # ------------------------------------------------------------ draws

    def _group(self, name: str) -> xr.Dataset:
        return self.tree[name].to_dataset()

    def _constant(self, name: str) -> NDArray[Any]:
        return np.asarray(self._group("constant_data")[name])

    def _sites(self, name: str) -> Floats:
        """[X, ...] draws of a site, chains joined."""
        x = np.asarray(self._group("posterior")[name])
        return x.reshape(-1, *x.shape[2:])

    @cached_property
    def _recipe_of_run(self) -> NDArray[np.int64]:
        return self._constant("recipe_of_run").astype(int)

    def _names(self, by: str) -> list[str]:
        if by not in ("recipe", "run"):
            raise InputError("by", by, "unknown level", "use recipe or run")
        return self.recipes if by == "recipe" else self.runs

    def _index(self, by: str, name: str) -> int:
        names = self._names(by)
        if name not in names:
            raise InputError(by, name, "not in this fit", f"use one of {', '.join(names)}")
        return names.index(name)

    def _theta(self, by: str, seeds: str = "typical") -> Floats:
        """(a, c, b) [X, N, 3]; seeds="new" adds a new seed's deviation to a recipe's."""
        theta = self._sites(f"theta_{by}")
        if seeds not in ("typical", "new") or (seeds == "new" and by == "run"):
            raise InputError(
                "seeds", seeds, f"unknown for by={by}", "use typical or new, by=recipe"
            )
        if seeds == "new":
            z = np.random.default_rng(PREDICT_SEED).normal(size=theta.shape)
            theta = theta + np.exp(self._sites("log_seed_sd"))[:, None] * z
        return theta

    def _R0(self, by: str) -> Floats:
        """[X, N]; a recipe whose runs have several starts gets the mean of their logits."""
        logit_R0_XS = self._sites("logit_R0")
        logit_R0_XR = logit_R0_XS[:, self._constant("start_of_run").astype(int)]
        if by == "run":
            return expit(logit_R0_XR)
        members = self._recipe_of_run[None] == np.arange(len(self.recipes))[:, None]
        return expit(logit_R0_XR @ (members / members.sum(1, keepdims=True)).T)

    def _parameters(self, by: str, seeds: str = "typical") -> dict[str, Floats]:
        """A, C_mid, B, R0 and the family's own [X, N], as its `at` takes them."""
        theta = np.clip(self._theta(by, seeds), -FARTHEST, FARTHEST)
        return self._natural(theta, self._R0(by), self._sites, by)

    def _natural(self, theta: Floats, R0: Floats, site: Callable, by: str) -> dict[str, Floats]:
        """The same of theta [X, N, 3], R0 and the draws that `site` gives of a site."""
        a, c, b = np.moveaxis(theta, -1, 0)
        A, B = R0 + (1 - R0) * expit(a), np.exp(b)
        p = {"A": A, "B": B, "C_mid": self.attrs["C_ref"] * np.exp(c)}
        p["R0"] = np.broadcast_to(R0, A.shape)
        own = {}
        for name, (held, _) in self.family.own.items():
            x = site(held)
            x_XN = x[:, None] if x.ndim == 1 else x[:, self._recipe_of_run] if by == "run" else x
            own[name] = np.broadcast_to(x_XN, A.shape)
        return p | self.family.of_sites(own, NUMPY)

    def _at(self, compute_C: Floats, by: str, seeds: str = "typical") -> Floats:
        """Latent pass rates [X, N, C] at computes [C] or [N, C].

        A run that fell has no curve beyond its fall: it stays at its last level, give or take
        FALLEN_SD sqrt(1 + log(C / last C)), which promises neither recovery nor ruin.
        """
        parameters = {k: x[..., None] for k, x in self._parameters(by, seeds).items()}
        x_XNC = self.family.at(compute_C, **parameters)
        if by == "run":
            z_X1 = np.random.default_rng(PREDICT_SEED).normal(size=(len(x_XNC), 1))
            for r, (level, C_last) in self._fallen.items():
                C = np.broadcast_to(compute_C, x_XNC.shape[1:])[r]
                sd_C = FALLEN_SD * np.sqrt(1 + np.log(np.maximum(C / C_last, 1)))
                stays_XC = np.clip(level + sd_C * z_X1, 0, 1)
                x_XNC[:, r] = np.where(self._constant("C_max")[r] < C, stays_XC, x_XNC[:, r])
        return x_XNC

    @cached_property
    def _fallen(self) -> dict[int, tuple[float, float]]:
        """Of every run that fell: mean of its last evaluations, also those not fitted, and the
        compute of the last one."""
        out = {}
        for run, z in self.departed.items():
            if z < 0:
                rows = self.evals.frame.loc[lambda frame, run=run: frame["run"] == run]
                level = float(rows["value"].iloc[-LAST:].mean())
                out[self.runs.index(run)] = (level, float(rows["compute"].iloc[-1]))
        return out

    def _label(self, x: Floats, by: str, **coords: ArrayLike) -> xr.DataArray:
        """[X, N, ...] as (chain, draw, recipe|run, ...)."""
        chains = self._group("posterior").sizes["chain"]
        dims = ("chain", "draw", by, *coords)
        named = {by: self._names(by), **{k: np.asarray(v) for k, v in coords.items()}}
        return xr.DataArray(x.reshape(chains, -1, *x.shape[1:]), dims=dims, coords=named)

    def last_compute(self, by: str) -> Floats:
        """Last fitted compute [N]."""
        C_R = self._constant("C_max")
        if by == "run":
            return C_R
        return np.array([C_R[self._recipe_of_run == j].max() for j in range(len(self.recipes))])

    # ------------------------------------------------------------ what the prior said

    @cached_property
    def _prior(self) -> dict[str, Floats]:
        """Prior draws of theta of a recipe and of a run [X, J, 3], and of the family's sites."""
        return prior_theta(self.priors, self._constant("design"), self.family.sites)

    def _prior_parameters(self, by: str) -> dict[str, Floats]:
        theta = self._prior[by]
        if by == "run":
            theta = theta[:, self._recipe_of_run]
        return self._natural(theta, self._R0(by).mean(0)[None], self._prior.__getitem__, by)

    def prior_share(self, param: str, by: str = "recipe") -> Floats:
        """sd of the posterior over sd of the prior [N]; C_mid and B on a log scale."""
        if param == "R0":
            sd_S = self._constant("start_sd")
            start_R = self._constant("start_of_run").astype(int)
            R0 = self._sites("logit_R0").std(0) / sd_S
            if by == "run":
                return R0[start_R]
            first = [int(np.argmax(self._recipe_of_run == j)) for j in range(len(self.recipes))]
            return R0[start_R[first]]
        link = (lambda x: x) if param == "A" else np.log
        posterior, prior = self._parameters(by)[param], self._prior_parameters(by)[param]
        return link(posterior).std(0) / link(prior).std(0)

    def _curve_prior_share(self, compute_C: Floats, by: str) -> Floats:
        """The same of the pass rate at C [N, C]."""
        prior = {k: x[..., None] for k, x in self._prior_parameters(by).items()}
        return self._at(compute_C, by).std(0) / np.maximum(
            self.family.at(compute_C, **prior).std(0), 1e-9
        )

    # ------------------------------------------------------------ questions

    def param(self, name: str, by: str = "recipe") -> xr.DataArray:
        """Draws of A, C_mid, B, R0, or of B_tail, the exponent that the gap to the ceiling has.

        A recipe's parameters are those of its typical seed. B_tail = B kappa under burr.
        """
        self._guard()
        p = self._parameters(by)
        p["B_tail"] = self.family.tail(B=p["B"], **{name: p[name] for name in self.family.own})
        if name not in (*PARAMS, "B_tail"):
            raise InputError("param", name, "unknown", f"use {', '.join((*PARAMS, 'B_tail'))}")
        return self._label(p[name], by)

    def summary(self, by: str = "recipe", prob: float = 0.9) -> pd.DataFrame:
        """Mean, interval, contraction, phase and status of A, C_mid, B, B_tail and R0.

        Columns: level, name, param, mean, quantiles, contraction (1 - prior share), phase (last
        compute / C_mid, median), gained (share of A - R0 made at the last compute, median) and
        status: "ok", or why the ceiling is not to be trusted.
        """
        self._guard()
        names, last = self._names(by), self.last_compute(by)
        p = self._parameters(by)
        at_last = self.family.at(last[None], **p)
        gained = (at_last - p["R0"]) / np.maximum(p["A"] - p["R0"], 1e-9)
        phase = np.median(last / p["C_mid"], 0)
        status = self.status(by)
        parts = []
        for param in ("A", "C_mid", "B", "B_tail", "R0"):
            x = self.param(param, by).values.reshape(-1, len(names))
            share = self.prior_share("B" if param == "B_tail" else param, by)
            part = pd.DataFrame({"level": by, "name": names, "param": param, "mean": x.mean(0)})
            part = part.join(_quantiles(x, prob))
            part["contraction"], part["phase"] = 1 - share, phase
            part["gained"], part["status"] = np.median(gained, 0), status
            parts.append(part)
        order = {name: i for i, name in enumerate(names)}
        table = pd.concat(parts, ignore_index=True)
        return table.sort_values(
            "name", key=lambda s: s.map(order), kind="stable", ignore_index=True
        )

    def status(self, by: str = "recipe") -> list[str]:
        """Per recipe or run: "ok", "departed", or "ceiling not identified" with the reason."""
        p = self._parameters(by)
        at_last = self.family.at(self.last_compute(by)[None], **p)
        gained = (at_last - p["R0"]) / np.maximum(p["A"] - p["R0"], 1e-9)
        lo, hi = np.quantile(gained, [0.05, 0.95], axis=0)
        share = self.prior_share("A", by)
        gone, past = self.departed, (self.last_compute(by) > p["C_mid"]).mean(0)
        out = []
        for i, name in enumerate(self._names(by)):
            mine = [name] if by == "run" else self._runs_of(i)
            if any(run in gone for run in mine):
                out.append("departed")
            elif past[i] < 0.5:
                out.append(f"ceiling not identified: P(C_mid reached) = {past[i]:.2f}")
            elif share[i] > 0.5:
                out.append(f"ceiling not identified: prior share {share[i]:.2f}")
            elif hi[i] - lo[i] > 0.3:
                out.append(f"ceiling not identified: {lo[i]:.0%} to {hi[i]:.0%} of the gain seen")
            else:
                out.append("ok")
        return out

    def _runs_of(self, recipe: int) -> list[str]:
        return [run for run, j in zip(self.runs, self._recipe_of_run, strict=True) if j == recipe]

    def curve(self, compute: ArrayLike, by: str = "recipe", seeds: str = "typical") -> xr.DataArray:
        """Latent pass rate at `compute`: draws (chain, draw, recipe|run, compute).

        seeds: of a recipe, its "typical" seed or a "new" one.
        """
        self._guard()
        compute_C = np.atleast_1d(np.asarray(compute, float))
        x = self._label(self._at(compute_C, by, seeds), by, compute=compute_C)
        share = self._curve_prior_share(compute_C, by)
        return x.assign_coords(
            extrapolation=((by, "compute"), compute_C / self.last_compute(by)[:, None]),
            prior_share=((by, "compute"), share),
        )

    def predict(
        self, compute: ArrayLike, by: str = "run", trials: float | None = None
    ) -> xr.DataArray:
        """A new evaluation at `compute`: draws of curve + wander + sampling noise.

        The wander of a run carries over from its last evaluation, and fades with the gap; of a
        recipe it is that of a new seed. `trials`: graded samples, default those of the fitted
        evaluations (with neither, the noise is that of the fit).
        """
        self._guard()
        compute_C = np.atleast_1d(np.asarray(compute, float))
        rng = np.random.default_rng(PREDICT_SEED)
        latent = self._at(compute_C, by, "new" if by == "recipe" else "typical")
        mean, var = self._wander(compute_C, by)
        p = np.clip(latent + mean + np.sqrt(var) * rng.normal(size=latent.shape), 0, 1)
        x = p + self._noise_sd(p, by, trials) * rng.normal(size=p.shape)
        return self._label(np.clip(x, 0, 1), by, compute=compute_C).assign_coords(
            extrapolation=((by, "compute"), compute_C / self.last_compute(by)[:, None])
        )

    def predictive(
        self, compute: list[Floats], stderr: list[Floats], runs: list[int]
    ) -> tuple[Floats, Floats, Floats]:
        """Draws, and mean and sd given theta, [X, P], of given evaluations of given runs.

        Points of all runs stand one after another. A NaN in stderr takes the noise of the fit.
        """
        self._guard()
        width = max(map(len, compute))
        compute_RC = np.ones((len(self.runs), width))
        use = np.zeros(compute_RC.shape, bool)
        sd_RC = np.zeros(compute_RC.shape)
        for i, C, sd in zip(runs, compute, stderr, strict=True):
            compute_RC[i, : len(C)], sd_RC[i, : len(C)], use[i, : len(C)] = C, sd, True
        wander, var = self._wander(compute_RC, "run")
        mean = np.clip(self._at(compute_RC, "run") + wander, 0, 1)
        fitted = self._noise_sd(mean, "run", None)
        sd = np.sqrt(var + np.where(np.isnan(sd_RC), fitted, sd_RC) ** 2)
        mean, sd = mean[:, use], np.broadcast_to(sd, mean.shape)[:, use]
        z = np.random.default_rng(PREDICT_SEED).normal(size=mean.shape)
        return mean + sd * z, mean, sd

    def _wander(self, compute_C: Floats, by: str) -> tuple[Floats, Floats]:
        """Mean and variance [X, N, C] of the wander at compute beyond the last evaluation."""
        var_X = np.exp(2 * self._sites("log_wander_sd"))[:, None, None]
        if by == "recipe" or self.attrs["noise"] == "betabinomial":
            shape = (len(var_X), len(self._names(by)), len(compute_C))
            return np.zeros(shape), np.broadcast_to(var_X, shape)
        mean_XR, P_XR, gap_R = self._filtered
        ahead = np.maximum(compute_C - self.last_compute("run")[:, None], 0) / gap_R[:, None]
        decay = np.exp(-ahead[None] / np.exp(self._sites("log_wander_length"))[:, None, None])
        return decay * mean_XR[..., None], var_X + decay**2 * (P_XR[..., None] - var_X)

    @cached_property
    def _filtered(self) -> tuple[Floats, Floats, Floats]:
        """Wander at each run's last evaluation: mean and variance [X, R]; median gap [R]."""
        kalman = self._kalman(self._sites("log_wander_sd"), self._sites("log_wander_length"))
        residual_XRM = np.asarray(self._group("observed_data")["value"]) - self._at_own()
        _, mean_XR, P_XR = kalman.run(residual_XRM, self._noise_variance())
        return mean_XR, P_XR, kalman.gap_R

    def _kalman(self, log_sd_X: Floats, log_length_X: Floats) -> Kalman:
        C_RM = self._constant("compute")
        return Kalman(C_RM, np.exp(np.atleast_1d(log_sd_X)), np.exp(np.atleast_1d(log_length_X)))

    def _at_own(self) -> Floats:
        """Latent pass rate of every run at its own evaluations [X, R, M]."""
        parameters = {k: x[..., None] for k, x in self._parameters("run").items()}
        return self.family.at(np.nan_to_num(self._constant("compute"), nan=1.0), **parameters)

    def _noise_variance(self) -> Floats:
        """Sampling variance [X or 1, R, M]; 1 where there is no evaluation."""
        sd_RM = self._constant("stderr")
        known = np.nan_to_num(sd_RM, nan=0.0) ** 2
        if "log_noise_sd" not in self.tree["posterior"]:
            return np.where(known > 0, known, 1.0)[None]
        var = np.exp(2 * self._sites("log_noise_sd"))[:, None, None] * self._constant("unknown")
        return np.where(known + var > 0, known + var, 1.0)

    def _noise_sd(self, p: Floats, by: str, trials: float | None) -> Floats:
        """sd of the sampling noise of a new evaluation with pass rates p [X, N, C]."""
        if trials is None and "log_noise_sd" in self.tree["posterior"]:
            return np.exp(self._sites("log_noise_sd"))[:, None, None]
        if trials is not None:
            return np.sqrt(p * (1 - p) / trials)
        later = self.evals.frame[self.evals.frame["compute"] > 0]  # as given, nothing pooled
        sd_R = later.groupby("run")["stderr"].median().loc[self.runs].to_numpy()
        if by == "recipe":
            recipe_R = self._recipe_of_run
            sd_R = np.array([sd_R[recipe_R == j].mean() for j in range(len(self.recipes))])
        return sd_R[None, :, None]

    def prob(
        self,
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
            margin: by how much.

        Returns:
            prob, mcse (Monte Carlo standard error), extrapolation and prior_share.
        """
        self._guard()
        if sign not in (">", "<"):
            raise InputError("sign", sign, "unknown", "use > or <")
        i, j = self._index(by, left), self._index(by, right)
        if param == "curve":
            if at is None:
                raise InputError("at", at, "no compute", "give at=COMPUTE")
            x = self.curve(at, by).values[..., 0]
            far = float(at / min(self.last_compute(by)[[i, j]]))
            share = float(self._curve_prior_share(np.array([at]), by)[[i, j], 0].max())
        else:
            x, far = self.param(param, by).values, np.nan
            share = float(self.prior_share("B" if param == "B_tail" else param, by)[[i, j]].max())
        difference = x[..., i] - x[..., j]
        true = (difference > margin) if sign == ">" else (difference < -margin)
        return pd.Series(_probability(true) | {"extrapolation": far, "prior_share": share})

    def prob_best(self, at: str | float = "ceiling", by: str = "recipe") -> xr.DataArray:
        """P(highest ceiling), or P(highest pass rate at a compute), per recipe."""
        x = self.param("A", by) if at == "ceiling" else self.curve(float(at), by)[..., 0]
        best = x.values.reshape(-1, x.sizes[by]).argmax(-1)
        share = np.bincount(best, minlength=x.sizes[by]) / len(best)
        return xr.DataArray(share, dims=(by,), coords={by: self._names(by)}, name="prob_best")

    def compute_to(self, target: float, prob: float = 0.9, by: str = "recipe") -> pd.DataFrame:
        """Compute at which the curve reaches `target`, inf where it never does.

        Columns: prob_reachable = P(A > target); quantiles of the compute; budget, the compute that
        reaches the target with probability `prob`; extrapolation of the median; prior_share of A.
        """
        self._guard()
        C = self.family.compute_to(target, **self._parameters(by))
        table = pd.DataFrame({"name": self._names(by), "target": target})
        table["prob_reachable"] = np.isfinite(C).mean(0)
        table = table.join(_quantiles(C, prob))
        table["budget"] = np.quantile(C, prob, axis=0, method="inverted_cdf")
        table["extrapolation"] = np.quantile(
            C, 0.5, axis=0, method="inverted_cdf"
        ) / self.last_compute(by)
        table["prior_share"] = self.prior_share("A", by)
        return table

    def gain(self, extra: float, by: str = "run", prob: float = 0.9) -> pd.DataFrame:
        """Pass rate that `extra` compute buys beyond the last evaluation: R(C + extra) - R(C)."""
        self._guard()
        last = self.last_compute(by)
        ends_N2 = np.stack([np.nextafter(last, np.inf), last + extra], 1)  # after a fall
        more = np.diff(self._at(ends_N2, by))[..., 0]
        table = pd.DataFrame({"name": self._names(by), "compute": last, "extra": extra})
        table["mean"] = more.mean(0)
        table = table.join(_quantiles(more, prob))
        table["per_compute"], table["extrapolation"] = more.mean(0) / extra, (last + extra) / last
        table["prior_share"] = self.prior_share("A", by)
        return table

    def efficiency(
        self,
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
            Quantiles of the ratio over the draws in which both arrive, prob_both of those,
            prob_cheaper = P(left needs less, or right never arrives), target (mean), extrapolation.
        """
        self._guard()
        i, j = self._index(by, left), self._index(by, right)
        ratio, y, C = self._efficiency(i, j, target, by)
        both = np.isfinite(ratio)
        cheaper = np.where(np.isfinite(C[0]) | np.isfinite(C[1]), C[0] < C[1], False)
        row = _quantiles(ratio[both][:, None] if both.any() else np.full((1, 1), np.nan), prob)
        far = np.median(
            np.maximum(C[0] / self.last_compute(by)[i], C[1] / self.last_compute(by)[j])
        )
        return pd.Series(
            row.iloc[0].to_dict()
            | {"prob_both": both.mean(), "prob_cheaper": cheaper.mean(), "target": y.mean()}
            | {"extrapolation": far, "prior_share": self.prior_share("C_mid", by)[[i, j]].max()}
        )

    def _efficiency(self, i: int, j: int, target: float | None, by: str):
        """Ratio of compute-to-target [X] (NaN unless both arrive), target [X], both computes."""
        p = self._parameters(by)
        if target is None:
            R0 = np.maximum(p["R0"][:, i], p["R0"][:, j])
            y = R0 + 0.8 * (np.minimum(p["A"][:, i], p["A"][:, j]) - R0)
        else:
            y = np.full(len(p["A"]), float(target))
        C = [self.family.compute_to(y, **{k: x[:, n] for k, x in p.items()}) for n in (i, j)]
        both = np.isfinite(C[0]) & np.isfinite(C[1]) & (C[1] > 0) & (C[0] > 0)
        with np.errstate(all="ignore"):
            return np.where(both, C[0] / C[1], np.nan), y, C

    # ------------------------------------------------------------ elsewhere

    def check(self):
        """Diagnostics, see rlx.scaling.check."""
        from rlx.scaling.check import check

        return check(self)

    def effects(self, axis: str, **options) -> pd.DataFrame:
        """Ceiling movers and efficiency shapers, see rlx.scaling.decide.effects."""
        from rlx.scaling.decide import effects

        self._guard()
        return effects(self, axis, **options)

    def allocate(self, budget: float, **options) -> pd.DataFrame:
        """Continue, stop, or add a seed, see rlx.scaling.decide.allocate."""
        from rlx.scaling.decide import allocate

        self._guard()
        return allocate(self, budget, **options)

    def backtest(self, **options):
        """Forecasts from earlier compute, scored, see rlx.scaling.backtest."""
        from rlx.scaling.backtest import backtest

        same: dict[str, Any] = {"priors": self.priors, "noise": self.attrs["noise"]}
        same |= {"r0": json.loads(self.attrs["r0"])}
        return backtest(self.evals, **(same | options))

    def trust(self, **options) -> float:
        """Largest C / C_max to which past forecasts of this study have been calibrated."""
        level = options.pop("level", 0.9)
        return self.backtest(**options).trust(self.attrs["curve"], level=level)

    def update(self, data: Evals, **options) -> ScalingFit:
        """The fit of more data with the same choices."""
        from rlx.scaling.infer import fit

        a = self.attrs
        axes = json.loads(a["axes"])
        same: dict[str, Any] = {
            "curve": a["curve"],
            "noise": a["noise"],
            "method": a["method"],
            "seed": a["seed"],
        }
        same |= {"axes": None if axes is None else tuple(axes), "r0": json.loads(a["r0"])}
        same["priors"] = self.priors
        same.update(options)
        return fit(data, **same)


class Kalman:
    """Filter of an Ornstein-Uhlenbeck wander along the evaluations of R runs, for X settings."""

    def __init__(self, C_RM: Floats, sd_X: Floats, length_X: Floats):
        self.seen_RM = np.isfinite(C_RM)
        step_RM = np.diff(C_RM, axis=1, prepend=np.nan)
        inner = [step[np.isfinite(step)] for step in step_RM]
        self.gap_R = np.array([np.median(step) if len(step) else 1.0 for step in inner])
        gap_RM = np.where(np.isfinite(step_RM), step_RM / self.gap_R[:, None], np.inf)
        self.decay_XRM = np.exp(-gap_RM / length_X[:, None, None])
        self.var_X1 = sd_X[:, None] ** 2

    def run(self, residual_XRM: Floats, var_XRM: Floats) -> tuple[Floats, Floats, Floats]:
        """One-step-ahead errors over their sd [X, R, M], NaN where nothing was seen, and the mean
        and variance [X, R] of the wander after the last evaluation."""
        X, R = len(self.var_X1), len(self.seen_RM)
        mean, P = np.zeros((X, R)), np.broadcast_to(self.var_X1, (X, R))
        z_XRM = np.full((X, *self.seen_RM.shape), np.nan)
        for m in range(self.seen_RM.shape[1]):
            seen_R, decay = self.seen_RM[:, m], self.decay_XRM[..., m]
            ahead, P_ahead = decay * mean, self.var_X1 + decay**2 * (P - self.var_X1)
            S = P_ahead + var_XRM[..., m]
            error = np.where(seen_R, residual_XRM[..., m], 0.0) - ahead
            z_XRM[..., m] = np.where(seen_R, error / np.sqrt(S), np.nan)
            mean = np.where(seen_R, ahead + P_ahead / S * error, mean)
            P = np.where(seen_R, P_ahead * (1 - P_ahead / S), P)
        return z_XRM, mean, P


def _quantiles(x: Floats, prob: float) -> pd.DataFrame:
    """Equal-tailed interval and median of [X, N]; inf where that many draws are infinite."""
    points = ((1 - prob) / 2, 0.5, (1 + prob) / 2)
    q = np.quantile(x, points, axis=0, method="inverted_cdf")
    return pd.DataFrame({f"q{100 * p:02.0f}": row for p, row in zip(points, q, strict=True)})


def _probability(true: NDArray[np.bool_]) -> dict[str, float]:
    """Frequency of [chain, draw] events and its Monte Carlo standard error."""
    from arviz_stats.base import array_stats

    p = float(true.mean())
    if p in (0.0, 1.0):
        return {"prob": p, "mcse": 1 / true.size}
    ess = float(array_stats.ess(true.astype(float), chain_axis=0, draw_axis=1, method="mean"))
    return {"prob": p, "mcse": float(np.sqrt(p * (1 - p) / ess))}
