"""The density of rlx.scaling.model against dense covariances and loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import expit

from rlx.scaling import curve as curves
from rlx.scaling import model
from rlx.scaling.families import FAMILIES
from rlx.scaling.model import FIRST_GAP, Options, Study
from rlx.scaling.priors import COORDINATES, Priors, prior_theta

R, M, J = 3, 6, 2
RECIPE_R = np.array([0, 0, 1])
N_SEEN = (6, 4, 5)  # evaluations of each run


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def make_study(unknown=False, effects=0) -> Study:
    rng = np.random.default_rng(0)
    seen = np.arange(M)[None] < np.array(N_SEEN)[:, None]
    gap = rng.uniform(0.5, 2.0, (R, M))
    gap[:, 0] = FIRST_GAP
    trials = np.where(seen, rng.integers(100, 400, (R, M)), 0)
    passes = rng.binomial(trials, 0.4)
    arrays = {
        "log_C_RM": np.where(seen, rng.normal(0, 1, (R, M)).cumsum(1) * 0.3, 0.0),
        "value_RM": np.where(seen, passes / np.maximum(trials, 1), 0.5),
        "var_RM": np.where(seen, rng.uniform(1e-4, 4e-4, (R, M)), 1.0),
        "unknown_RM": np.zeros((R, M)),
        "seen_RM": seen.astype(float),
        "gap_RM": gap,
        "trials_RM": trials.astype(float),
        "recipe_R": RECIPE_R,
        "start_R": np.array([0, 0, 1]),
        "design_JE": rng.normal(size=(J, effects)),
        "start_mean_S": np.array([-1.0, -0.5]),
        "start_sd_S": np.array([0.05, 0.1]),
        "start_noise_S": np.zeros(2),
    }
    if unknown:
        arrays["start_sd_S"][0], arrays["start_noise_S"][0] = 0.0, 0.7
        arrays["unknown_RM"][1] = 1.0
        arrays["var_RM"][1, : N_SEEN[1]] = 0.0
    return Study(**{k: jnp.asarray(x) for k, x in arrays.items()})


def make_sites(study, options) -> dict:
    rng = np.random.default_rng(1)
    sites = {
        "mu": rng.normal(size=3),
        "log_recipe_sd": rng.normal(-1, 0.3, 3),
        "log_seed_sd": rng.normal(-2, 0.3, 3),
        "logit_R0": rng.normal(-0.8, 0.1, 2),
        "log_wander_sd": np.float64(-3.9),
        "log_wander_length": np.float64(0.8),
        "theta_recipe": rng.normal(0, 0.3, (J, 3)),
        "theta_run": rng.normal(0, 0.3, (R, 3)),
    }
    if options.curve == "burr":
        sites["log_kappa"] = np.float64(0.3)
    if options.estimate_noise:
        sites["log_noise_sd"] = np.float64(-4.2)
    if study.design_JE.shape[1]:
        sites["beta"] = rng.normal(0, 0.3, (study.design_JE.shape[1], 3))
    if options.noise == "student":
        sites["log_weight"] = rng.normal(0, 0.3, (R, M))
    if options.noise == "betabinomial":
        sites["innovation"] = rng.normal(size=(R, M))
        sites["log_concentration"] = np.float64(5.0)
    return {k: jnp.asarray(x) for k, x in sites.items()}


def latent(study, s, curve, r):
    """Pass rates of run r, through the NumPy curves."""
    a, c, b = np.asarray(s["theta_run"][r])
    R0 = expit(float(s["logit_R0"][study.start_R[r]]))
    A = R0 + (1 - R0) * expit(a)
    B, kappa = np.exp(b), np.exp(float(s.get("log_kappa", 0.0)))
    if curve == "power":
        B, kappa = 1.0, B
    n = N_SEEN[r]
    C = np.exp(np.asarray(study.log_C_RM[r, :n]))
    return curves.burr(C, A=A, B=B, C_mid=np.exp(c), R0=R0, kappa=kappa)


def priors_of_globals(study, s, options) -> float:
    p = options.priors
    total = 0.0
    for q, name in enumerate(COORDINATES):
        total += stats.norm.logpdf(s["mu"][q], *getattr(p, f"mean_{name}"))
        for kind in ("recipe_sd", "seed_sd"):
            median, sd = getattr(p, f"{kind}_{name}")
            total += stats.norm.logpdf(s[f"log_{kind}"][q], np.log(median), sd)
        for k in range(study.design_JE.shape[1]):
            total += stats.norm.logpdf(s["beta"][k, q], 0, getattr(p, f"effect_{name}"))
    for k, mean in enumerate(np.asarray(study.start_mean_S)):
        sd = float(study.start_sd_S[k])
        if study.start_noise_S[k]:  # a value of unknown error at C = 0, at least half an sd from 0
            error = float(study.start_noise_S[k]) * np.exp(float(s["log_noise_sd"]))
            mean = np.log(np.hypot(expit(mean), error / 2) / np.hypot(expit(-mean), error / 2))
            sd = error / (expit(mean) * expit(-mean))
        total += stats.norm.logpdf(float(s["logit_R0"][k]), mean, sd)
    for name in ("wander_sd", "wander_length", "noise_sd", "concentration"):
        if f"log_{name}" in s:
            median, sd = getattr(p, name)
            total += stats.norm.logpdf(s[f"log_{name}"], np.log(median), sd)
    if "log_kappa" in s:
        total += stats.norm.logpdf(s["log_kappa"], *p.log_kappa)
    if "log_weight" in s:
        half = p.student_df / 2
        weight = np.exp(s["log_weight"])  # density of the log of a gamma
        total += (stats.gamma.logpdf(weight, half, scale=1 / half) + s["log_weight"]).sum()
    if "innovation" in s:
        total += stats.norm.logpdf(s["innovation"]).sum()
    return float(total)


def priors_of_theta(study, s) -> float:
    total = 0.0
    for j in range(J):
        mean = np.asarray(s["mu"])
        if "beta" in s:
            mean = mean + np.asarray(study.design_JE[j]) @ np.asarray(s["beta"])
        total += stats.norm.logpdf(s["theta_recipe"][j], mean, np.exp(s["log_recipe_sd"])).sum()
    for r in range(R):
        mean = s["theta_recipe"][RECIPE_R[r]]
        total += stats.norm.logpdf(s["theta_run"][r], mean, np.exp(s["log_seed_sd"])).sum()
    return float(total)


def dense_likelihood(study, s, options) -> float:
    return dense_normal(study, s, [latent(study, s, options.curve, r) for r in range(R)])


def dense_normal(study, s, mean_RM) -> float:
    """Multivariate normal with the whole covariance of w + e, run by run."""
    total = 0.0
    for r in range(R):
        n = N_SEEN[r]
        time = np.r_[0, np.asarray(study.gap_RM[r, 1:n])].cumsum()
        length, sd = np.exp(s["log_wander_length"]), np.exp(s["log_wander_sd"])
        cov = sd**2 * np.exp(-np.abs(time[:, None] - time) / length)
        var = np.array(study.var_RM[r, :n])
        if "log_noise_sd" in s:
            var = var + np.asarray(study.unknown_RM[r, :n]) * np.exp(2 * s["log_noise_sd"])
        if "log_weight" in s:
            var = var / np.exp(s["log_weight"][r, :n])
        value = np.asarray(study.value_RM[r, :n])
        total += stats.multivariate_normal.logpdf(value, mean_RM[r][:n], cov + np.diag(var))
    return total


def count_likelihood(study, s, options) -> float:
    total = 0.0
    for r in range(R):
        w, n = 0.0, N_SEEN[r]
        mean = latent(study, s, options.curve, r)
        for m in range(n):
            decay = np.exp(-study.gap_RM[r, m] / np.exp(s["log_wander_length"]))
            innovation = np.sqrt(1 - decay**2) * s["innovation"][r, m]
            w = decay * w + np.exp(s["log_wander_sd"]) * innovation
            p = expit(np.log(mean[m] / (1 - mean[m])) + 4 * w)
            c, trials = np.exp(s["log_concentration"]), int(study.trials_RM[r, m])
            passes = round(float(study.value_RM[r, m]) * trials)
            total += stats.betabinom.logpmf(passes, trials, float(p * c), float((1 - p) * c))
    return total


CASES = [("burr", "normal"), ("sigmoid", "normal"), ("power", "normal"), ("burr", "student")]


@pytest.mark.parametrize(("curve", "noise"), CASES)
@pytest.mark.parametrize(("unknown", "effects"), [(False, 0), (True, 2)])
def test_joint_density_is_the_dense_one(curve, noise, unknown, effects):
    study = make_study(unknown, effects)
    options = Options(curve, noise, unknown)
    sites = make_sites(study, options)
    got = float(log_density(model.scaling_model, (study, options), {}, sites)[0])
    parts = priors_of_globals(study, sites, options) + priors_of_theta(study, sites)
    assert got == pytest.approx(parts + dense_likelihood(study, sites, options), rel=1e-10)


def test_beta_binomial_density():
    study, options = make_study(), Options("burr", "betabinomial")
    sites = make_sites(study, options)
    got = float(log_density(model.scaling_model, (study, options), {}, sites)[0])
    parts = priors_of_globals(study, sites, options) + priors_of_theta(study, sites)
    assert got == pytest.approx(parts + count_likelihood(study, sites, options), rel=1e-8)


def test_replaced_priors_enter_the_density():
    study = make_study()
    wide = Options(priors=Priors(mean_a=(0.5, 2.0), wander_sd=(0.02, 1.0)))
    sites = make_sites(study, wide)
    densities = [
        float(log_density(model.scaling_model, (study, o), {}, sites)[0]) for o in (Options(), wide)
    ]
    difference = priors_of_globals(study, sites, wide) - priors_of_globals(study, sites, Options())
    assert densities[1] - densities[0] == pytest.approx(difference, rel=1e-9)
    assert abs(difference) > 0.1


@pytest.mark.parametrize("curve", ["burr", "sigmoid", "power"])
def test_shape_is_half_at_C_mid_and_finite_far_away(curve):
    family = FAMILIES[curve]
    own = {name: jnp.asarray(0.7) for name in family.own}
    s = model.shape(
        jnp.array([-800.0, 0.3, 800.0]), jnp.asarray(0.3), jnp.asarray(0.5), own, family
    )
    assert np.asarray(s) == pytest.approx([0.0, 0.5, 1.0], abs=1e-12)
    grad = jax.grad(lambda b: model.shape(jnp.asarray(900.0), jnp.asarray(0.0), b, own, family))
    assert np.isfinite(grad(jnp.asarray(1.0)))


def test_prior_draws_have_the_moments_of_the_priors():
    priors = Priors()
    draws = prior_theta(priors, np.zeros((5, 0)))
    for q, name in enumerate(COORDINATES):
        mean, sd = getattr(priors, f"mean_{name}")
        spread = {
            kind: np.mean(getattr(priors, f"{kind}_{name}")[0] ** 2)
            * np.exp(2 * getattr(priors, f"{kind}_{name}")[1] ** 2)
            for kind in ("recipe_sd", "seed_sd")
        }
        recipe, run = draws["recipe"][..., q], draws["run"][..., q]
        assert recipe.mean() == pytest.approx(mean, abs=4 * sd / np.sqrt(4000))
        assert recipe.var() == pytest.approx(sd**2 + spread["recipe_sd"], rel=0.15)
        assert (run - recipe).var() == pytest.approx(spread["seed_sd"], rel=0.15)
