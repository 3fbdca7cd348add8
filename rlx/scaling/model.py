"""The hierarchical model of a study's scaling curves, as a NumPyro program.

    R_r(C)  = R0 + (A_r - R0) * s(B_r * log(C / C_mid_r))             the curve of run r
    A_r     = R0 + (1 - R0) * logistic(a_r)
    C_mid_r = C_ref * exp(c_r),   B_r = exp(b_r),   theta_r = (a_r, c_r, b_r)

    theta_j = mu + X_j beta + tau * z_j                               recipe j with ablation axes X
    theta_r = theta_j + seed_sd * z_r                                 run r of recipe j

    value   = R(C) + w(C) + e                                         one evaluation
    w       Ornstein-Uhlenbeck: sd sigma_w, correlation exp(-gap / length)      policy wander
    e       normal, with the known sampling variance of the evaluation

Three shapes s, each 0 at C = 0, 1/2 at C_mid and 1 in the limit:

    sigmoid  s(u) = 1 / (1 + exp(-u))                                 arXiv 2510.13786, Eq. 1
    burr     s(u) = 1 - (1 + (2^(1/kappa) - 1) exp(u))^(-kappa)       kappa shared by all runs
    power    s = 1 - (1 + (2^(1/B) - 1) C / C_mid)^(-B)               a power law that starts at R0

kappa = 1 is the sigmoid. The tail of `burr` falls as C^-(B kappa), of the others as C^-B. The
wander is integrated out exactly by a Kalman filter. Evaluations at C = 0 inform R0 alone, once for
all runs of a start that share them.

Letters: R runs, M measurements, J recipes, S starts, K effects, Q = 3 coordinates of theta.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array

from rlx.scaling.priors import COORDINATES, Priors

CURVES = ("burr", "sigmoid", "power")
NOISES = ("normal", "student", "betabinomial")
FIRST_GAP = 1e6  # of a run's first evaluation: nothing to be correlated with


class Options(NamedTuple):
    """What is fixed when the model is compiled."""

    curve: str = "burr"
    noise: str = "normal"
    estimate_noise: bool = False  # some evaluation's sampling error is unknown
    priors: Priors = Priors()


class Study(NamedTuple):
    """Evaluations with C > 0 as padded arrays, and what is known of each start."""

    log_C_RM: Array  # log(C / C_ref)
    value_RM: Array
    var_RM: Array  # sampling variance; 0 where unknown
    unknown_RM: Array  # 0 where the sampling variance is known, else 1 / evaluations pooled
    seen_RM: Array  # 1 where there is an evaluation, 0 for padding
    gap_RM: Array  # time since the evaluation before, in median gaps of the run
    trials_RM: Array  # graded samples, 0 where unknown
    recipe_R: Array
    start_R: Array
    design_JK: Array
    start_mean_S: Array  # what is known of logit R0: a normal
    start_sd_S: Array


def log_expm1(x: Array) -> Array:
    """log(exp(x) - 1) for x > 0, without overflow."""
    return x + jnp.log(-jnp.expm1(-x))


def shape(log_C: Array, c: Array, b: Array, log_kappa: Array | float, curve: str) -> Array:
    """Share s of the gain made at C, in [0, 1]; arguments broadcast."""
    if curve == "sigmoid":
        return jax.nn.sigmoid(jnp.exp(b) * (log_C - c))
    steepness, kappa = (1.0, jnp.exp(b)) if curve == "power" else (jnp.exp(b), jnp.exp(log_kappa))
    half = log_expm1(jnp.log(2.0) / kappa)
    return -jnp.expm1(-kappa * jax.nn.softplus(steepness * (log_C - c) + half))


def curve_RM(study: Study, theta_RQ: Array, sites: dict[str, Array], curve: str) -> Array:
    """Pass rate R_r(C) of every run at its evaluations."""
    a_R1, c_R1, b_R1 = (theta_RQ[:, q, None] for q in range(3))
    R0_R1 = jax.nn.sigmoid(sites["logit_R0"][study.start_R])[:, None]
    share_RM = shape(study.log_C_RM, c_R1, b_R1, sites.get("log_kappa", 0.0), curve)
    return R0_R1 + (1 - R0_R1) * jax.nn.sigmoid(a_R1) * share_RM


class Filter(NamedTuple):
    """Kalman filter of the wander: everything that does not depend on the residuals."""

    decay_MR: Array  # exp(-gap / length)
    gain_MR: Array
    var_MR: Array  # of the innovations
    seen_MR: Array


def make_filter(
    var_RM: Array, gap_RM: Array, seen_RM: Array, sigma_w: Array, length: Array
) -> Filter:
    """Gains and innovation variances of an Ornstein-Uhlenbeck process seen with noise var."""
    decay_MR = jnp.exp(-gap_RM.T / length)

    def step(P_R: Array, x: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        decay_R, var_R, seen_R = x
        P_R = sigma_w**2 + decay_R**2 * (P_R - sigma_w**2)
        S_R = P_R + var_R
        gain_R = seen_R * P_R / S_R
        return P_R * (1 - gain_R), (gain_R, S_R)

    P_R = jnp.full(var_RM.shape[0], sigma_w**2)
    _, (gain_MR, S_MR) = jax.lax.scan(step, P_R, (decay_MR, var_RM.T, seen_RM.T))
    return Filter(decay_MR, gain_MR, S_MR, seen_RM.T)


def whiten(filter: Filter, residual_MRn: Array) -> Array:
    """Standardised one-step-ahead errors of n columns of residuals; 0 where nothing was seen."""

    def step(mean_Rn: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
        decay_R, gain_R, S_R, seen_R, residual_Rn = x
        mean_Rn = decay_R[:, None] * mean_Rn
        error_Rn = residual_Rn - mean_Rn
        scale_R = seen_R / jnp.sqrt(S_R)
        return mean_Rn + gain_R[:, None] * error_Rn, scale_R[:, None] * error_Rn

    start = jnp.zeros(residual_MRn.shape[1:])
    return jax.lax.scan(step, start, (*filter, residual_MRn))[1]


def noise_variance(study: Study, sites: dict[str, Array]) -> Array:
    """Variance of e, [R, M]: the sampling variance, or the estimated one where that is unknown.

    A Student t is a normal whose precision is multiplied by exp(log_weight) ~ gamma(df/2, df/2).
    """
    var_RM = study.var_RM
    if "log_noise_sd" in sites:
        var_RM = var_RM + study.unknown_RM * jnp.exp(2 * sites["log_noise_sd"])
    return var_RM * jnp.exp(-sites["log_weight"]) if "log_weight" in sites else var_RM


def wander_filter(study: Study, sites: dict[str, Array]) -> Filter:
    """The filter at the values of the sites."""
    return make_filter(
        noise_variance(study, sites),
        study.gap_RM,
        study.seen_RM,
        jnp.exp(sites["log_wander_sd"]),
        jnp.exp(sites["log_wander_length"]),
    )


def sample(name: str, prior: dist.Distribution) -> Array:
    return jnp.asarray(numpyro.sample(name, prior))


def global_sites(study: Study, options: Options) -> dict[str, Array]:
    """Everything that is not a recipe's or a run's own. All sites are unconstrained."""
    priors = options.priors

    def three(kind: str, log: bool) -> dist.Distribution:
        pairs = [getattr(priors, f"{kind}_{q}") for q in COORDINATES]
        loc, scale = jnp.array([p[0] for p in pairs]), jnp.array([p[1] for p in pairs])
        return dist.Normal(jnp.log(loc) if log else loc, scale).to_event(1)

    def log_normal(pair: tuple[float, float]) -> dist.Distribution:
        return dist.Normal(jnp.log(pair[0]), pair[1])

    sites = {
        "mu": sample("mu", three("mean", False)),
        "log_recipe_sd": sample("log_recipe_sd", three("recipe_sd", True)),
        "log_seed_sd": sample("log_seed_sd", three("seed_sd", True)),
    }
    K = study.design_JK.shape[1]
    if K:
        scale_Q = jnp.array([priors.effect_a, priors.effect_c, priors.effect_b])
        prior = dist.Normal(0.0, jnp.broadcast_to(scale_Q, (K, 3))).to_event(2)
        sites["beta"] = sample("beta", prior)
    start = dist.Normal(study.start_mean_S, study.start_sd_S).to_event(1)
    sites["logit_R0"] = sample("logit_R0", start)
    for name in ("wander_sd", "wander_length"):
        sites[f"log_{name}"] = sample(f"log_{name}", log_normal(getattr(priors, name)))
    if options.curve == "burr":
        sites["log_kappa"] = sample("log_kappa", dist.Normal(*priors.log_kappa))
    if options.estimate_noise:
        sites["log_noise_sd"] = sample("log_noise_sd", log_normal(priors.noise_sd))
    if options.noise == "student":
        half = 0.5 * priors.student_df
        gamma = dist.TransformedDistribution(
            dist.Gamma(half, half), dist.transforms.ExpTransform().inv
        )
        shape_RM = study.value_RM.shape
        sites["log_weight"] = sample("log_weight", gamma.expand(shape_RM).to_event(2))
    return sites


def scaling_model(study: Study, options: Options) -> None:
    """The joint density of the module's docstring, in the coordinates a user would write."""
    sites = global_sites(study, options)
    mean_JQ = recipe_mean(study, sites)
    recipe = dist.Normal(mean_JQ, jnp.exp(sites["log_recipe_sd"])[None]).to_event(2)
    theta_JQ = sample("theta_recipe", recipe)
    run = dist.Normal(theta_JQ[study.recipe_R], jnp.exp(sites["log_seed_sd"])[None]).to_event(2)
    theta_RQ = sample("theta_run", run)
    mean_RM = curve_RM(study, theta_RQ, sites, options.curve)
    if options.noise == "betabinomial":
        log_lik = beta_binomial(study, sites, mean_RM, options.priors)
    else:
        log_lik = normal(study, sites, mean_RM)
    numpyro.factor("evaluations", log_lik)


