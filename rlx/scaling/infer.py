"""`posterior_of`: evaluations in, posterior out.

The steps: arrays (`arrays`), the mode in whitened coordinates (`coordinates`, `bayes`), cutting
runs that fall off their curve (`departure`), NUTS or a normal at the mode, and one
`xarray.DataTree` in ArviZ's layout with data, labels, priors and versions: all that `draws.Draws`
needs.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.doubt import Doubt
from rlx.scaling.families import FAMILIES
from rlx.scaling.priors import NUMPY, Priors

if TYPE_CHECKING:
    from rlx.scaling.arrays import Labels
    from rlx.scaling.bayes import Mode, SiteDraws, Stats
    from rlx.scaling.model import Options, Study

DOUBT = Doubt()
METHODS = ("nuts", "laplace")
AUTO = "auto"
BETTER = np.log(20)  # log odds of families above which another one than the first is taken
MAX_CUTS = 4  # rounds of finding runs that fall off their curve


def posterior_of(
    data: Evals,
    *,
    curve: str = "burr",
    noise: str = "normal",
    axes: tuple[str, ...] | None = None,
    r0: float | str | None = None,
    priors: Priors | None = None,
    doubt: Doubt | None = DOUBT,
    method: str = "nuts",
    seed: int = 0,
    progress: bool = False,
    pad_to: int = 0,
) -> xr.DataTree:
    """Posterior of the hierarchical model of `rlx.scaling.model` given a study's evaluations.

    Args:
        data: the evaluations.
        curve: "burr" (a tail shape kappa shared by all runs), "sigmoid" (kappa = 1, arXiv
            2510.13786 Eq. 1), "power" (a power law that starts at R0), "two_rises", "dip" (runs
            that first fall below R0), or "auto", the one that `evidence` prefers.
        noise: "normal"; "student", for isolated bad evaluations; "betabinomial", for few counts.
        axes: columns whose levels have effects; default those of the study.
        r0: pass rate at C = 0, a number or a column; default: from the evaluations.
        priors: default Priors().
        doubt: the discrepancy of the curves beyond the data; None: none.
        method: "nuts", or "laplace": a normal at the mode, a preview that takes a second.
        seed: of the sampler.
        progress: show a progress bar.
        pad_to: least padded length of a run, so that windows of one study compile once.

    Raises:
        InputError: an option or the data cannot be used.
    """
    import jax

    from rlx.scaling import bayes

    check_choice("method", method, METHODS)
    check_choice("curve", curve, (*FAMILIES, AUTO))
    asked = Asked(noise, axes, r0, priors, pad_to)
    found = None
    if curve == AUTO:
        found = evidence(data, **asked._asdict())
        curve = best_curve(found)
    with jax.enable_x64(True):
        study, labels, notes, departed, options, mode = mode_of(data, curve, asked)
        if method == "nuts":
            draws, stats = bayes.sample(study, options, mode, seed=seed, progress=progress)
        else:
            draws, stats = bayes.laplace(study, options, mode, seed=seed)
        study = {name: np.asarray(x) for name, x in study._asdict().items()}
    added = _departures(departed, labels, study["log_C_RM"])
    if found is not None:
        added.append(f"curve={curve}, by log evidence: {said(found)}")
    for note in added:
        print(note)
    rhat, ess = bayes.convergence(draws) if method == "nuts" else (np.nan, np.nan)
    bfmi = bayes.bfmi(stats.energy) if method == "nuts" else np.nan
    attrs = {
        "curve": curve,
        "noise": noise,
        "method": method,
        "seed": seed,
        "priors": json.dumps(asdict(priors or Priors())),
        "doubt": Doubt.text(doubt),
        "axes": json.dumps(axes),
        "r0": json.dumps(r0),
        "C_ref": labels.C_ref,
        "rhat": rhat,
        "ess": ess,
        "bfmi": bfmi,
        "divergences": int(stats.diverging.sum()),
        "rounds": stats.rounds,
        "notes": json.dumps([*notes, *added]),
        "departed": json.dumps({labels.runs[r]: z for r, (_, z) in departed.items()}),
        "data_sha256": data.sha256(),
        "versions": json.dumps(
            {"python": platform.python_version()}
            | {name: version(name) for name in ("jax", "numpyro", "numpy", "xarray")}
        ),
    }
    return make_tree(draws, stats, study, labels, data, attrs)


def _departures(departed, labels: Labels, log_C_RM) -> list[str]:
    """A note for each run that leaves its curve; one that falls ends there (`labels.C_max_R`)."""
    notes = []
    for r, (k, z) in departed.items():
        C = labels.C_ref * np.exp(log_C_RM[r, k])
        labels.C_max_R[r] = C if z < 0 else labels.C_max_R[r]
        what = "falls off its curve, later evaluations not used" if z < 0 else "leaves its curve"
        notes.append(f"run {labels.runs[r]}: after C = {C:g} {what} (z = {z:.1f})")
    return notes


class Asked(NamedTuple):
    """Arguments of `posterior_of` that determine what is fitted, besides the family."""

    noise: str
    axes: tuple[str, ...] | None
    r0: float | str | None
    priors: Priors | None
    pad_to: int


class Ready(NamedTuple):
    """What is sampled: arrays without the falls of runs, and the mode."""

    study: Study
    labels: Labels
    notes: list[str]
    departed: dict[int, tuple[int, float]]  # of a run: the evaluation after which it left, z
    options: Options
    mode: Mode


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(key, value, "not available", f"use {key}={'|'.join(known)}")


def mode_of(data: Evals, curve: str, asked: Asked) -> Ready:
    """The mode of the posterior of one family, after cutting runs where they fall off it."""
    import jax

    from rlx.scaling import bayes
    from rlx.scaling.arrays import assemble, make_options
    from rlx.scaling.departure import departures, drops, without_falls
    from rlx.scaling.model import NOISES

    if not isinstance(data, Evals):
        remedy = "read it with Evals.read or Evals.from_frame"
        raise InputError("data", type(data).__name__, "not Evals", remedy)
    noise, axes, r0, priors, pad_to = asked
    check_choice("noise", noise, NOISES)
    priors = priors or Priors()
    options = make_options(data, curve, noise, priors)
    study, labels, notes = assemble(data, axes=axes, r0=r0, priors=priors, pad_to=pad_to)
    study = jax.tree.map(jax.numpy.asarray, study)
    departed = drops(study)
    study, _ = without_falls(study, departed)
    mode = bayes.find_mode(study, options)
    for _ in range(MAX_CUTS):
        found = departures(study, bayes.sites_at(study, options, mode), curve)
        new = {r: x for r, x in found.items() if r not in departed}
        departed |= new
        study, fell_R = without_falls(study, new)
        if not fell_R.any():
            break
        mode = bayes.find_mode(study, options)
    return Ready(study, labels, notes, departed, options, mode)


def evidence(
    data: Evals,
    curves: Sequence[str] = ("burr", "two_rises", "dip"),
    *,
    noise: str = "normal",
    axes: tuple[str, ...] | None = None,
    r0: float | str | None = None,
    priors: Priors | None = None,
    pad_to: int = 0,
) -> pd.DataFrame:
    """How well families of curves explain a study, each with its own parameters integrated out.

    log p(evaluations | family) by Laplace's method, for the same evaluations: those that the first
    family keeps of runs that fell. A difference of 3 is one of odds of 20 to 1.

    Returns:
        One row per family: curve, log_evidence, and over_first, its excess over the first one's.

    Raises:
        InputError: a family is unknown, or the data cannot be used.
    """
    import jax

    from rlx.scaling import bayes

    for curve in curves:
        check_choice("curve", curve, tuple(FAMILIES))
    asked = Asked(noise, axes, r0, priors, pad_to)
    with jax.enable_x64(True):
        ready = mode_of(data, curves[0], asked)
        found = [bayes.log_evidence(ready.study, ready.options, ready.mode)]
        for curve in curves[1:]:
            options = ready.options._replace(curve=curve)
            mode = bayes.find_mode(ready.study, options)
            found.append(bayes.log_evidence(ready.study, options, mode))
    table = pd.DataFrame({"curve": list(curves), "log_evidence": found})
    return table.assign(over_first=table["log_evidence"] - table["log_evidence"].iloc[0])


def best_curve(evidence: pd.DataFrame) -> str:
    """The family with the most evidence, if that exceeds the first one's by BETTER; else the
    first."""
    over = evidence["over_first"].fillna(-np.inf)  # a family without a mode has none
    row = evidence.loc[over.idxmax()]
    return str((row if over.max() > BETTER else evidence.iloc[0])["curve"])


def said(evidence: pd.DataFrame) -> str:
    """`over_first` in words."""
    first, *others = evidence[["curve", "over_first"]].to_numpy()
    return ", ".join(f"{curve} {over:+.1f}" for curve, over in others) + f" against {first[0]}"


def make_tree(
    draws: SiteDraws,
    stats: Stats,
    study: dict[str, NDArray[np.float64]],
    labels: Labels,
    data: Evals,
    attrs: dict,
) -> xr.DataTree:
    """The posterior, the sampler's statistics, the data and the labels in ArviZ's layout."""
    from arviz_base import from_dict

    from rlx.scaling.model import Options, Study, sites_of, start_prior

    coords = {
        "coordinate": ["a", "c", "b"],
        "effect": labels.effects,
        "start": labels.starts,
        "recipe": labels.recipes,
        "run": labels.runs,
    }
    seen = study["seen_RM"].astype(bool)
    M = int(seen.sum(1).max())
    known = seen & (study["unknown_RM"] == 0)
    where = lambda seen, x_RM: np.where(seen, x_RM, np.nan)[:, :M]  # noqa: E731
    point, run, start = ["run", "evaluation"], ["run"], ["start"]
    arrays: dict[str, Any] = study
    means: dict[str, Any] = {name: x.mean((0, 1)) for name, x in draws.items()}
    start_mean_S, start_sd_S = start_prior(Study(**arrays), means, NUMPY)
    constant = {
        "compute": (point, where(seen, labels.C_ref * np.exp(study["log_C_RM"]))),
        "stderr": (point, where(known, np.sqrt(study["var_RM"]))),
        "trials": (point, where(seen, study["trials_RM"])),
        "unknown": (point, study["unknown_RM"][:, :M]),
        "recipe_of_run": (run, np.asarray(labels.recipe_R)),
        "start_of_run": (run, np.asarray(labels.start_R)),
        "truth": (run, labels.truth_R),
        "C_max": (run, labels.C_max_R),
        "design": (["recipe", "effect"], study["design_JE"]),
        "start_mean": (start, start_mean_S),
        "start_sd": (start, start_sd_S),
    }
    sites = sites_of(Study(**arrays), Options(attrs["curve"], attrs["noise"]))
    dims = {site.name: list(site.dims) for site in sites if site.name in draws}
    dims |= {"value": point} | {name: axes for name, (axes, _) in constant.items()}
    statistics = {"diverging": stats.diverging, "energy": stats.energy, "n_steps": stats.n_steps}
    tree = from_dict(
        {
            "posterior": draws,
            "sample_stats": statistics,
            "observed_data": {"value": where(seen, study["value_RM"])},
            "constant_data": {name: values for name, (_, values) in constant.items()},
        },
        coords=coords,
        dims=dims,
    )
    tree["levels"] = xr.Dataset(
        {f"axis_{k}": ("recipe", list(x)) for k, x in labels.levels.items()},
        coords={"recipe": labels.recipes},
    )
    tree["evals"] = evals_dataset(data)
    tree.attrs = attrs
    return tree


def evals_dataset(data: Evals) -> xr.Dataset:
    columns = {}
    for name in data.frame:
        column = data.frame[name]
        numeric = pd.api.types.is_numeric_dtype(column)
        columns[str(name)] = ("row", column.to_numpy(float) if numeric else list(map(str, column)))
    labels = {k: getattr(data, k) for k in ("compute_label", "value_label", "title")}
    return xr.Dataset(columns, attrs=labels | {"axes": json.dumps(data.axes)})
