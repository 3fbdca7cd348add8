"""A fit whose draws are written by hand, so that every answer can be worked out on paper."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import xarray as xr

from rlx.scaling.data import Evals
from rlx.scaling.infer import evals_dataset
from rlx.scaling.posterior import ScalingFit
from rlx.scaling.priors import Priors

R0 = 0.2
COMPUTE = (1.0, 2.0, 3.0, 4.0)


def theta(A, C_mid, B):
    """(a, c, b) of a curve that starts at R0, C_ref = 1."""
    share = (A - R0) / (1 - R0)
    return np.log(share / (1 - share)), np.log(C_mid), np.log(B)


def hand_fit(recipes: dict, *, chains=2, levels=None, **attrs) -> ScalingFit:
    """A fit of one run per recipe.

    recipes: name -> list of draws (A, C_mid, B), the same number for all; chain-major.
    levels: axis -> levels of the recipes.
    """
    names = list(recipes)
    draws = np.array([[theta(*d) for d in recipes[name]] for name in names])  # [J, X, 3]
    X = draws.shape[1] // chains
    theta_XJ = draws.swapaxes(0, 1).reshape(chains, X, len(names), 3)
    shape = (chains, X)
    coords = {"recipe": names, "run": [f"{n}-s0" for n in names], "coordinate": ["a", "c", "b"]}
    coords |= {"start": ["base"]}
    pair = ("chain", "draw")
    posterior = xr.Dataset(
        {
            "theta_recipe": ((*pair, "recipe", "coordinate"), theta_XJ),
            "theta_run": ((*pair, "run", "coordinate"), theta_XJ),
            "logit_R0": ((*pair, "start"), np.full((*shape, 1), np.log(R0 / (1 - R0)))),
            "log_seed_sd": ((*pair, "coordinate"), np.full((*shape, 3), np.log(1e-9))),
            "log_wander_sd": (pair, np.full(shape, np.log(0.01))),
            "log_wander_length": (pair, np.full(shape, np.log(2.0))),
        },
        coords=coords,
    )
    point = ("run", "evaluation")
    value = np.full((len(names), len(COMPUTE)), 0.4)
    constant = xr.Dataset(
        {
            "compute": (point, np.tile(COMPUTE, (len(names), 1))),
            "stderr": (point, np.full(value.shape, 0.005)),
            "trials": (point, np.full(value.shape, 1000.0)),
            "unknown": (point, np.zeros(value.shape)),
            "recipe_of_run": ("run", np.arange(len(names))),
            "start_of_run": ("run", np.zeros(len(names), int)),
            "truth": ("run", np.full(len(names), np.nan)),
            "C_max": ("run", np.full(len(names), COMPUTE[-1])),
            "design": (("recipe", "effect"), np.zeros((len(names), 0))),
            "start_mean": ("start", [np.log(R0 / (1 - R0))]),
            "start_sd": ("start", [0.05]),
        },
        coords={"run": coords["run"], "recipe": names, "start": ["base"]},
    )
    levels = levels or {"recipe": names}
    frame = pd.DataFrame(
        [
            {"run": f"{n}-s0", "recipe": n, "seed": 0, "axes": "", "compute": C, "value": 0.4}
            | {"stderr": 0.005, "passes": 400.0, "trials": 1000.0, "truth": np.nan, "start": "base"}
            for n in names
            for C in COMPUTE
        ]
    )
    tree = xr.DataTree.from_dict(
        {
            "posterior": posterior,
            "constant_data": constant,
            "observed_data": xr.Dataset({"value": (point, value)}, coords={"run": coords["run"]}),
            "levels": xr.Dataset(
                {f"axis_{k}": ("recipe", list(map(str, x))) for k, x in levels.items()},
                coords={"recipe": names},
            ),
            "evals": evals_dataset(Evals(frame)),
        }
    )
    tree.attrs = {
        "curve": "sigmoid",
        "noise": "normal",
        "method": "nuts",
        "seed": 0,
        "priors": json.dumps(asdict(Priors())),
        "doubt": "null",  # the curves alone, so that answers follow by hand
        "axes": "null",
        "r0": json.dumps(R0),
        "C_ref": 1.0,
        "rhat": 1.0,
        "ess": 1000.0,
        "bfmi": 1.0,
        "divergences": 0,
        "rounds": 1,
        "notes": "[]",
        "departed": "{}",
        "data_sha256": Evals(frame).sha256(),
        "versions": "{}",
    } | attrs
    return ScalingFit(tree)
