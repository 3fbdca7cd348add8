"""Plain NumPyro NUTS on rlx's model as a process that another program times; see protocol.py.

Run with the Python of rlx's own environment. What a NumPyro user writes: `scaling_model` with
LocScaleReparam(centered=0) on the recipes' and the runs' theta, float64, four vectorised chains,
diagonal mass matrix, target acceptance 0.8, chains started at the median of prior draws. The
compiled program is kept between fits (jit_model_args).

Equal to rlx: the model, its Kalman filter included, which is rlx's own function. Not equal: the
number of draws is fixed and may be too small or too large for convergence. Leapfrog steps of the
four chains run side by side, so that each waits for the deepest tree.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.handlers import reparam
from numpyro.infer import MCMC, NUTS, init_to_median
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density
from protocol import FitSetup, connect, serve_fits, study_of

from rlx.scaling.model import Options, Study, scaling_model

CHAINS, TARGET_ACCEPT = 4, 0.8
THETA = {"z_recipe": "theta_recipe", "z_run": "theta_run"}


def main() -> None:
    setup, reply = connect(FitSetup)
    os.environ["NPROC"] = str(setup.threads)  # XLA reads it when the first array is made
    numpyro.enable_x64()
    study = Study(**{name: jnp.asarray(x) for name, x in vars(study_of(setup)).items()})
    non_centred = {name: LocScaleReparam(centered=0) for name in THETA.values()}
    model = reparam(partial(scaling_model, options=Options(setup.curve)), config=non_centred)
    mcmc = MCMC(
        NUTS(model, target_accept_prob=TARGET_ACCEPT, init_strategy=init_to_median),
        num_warmup=setup.warmup,
        num_samples=setup.draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )

    def fit(seed: int):
        mcmc.run(jax.random.key(seed), study, extra_fields=("num_steps",))
        draws = {name: np.asarray(x) for name, x in mcmc.get_samples(True).items()}
        draws = {name: x for name, x in draws.items() if not name.endswith("_decentered")}
        fields = mcmc.get_extra_fields(True)
        return draws, np.asarray(fields["diverging"]), np.asarray(fields["num_steps"])

    def log_density_of_z(point: dict[str, np.ndarray]) -> float:
        renamed = {z: f"{theta}_decentered" for z, theta in THETA.items()}
        sites = {renamed.get(name, name): jnp.asarray(x) for name, x in point.items()}
        return float(log_density(model, (study,), {}, sites)[0])

    serve_fits(reply, fit, log_density_of_z)


if __name__ == "__main__":
    main()
