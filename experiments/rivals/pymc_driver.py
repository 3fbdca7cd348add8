"""PyMC and nutpie on rlx's model as a process that another program times; see protocol.py.

Run with the Python of an environment that holds pymc, nutpie and numba (rlx is not needed).

The model of rlx/scaling/model.py, written as a PyMC user would: theta non-centred, and a run's
evaluations multivariate normal with covariance

    Sigma_mn = sigma_w^2 exp(-|t_m - t_n| / length) + var_m [m = n],   t in median gaps of the run

by a batched Cholesky factor, which integrates the wander out exactly, as rlx's Kalman filter does.
nutpie compiles it with numba, adapts its own mass matrix, starts at PyMC's initial point with
jitter, and runs `threads` of four chains at a time; linear algebra has one thread.

Equal to rlx: the density (the benchmark compares it at random points). Not equal: the number of
draws is fixed and may be too small or too large for convergence. A fit starts from the compiled
model: compilation counts in the first fit alone.
"""

import os
from types import SimpleNamespace

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy starts; nutpie's threads are the chains

import numpy as np  # noqa: E402
import nutpie  # noqa: E402
import pymc as pm  # noqa: E402
import pytensor.tensor as pt  # noqa: E402
from protocol import FitSetup, connect, serve_fits, study_of  # noqa: E402

CHAINS = 4  # at nutpie's default target acceptance, 0.8
COORDINATES = ("a", "c", "b")


def log_expm1(x):
    return x + pt.log(-pt.expm1(-x))


def share_of(log_C_RM, c_R1, b_R1, log_kappa):
    """Share of the gain at C: 1 - (1 + (2^(1/kappa) - 1) (C / C_mid)^B)^(-kappa)."""
    kappa = pt.exp(log_kappa)
    u_RM = pt.exp(b_R1) * (log_C_RM - c_R1) + log_expm1(np.log(2.0) / kappa)
    return -pt.expm1(-kappa * pt.softplus(u_RM))


def covariance(var_RM, gap_RM, sigma_w, length):
    """Sigma of every run, [R, M, M]; the runs share their times."""
    t_M = np.cumsum(np.r_[0.0, gap_RM[0, 1:]])
    lag_MM = np.abs(t_M[:, None] - t_M[None])
    diagonal_RMM = var_RM[:, :, None] * np.eye(len(t_M))
    return sigma_w**2 * pt.exp(-lag_MM / length) + diagonal_RMM


def make_model(setup: FitSetup) -> pm.Model:
    """The model of the module's docstring.

    Raises ValueError for evaluations that it does not cover: runs of unequal times, unknown
    sampling errors, effects of axes.
    """
    study, priors = SimpleNamespace(**study_of(setup)), setup.priors
    seen = study.seen_RM > 0
    M = int(seen[0].sum())
    log_C_RM, value_RM, var_RM, gap_RM = (
        x[:, :M] for x in (study.log_C_RM, study.value_RM, study.var_RM, study.gap_RM)
    )
    J, E = study.design_JE.shape
    if E or study.unknown_RM.any() or (seen != seen[0]).any() or np.ptp(gap_RM, 0).any():
        raise ValueError("study: unequal times, unknown errors or effects; simulate one")

    def pairs(kind: str):
        return np.array([priors[f"{kind}_{q}"] for q in COORDINATES]).T

    def log_normal(name: str, loc, sd):
        return pm.Normal(f"log_{name}", np.log(loc), sd, shape=np.shape(loc))

    with pm.Model() as model:
        mu_Q = pm.Normal("mu", *pairs("mean"), shape=3)
        recipe_sd_Q, seed_sd_Q = (
            pt.exp(log_normal(kind, *pairs(kind))) for kind in ("recipe_sd", "seed_sd")
        )
        logit_R0_S = pm.Normal("logit_R0", study.start_mean_S, study.start_sd_S)
        sigma_w, length = (
            pt.exp(log_normal(kind, *priors[kind])) for kind in ("wander_sd", "wander_length")
        )
        burr = setup.curve == "burr"
        log_kappa = pm.Normal("log_kappa", *priors["log_kappa"]) if burr else pt.constant(0.0)
        z_JQ = pm.Normal("z_recipe", shape=(J, 3))
        z_RQ = pm.Normal("z_run", shape=(len(study.recipe_R), 3))
        theta_JQ = pm.Deterministic("theta_recipe", mu_Q + recipe_sd_Q * z_JQ)
        theta_RQ = pm.Deterministic("theta_run", theta_JQ[study.recipe_R] + seed_sd_Q * z_RQ)
        a_R1, c_R1, b_R1 = (theta_RQ[:, q, None] for q in range(3))
        R0_R1 = pm.math.sigmoid(logit_R0_S[study.start_R])[:, None]
        gain_RM = pm.math.sigmoid(a_R1) * share_of(log_C_RM, c_R1, b_R1, log_kappa)
        chol_RMM = pt.linalg.cholesky(covariance(var_RM, gap_RM, sigma_w, length))
        mean_RM = R0_R1 + (1 - R0_R1) * gain_RM
        pm.MvNormal("value", mean_RM, chol=chol_RMM, observed=value_RM)
    return model


def log_density_of_z(model: pm.Model, point: dict[str, np.ndarray]) -> float:
    """log density of the free variables, without compilation."""
    return float(model.compile_logp(mode="FAST_COMPILE")(point))


def main() -> None:
    setup, reply = connect(FitSetup)
    model = make_model(setup)
    compiled = nutpie.compile_pymc_model(model, backend="numba")

    def fit(seed: int):
        trace = nutpie.sample(
            compiled,
            tune=setup.warmup,
            draws=setup.draws,
            chains=CHAINS,
            cores=setup.threads,
            seed=seed,
            save_warmup=False,
            progress_bar=False,
        )
        draws = {str(name): x.values for name, x in trace.posterior.data_vars.items()}
        draws = {name: x for name, x in draws.items() if not name.startswith("z_")}
        stats = trace.sample_stats
        return draws, stats["diverging"].values, stats["n_steps"].values

    serve_fits(reply, fit, lambda point: log_density_of_z(model, point))


if __name__ == "__main__":
    main()
