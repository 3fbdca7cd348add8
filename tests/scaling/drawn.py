"""Fits whose draws are given, with runs on their mean curve."""

import json
from dataclasses import asdict

import numpy as np
import pandas as pd
import xarray as xr
from scipy.special import logit

import rlx.scaling as sc
from rlx.scaling import curve as curves
from rlx.scaling.infer import evals_dataset

R0, X = 0.2, 2000
C_POINTS = np.arange(1.0, 9.0)  # evaluations of every run, once every 1 of compute
TIGHT = 1e-9


def posterior(
    A_XJ,
    C_mid_J,
    B_J,
    *,
    axes=None,
    recipe_of_run=None,
    seed_sd=TIGHT,
    wander_sd=TIGHT,
    noise_sd=TIGHT,
    kappa=1.0,
    R0_J=None,
    last_R=None,
    departed=(),
    curve="burr",
    run_A_XR=None,
):
    """A fit with these draws; runs are as their recipe, with values on their mean curve."""
    A_XJ = np.broadcast_to(A_XJ, (X, np.shape(A_XJ)[-1]))
    J = A_XJ.shape[1]
    recipe_of_run = np.arange(J) if recipe_of_run is None else np.array(recipe_of_run)
    R = len(recipe_of_run)
    R0_J = np.full(J, R0) if R0_J is None else np.array(R0_J)
    last_R = np.full(R, 8.0) if last_R is None else np.array(last_R)

    def theta(A, C_mid, B, low):
        three = [logit((A - low) / (1 - low)), np.log(C_mid), np.log(B)]
        return np.stack([np.broadcast_to(x, A.shape) for x in three], axis=-1)

    theta_XJQ = theta(A_XJ, np.asarray(C_mid_J, float), np.asarray(B_J, float), R0_J)
    theta_XRQ = theta_XJQ[:, recipe_of_run]
    if run_A_XR is not None:
        theta_XRQ = theta_XRQ.copy()
        theta_XRQ[..., 0] = logit((run_A_XR - R0) / (1 - R0))

    def draws(x, *dims):
        x = np.asarray(x, float)
        return (("chain", "draw", *dims), x.reshape(4, X // 4, *x.shape[1:]))

    one = np.ones(X)
    names = {
        "recipe": [f"j{j}" for j in range(J)],
        "run": [f"j{j}-{r}" for r, j in enumerate(recipe_of_run)],
    }
    names |= {"start": [f"s{j}" for j in range(J)], "coordinate": ["a", "c", "b"]}
    draw = {
        "theta_recipe": draws(theta_XJQ, "recipe", "coordinate"),
        "theta_run": draws(theta_XRQ, "run", "coordinate"),
        "logit_R0": draws(one[:, None] * logit(R0_J), "start"),
        "log_seed_sd": draws(np.log(seed_sd) * np.ones((X, 3)), "coordinate"),
        "log_wander_sd": draws(np.log(wander_sd) * one),
        "log_wander_length": draws(np.log(1e-3) * one),
    }
    if curve == "burr":
        draw["log_kappa"] = draws(np.log(kappa) * one)
    A_R = (A_XJ[:, recipe_of_run] if run_A_XR is None else run_A_XR).mean(0)
    mean = {"C_mid": np.asarray(C_mid_J), "B": np.asarray(B_J), "R0": R0_J}
    mean = {k: np.broadcast_to(v, J)[recipe_of_run, None] for k, v in mean.items()}
    C_RM = last_R[:, None] * C_POINTS / 8
    value_RM = curves.burr(C_RM, A=A_R[:, None], kappa=kappa, **mean)
    point = ("run", "evaluation")
    constant = {
        "compute": (point, C_RM),
        "stderr": (point, np.full(C_RM.shape, noise_sd)),
        "trials": (point, np.full(C_RM.shape, np.nan)),
        "recipe_of_run": ("run", recipe_of_run),
        "start_of_run": ("run", recipe_of_run),
        "C_max": ("run", last_R),
        "design": (("recipe", "effect"), np.zeros((J, 0))),
    }
    axes = {"recipe": names["recipe"]} | (axes or {})
    rows = {"run": np.repeat(names["run"], C_RM.shape[1]), "compute": C_RM.ravel()}
    frame = pd.DataFrame(rows | {"value": value_RM.ravel(), "stderr": noise_sd})
    evals = sc.Evals.from_frame(frame, stderr="stderr", scale="fraction")
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(draw, coords=names),
            "observed_data": xr.Dataset({"value": (point, value_RM)}, coords={"run": names["run"]}),
            "constant_data": xr.Dataset(constant),
            "levels": xr.Dataset({f"axis_{k}": ("recipe", v) for k, v in axes.items()}),
            "evals": evals_dataset(evals),
        }
    )
    priors = json.dumps(asdict(sc.Priors()))
    names_of_departed = {names["run"][r]: -9.0 for r in departed}
    tree.attrs = {"curve": curve, "noise": "normal", "method": "laplace", "C_ref": 1.0}
    tree.attrs |= {
        "r0": json.dumps(R0),
        "priors": priors,
        "departed": json.dumps(names_of_departed),
    }
    return sc.ScalingFit(tree).with_doubt(None)  # the curves alone, whose answers are known


def spread(mean_J, sd_J, seed=0):
    """Normal draws [X, J], independent, with exactly these means."""
    x = np.random.default_rng(seed).normal(size=(X, len(mean_J)))
    x = (x - x.mean(0)) / x.std(0)
    return np.array(mean_J) + np.array(sd_J) * x
