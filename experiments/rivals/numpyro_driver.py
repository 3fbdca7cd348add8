"""Plain NumPyro NUTS on rlx's model as a process that another program times; see protocol.py.

Run with the Python of rlx's own environment. What a NumPyro user writes: `scaling_model` with
LocScaleReparam(centered=0) on the recipes' and the runs' theta, float64, four vectorised chains,
diagonal mass matrix, target acceptance 0.8, chains started at the median of prior draws. The whole
of `MCMC.run` is under one jax.jit: by itself it compiles anew at every call, jit_model_args or not,
when there is no progress bar, which would count against the later fits.

Equal to rlx: the model, its Kalman filter included, which is rlx's own function. Not equal: the
number of draws is fixed and may be too small or too large for convergence. Leapfrog steps of the
four chains run side by side, so that each waits for the deepest tree.
"""

import os
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS, init_to_median
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density
from protocol import FitSetup, connect, serve_fits, study_of

from rlx.scaling.model import Options, Study, scaling_model

CHAINS, TARGET_ACCEPT = 4, 0.8
THETA = {"z_recipe": "theta_recipe", "z_run": "theta_run"}


def non_centred(curve: str) -> Callable:
    """scaling_model(study) with standard normals in place of theta."""
    config = {name: LocScaleReparam(centered=0) for name in THETA.values()}
    return reparam(partial(scaling_model, options=Options(curve)), config=config)


@partial(jax.jit, static_argnames="curve")
def log_density_of_z(study: Study, point: dict[str, Array], curve: str) -> Array:
    """log density of the free variables, by their names in protocol.py."""
    names = {z: f"{theta}_decentered" for z, theta in THETA.items()}
    sites = {names.get(name, name): x for name, x in point.items()}
    return log_density(non_centred(curve), (study,), {}, sites)[0]


def main() -> None:
    setup, reply = connect(FitSetup)
    os.environ["NPROC"] = str(setup.threads)  # XLA reads it when the first array is made
    numpyro.enable_x64()
    study = Study(**{name: jnp.asarray(x) for name, x in study_of(setup).items()})
    mcmc = MCMC(
        NUTS(
            non_centred(setup.curve), target_accept_prob=TARGET_ACCEPT, init_strategy=init_to_median
        ),
        num_warmup=setup.warmup,
        num_samples=setup.draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
    )

    @jax.jit
    def run(key: Array, study: Study) -> tuple[dict[str, Array], dict[str, Array]]:
        mcmc.run(key, study, extra_fields=("num_steps",))
        return mcmc.get_samples(True), mcmc.get_extra_fields(True)

    def fit(seed: int):
        draws, fields = jax.tree.map(np.asarray, run(jax.random.key(seed), study))
        draws = {name: x for name, x in draws.items() if not name.endswith("_decentered")}
        return draws, fields["diverging"], fields["num_steps"]

    serve_fits(reply, fit, lambda point: log_density_of_z(study, point, setup.curve))


if __name__ == "__main__":
    main()
