"""`rlx.scaling.fit` as a process that another program times; see protocol.py.

Run with the Python of rlx's own environment. Every fit starts from the evaluations and ends when
rlx's own rule is met (R-hat, effective samples, divergences, energies) or after its last round;
its `warmup` and `draws` are not the set-up's. Time counts reading arrays, the mode and its
curvature, warm-up, and every round of draws.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.infer import util
from protocol import FitSetup, connect, serve_fits, study_of

import rlx.scaling as sc
from rlx.scaling.model import Options, Study, recipe_mean, scaling_model

Z_SCALE = {"z_recipe": "log_recipe_sd", "z_run": "log_seed_sd"}


@partial(jax.jit, static_argnames="options")
def log_density_of_z(study: Study, point: dict[str, Array], options: Options) -> Array:
    """log density of the model's sites, and log |d theta / d z|."""
    sites = {name: x for name, x in point.items() if name not in Z_SCALE}
    recipe_sd_Q, seed_sd_Q = (jnp.exp(sites[name]) for name in Z_SCALE.values())
    theta_JQ = recipe_mean(study, sites) + recipe_sd_Q[None] * point["z_recipe"]
    theta_RQ = theta_JQ[study.recipe_R] + seed_sd_Q[None] * point["z_run"]
    sites |= {"theta_recipe": theta_JQ, "theta_run": theta_RQ}
    log_det = sum(len(point[z]) * sites[log_sd].sum() for z, log_sd in Z_SCALE.items())
    return util.log_density(scaling_model, (study, options), {}, sites)[0] + log_det


def main() -> None:
    setup, reply = connect(FitSetup)
    os.environ["NPROC"] = str(setup.threads)  # XLA reads it when the first array is made
    evals = sc.Evals.read(setup.evals)

    def fit(seed: int):
        tree = sc.fit(evals, curve=setup.curve, seed=seed).tree
        draws = {str(name): x.values for name, x in tree["posterior"].data_vars.items()}
        stats = tree["sample_stats"]
        return draws, stats["diverging"].values, stats["n_steps"].values

    def log_density(point: dict) -> Array:
        with jax.enable_x64(True):
            study = Study(**{name: jnp.asarray(x) for name, x in study_of(setup).items()})
            return log_density_of_z(study, point, Options(setup.curve))

    serve_fits(reply, fit, log_density)


if __name__ == "__main__":
    main()