def recipe_mean(study: Study, sites: dict[str, Array]) -> Array:
    """mu + X_j beta, [J, Q]."""
    mean_JQ = jnp.broadcast_to(sites["mu"][None], (study.design_JK.shape[0], 3))
    return mean_JQ + study.design_JK @ sites["beta"] if "beta" in sites else mean_JQ


def normal(study: Study, sites: dict[str, Array], mean_RM: Array) -> Array:
    """log N(value; mean, Sigma), Sigma the covariance of w + e, through the filter."""
    filter = wander_filter(study, sites)
    error_MR = whiten(filter, (study.value_RM - mean_RM).T[..., None])[..., 0]
    return -0.5 * (filter.seen_MR * (error_MR**2 + jnp.log(2 * jnp.pi * filter.var_MR))).sum()


def beta_binomial(study: Study, sites: dict[str, Array], mean_RM: Array, priors: Priors) -> Array:
    """log-likelihood of passes ~ BetaBinomial(trials, mean p, concentration), wander sampled.

    logit p = logit R(C) + 4 w,   so that w is a change of pass rate at R = 1/2
    """
    innovation = dist.Normal(0.0, 1.0).expand(mean_RM.shape).to_event(2)
    z_RM = sample("innovation", innovation)
    median, sd = priors.concentration
    log_concentration = sample("log_concentration", dist.Normal(jnp.log(median), sd))
    sigma_w, length = jnp.exp(sites["log_wander_sd"]), jnp.exp(sites["log_wander_length"])
    decay_MR = jnp.exp(-study.gap_RM.T / length)

    def step(w_R: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        decay_R, z_R = x
        w_R = decay_R * w_R + sigma_w * jnp.sqrt(1 - decay_R**2) * z_R
        return w_R, w_R

    w_MR = jax.lax.scan(step, jnp.zeros(mean_RM.shape[0]), (decay_MR, z_RM.T))[1]
    p_RM = jax.nn.sigmoid(jax.scipy.special.logit(mean_RM) + 4 * w_MR.T)
    concentration = jnp.exp(log_concentration)
    count = dist.BetaBinomial(
        p_RM * concentration, (1 - p_RM) * concentration, total_count=study.trials_RM
    )
    passes_RM = jnp.round(study.value_RM * study.trials_RM)
    return (study.seen_RM * count.log_prob(passes_RM)).sum()
