"""The hierarchical model of a study's scaling curves, as a NumPyro program.

    R_r(C)  = R0 + (A_r - R0) * s(log(C / C_mid_r))                   the curve of run r
    A_r     = R0 + (1 - R0) * logistic(a_r)
    C_mid_r = C_ref * exp(c_r),   B_r = exp(b_r),   theta_r = (a_r, c_r, b_r)

    theta_j = mu + X_j beta + tau * z_j                               recipe j with ablation axes X
    theta_r = theta_j + seed_sd * z_r                                 run r of recipe j

    value   = R(C) + w(C) + e                                         one evaluation
    w       Ornstein-Uhlenbeck: sd sigma_w, correlation exp(-gap / length)      policy wander
    e       normal, with the known sampling variance of the evaluation

The share s, its own parameters and their priors are those of a family (rlx.scaling.families);
`sites_of` lists every unknown with its prior. The wander is integrated out exactly by a Kalman
filter. Evaluations at C = 0 inform R0 alone, once for all runs that share a start; they have the e
of later ones and no wander.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from rlx.scaling.families import FAMILIES, Family
from rlx.scaling.kalman import drift, update, variances
from rlx.scaling.priors import COORDINATES, Ops, Priors, Site

NOISES = ("normal", "student", "betabinomial")
JAX = Ops(jnp.sqrt, jnp.exp, jnp.log, jnp.expm1, jax.nn.softplus, jax.nn.sigmoid)
FIRST_GAP = 1e6  # before a run's first evaluation: no correlation


class Options(NamedTuple):
    """Static choices of the compiled model."""

    curve: str = "burr"
    noise: str = "normal"
    estimate_noise: bool = False  # some evaluation's sampling error is unknown
    priors: Priors = Priors()


class Study(NamedTuple):
    """Evaluations with C > 0 as padded arrays, and the prior of each start."""

    log_C_RM: Array  # log(C / C_ref)
    value_RM: Array
    var_RM: Array  # sampling variance; 0 if unknown
    unknown_RM: Array  # 0 if the sampling variance is known, else 1 / evaluations pooled
    seen_RM: Array  # 1 for an evaluation, 0 for padding
    gap_RM: Array  # compute since the previous evaluation, in median gaps of the run
    trials_RM: Array  # graded samples, 0 if unknown
    recipe_R: Array
    start_R: Array
    design_JE: Array
    start_mean_S: Array  # normal prior of logit R0
    start_sd_S: Array
    start_noise_S: Array  # 1 / sqrt(evaluations at C = 0) if their e is fitted, else 0


def shape(log_C: Array, c: Array, b: Array, own: dict[str, Array], family: Family) -> Array:
    """Share s of the gain at C, in [0, 1]; arguments broadcast."""
    return family.share(log_C - c, JAX, B=jnp.exp(b), **family.of_sites(own, JAX))


def own_R(study: Study, sites: dict[str, Array], family: Family) -> dict[str, Array]:
    """The family's own parameters, as stored in the sites: per run [R], or one number."""
    values = {name: sites[own.site] for name, own in family.own.items()}
    return {name: x[study.recipe_R] if x.ndim else x for name, x in values.items()}


def latent_RM(
    study: Study, theta_RQ: Array, logit_R0_R: Array, own: dict[str, Array], family: Family
) -> Array:
    """Pass rate R_r(C) of every run at its evaluations."""
    a_R1, c_R1, b_R1 = (theta_RQ[:, q, None] for q in range(3))
    R0_R1 = jax.nn.sigmoid(logit_R0_R)[:, None]
    own_R1 = {name: x[:, None] if x.ndim else x for name, x in own.items()}
    gain_R1 = (1 - R0_R1) * jax.nn.sigmoid(a_R1)
    p = {"B": jnp.exp(b_R1), **family.of_sites(own_R1, JAX)}
    return family.level(study.log_C_RM - c_R1, JAX, R0=R0_R1, gain=gain_R1, **p)


def curve_RM(study: Study, theta_RQ: Array, sites: dict[str, Array], curve: str) -> Array:
    """`latent_RM` at the values of the sites."""
    family = FAMILIES[curve]
    logit_R0_R = sites["logit_R0"][study.start_R]
    return latent_RM(study, theta_RQ, logit_R0_R, own_R(study, sites, family), family)


class Filter(NamedTuple):
    """Kalman filter of the wander: the parts that do not depend on the residuals."""

    decay_MR: Array  # exp(-gap / length)
    gain_MR: Array
    var_MR: Array  # of the innovations
    seen_MR: Array


def make_filter(
    var_RM: Array, gap_RM: Array, seen_RM: Array, sigma_w: Array, length: Array
) -> Filter:
    """Gains and innovation variances of an Ornstein-Uhlenbeck process observed with noise var."""
    decay_MR = jnp.exp(-gap_RM.T / length)

    def step(P_R: Array, x: tuple[Array, Array, Array]) -> tuple[Array, tuple[Array, Array]]:
        decay_R, var_R, seen_R = x
        P_R, gain_R, S_R = variances(P_R, decay_R, sigma_w, var_R, seen_R)
        return P_R, (gain_R, S_R)

    P_R = jnp.full(var_RM.shape[0], sigma_w**2)
    _, (gain_MR, S_MR) = jax.lax.scan(step, P_R, (decay_MR, var_RM.T, seen_RM.T))
    return Filter(decay_MR, gain_MR, S_MR, seen_RM.T)


def whiten(filter: Filter, residual_MRn: Array) -> Array:
    """Standardised one-step-ahead errors of n columns of residuals; 0 for padding."""

    def step(mean_Rn: Array, x: tuple[Array, ...]) -> tuple[Array, Array]:
        decay_R, gain_R, S_R, seen_R, residual_Rn = x
        mean_Rn, error_Rn = update(mean_Rn, decay_R[:, None], gain_R[:, None], residual_Rn)
        return mean_Rn, (seen_R / jnp.sqrt(S_R))[:, None] * error_Rn

    start = jnp.zeros(residual_MRn.shape[1:])
    return jax.lax.scan(step, start, (*filter, residual_MRn))[1]


def noise_variance(study: Study, sites: dict[str, Array]) -> Array:
    """Variance of e, [R, M]: the sampling variance, or the estimated one if that is unknown.

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


def start_prior(study: Study, sites: dict[str, Array], ops: Ops) -> tuple[Array, Array]:
    """Mean and sd of logit R0, [S]. Evaluations at C = 0 of unknown error have the e of later ones.

    A value closer to 0 or 1 than half of its sd counts as that far away, for its logit is infinite.
    """
    mean_S, sd_S = study.start_mean_S, study.start_sd_S
    if "log_noise_sd" not in sites:
        return mean_S, sd_S
    noise_S = study.start_noise_S * ops.exp(sites["log_noise_sd"])
    value_S = ops.logistic(mean_S)
    passed_S, failed_S = (ops.sqrt(x**2 + noise_S**2 / 4) for x in (value_S, 1 - value_S))
    mean_S = ops.log(passed_S / failed_S)
    slope_S = ops.logistic(mean_S) * ops.logistic(-mean_S)
    return mean_S, ops.sqrt(sd_S**2 + (noise_S / slope_S) ** 2)


LATENT_DIMS = ("run", "evaluation")  # of sites with a value per evaluation, whitened by the prior


class LogGamma(Site):
    """The log of a gamma(df / 2, df / 2); its `prior` is (0, df)."""


def _pairs(kind: str) -> Callable:
    """The normal prior of (a, c, b) of the fields `kind`_a, ..."""

    def prior(priors: Priors, *_) -> tuple[np.ndarray, np.ndarray]:
        mean, sd = np.array([getattr(priors, f"{kind}_{q}") for q in COORDINATES]).T
        return mean, sd

    return prior


def _log(prior: Callable) -> Callable:
    """The prior of the log of a log-normal (median, sd of the log)."""

    def of_log(*known) -> tuple:
        median, sd = prior(*known)
        return np.log(median), sd

    return of_log


def _field(name: str) -> Callable:
    return lambda priors, *_: getattr(priors, name)


def sites_of(study: Study, options: Options) -> list[Site]:
    """Every site of the model, in order of dependence."""
    E = study.design_JE.shape[1]

    def effect(priors: Priors, *_) -> tuple:
        scale_Q = np.array([getattr(priors, f"effect_{q}") for q in COORDINATES])
        return 0.0, np.broadcast_to(scale_Q, (E, 3))

    def recipe(_, sites: dict[str, Array], ops: Ops) -> tuple:
        return recipe_mean(study, sites), ops.exp(sites["log_recipe_sd"])[None]

    def start(_, sites: dict[str, Array], ops: Ops) -> tuple:
        return start_prior(study, sites, ops)

    def run(_, sites: dict[str, Array], ops: Ops) -> tuple:
        return sites["theta_recipe"][study.recipe_R], ops.exp(sites["log_seed_sd"])[None]

    sites = [
        Site("mu", ("coordinate",), _pairs("mean")),
        Site("log_recipe_sd", ("coordinate",), _log(_pairs("recipe_sd"))),
        Site("log_seed_sd", ("coordinate",), _log(_pairs("seed_sd"))),
        *([Site("beta", ("effect", "coordinate"), effect)] if E else []),
        *([Site("log_noise_sd", (), _log(_field("noise_sd")))] if options.estimate_noise else []),
        Site("logit_R0", ("start",), start),
        Site("log_wander_sd", (), _log(_field("wander_sd"))),
        Site("log_wander_length", (), _log(_field("wander_length"))),
        *FAMILIES[options.curve].sites,
    ]
    if options.noise == "student":
        df = options.priors.student_df
        sites.append(LogGamma("log_weight", LATENT_DIMS, lambda *_: (0.0, df)))
    sites.append(Site("theta_recipe", ("recipe", "coordinate"), recipe))
    sites.append(Site("theta_run", ("run", "coordinate"), run))
    if options.noise == "betabinomial":
        sites.append(Site("innovation", LATENT_DIMS, lambda *_: (0.0, 1.0)))
        sites.append(Site("log_concentration", (), _log(_field("concentration"))))
    return sites


def site_shape(site: Site, study: Study) -> tuple[int, ...]:
    """The lengths of a site's axes."""
    R, M = study.value_RM.shape
    J, E = study.design_JE.shape
    sizes = {"coordinate": len(COORDINATES), "effect": E, "start": len(study.start_mean_S)}
    sizes |= {"recipe": J, "run": R, "evaluation": M}
    return tuple(sizes[dim] for dim in site.dims)


def prior_of(
    site: Site, study: Study, priors: Priors, sites: dict[str, Array]
) -> dist.Distribution:
    """The prior of a site, given those before it."""
    mean, sd = site.prior(priors, sites, JAX)
    law: dist.Distribution = dist.Normal(mean, sd)
    if isinstance(site, LogGamma):
        gamma, log = dist.Gamma(0.5 * sd, 0.5 * sd), dist.transforms.ExpTransform().inv
        law = dist.TransformedDistribution(gamma, log)
    return law.expand(site_shape(site, study)).to_event(len(site.dims))


def scaling_model(study: Study, options: Options) -> None:
    """The joint density of the module's docstring, in its natural parameters."""
    sites: dict[str, Array] = {}
    for site in sites_of(study, options):
        prior = prior_of(site, study, options.priors, sites)
        sites[site.name] = jnp.asarray(numpyro.sample(site.name, prior))
    mean_RM = curve_RM(study, sites["theta_run"], sites, options.curve)
    if options.noise == "betabinomial":
        log_lik = beta_binomial(study, sites, mean_RM)
    else:
        log_lik = normal(study, sites, mean_RM)
    numpyro.factor("evaluations", log_lik)


def recipe_mean(study: Study, sites: dict[str, Array]) -> Array:
    """mu + X_j beta, [J, Q]."""
    mean_JQ = jnp.broadcast_to(sites["mu"][None], (study.design_JE.shape[0], 3))
    return mean_JQ + study.design_JE @ sites["beta"] if "beta" in sites else mean_JQ


def normal(study: Study, sites: dict[str, Array], mean_RM: Array) -> Array:
    """log N(value; mean, Sigma), Sigma the covariance of w + e, through the filter."""
    filter = wander_filter(study, sites)
    error_MR = whiten(filter, (study.value_RM - mean_RM).T[..., None])[..., 0]
    return -0.5 * (filter.seen_MR * (error_MR**2 + jnp.log(2 * jnp.pi * filter.var_MR))).sum()


def beta_binomial(study: Study, sites: dict[str, Array], mean_RM: Array) -> Array:
    """log-likelihood of passes ~ BetaBinomial(trials, mean p, concentration), wander sampled.

    logit p = logit R(C) + 4 w,   so that w is a change of pass rate at R = 1/2
    """
    sigma_w, length = jnp.exp(sites["log_wander_sd"]), jnp.exp(sites["log_wander_length"])
    decay_MR = jnp.exp(-study.gap_RM.T / length)

    def step(w_R: Array, x: tuple[Array, Array]) -> tuple[Array, Array]:
        decay_R, z_R = x
        w_R = drift(w_R, decay_R, sigma_w, z_R, JAX)
        return w_R, w_R

    w_MR = jax.lax.scan(step, jnp.zeros(mean_RM.shape[0]), (decay_MR, sites["innovation"].T))[1]
    p_RM = jax.nn.sigmoid(jax.scipy.special.logit(mean_RM) + 4 * w_MR.T)
    concentration = jnp.exp(sites["log_concentration"])
    count = dist.BetaBinomial(
        p_RM * concentration, (1 - p_RM) * concentration, total_count=study.trials_RM
    )
    passes_RM = jnp.round(study.value_RM * study.trials_RM)
    return (study.seen_RM * count.log_prob(passes_RM)).sum()
