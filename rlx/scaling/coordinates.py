"""Coordinates in which the posterior of `model.scaling_model` is close to a unit normal.

Sampling a hierarchy of curves is slow for two reasons. The width of theta depends on the
hyper-parameters (the funnel), and a ceiling that was not reached lies on a curved ridge with C_mid,
B and kappa. Both disappear in coordinates made of what the data determine:

1. Level. A recipe's (a, c, b) is replaced by psi = (ceiling above the last level, level at the
   last compute x1, level at an earlier x2 relative to it), which the data determine almost
   separately. `theta_of` is the exact inverse; along psi_0 the observed part of the curve is fixed.
2. Recipe. Around a reference the likelihood of theta is a normal in the runs' effects, so that
   given hyper-parameters the posterior of a recipe, its runs integrated out, is a normal with
   known mean and precision P_j; xi_recipe is its standardised deviation, in psi.
3. Run. The same, linearised at the *current* theta of the recipe: xi_run.
4. A family's own parameter of every recipe is xi times its prior sd from its prior mean.

`natural` maps (hyper-parameters, xi_recipe, xi_run, ...) to the sites of the model and returns the
log of the Jacobian determinant, so the density is exact however poor the approximation is; only the
speed depends on it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logit
from numpyro.infer.util import log_density

from rlx.scaling.families import BURR, FAMILIES, Family
from rlx.scaling.model import (
    JAX,
    LATENT_DIMS,
    Options,
    Study,
    latent_RM,
    own_R,
    recipe_mean,
    scaling_model,
    shape,
    site_shape,
    sites_of,
    wander_filter,
    whiten,
)
from rlx.scaling.priors import Site

Sites = dict[str, Array]
MOST_AHEAD, MOST_PAST = 30.0, 20.0  # log odds of the observed share; beyond, it rounds to 0 or 1
EARLY_SHARE = 0.4  # at x2 the reference curve has this share of its gain at x1


class Reference(NamedTuple):
    """A point of the sites and the derivatives of every run's curve there."""

    own: Sites  # the family's own parameters, per run or shared
    log_kappa: Array  # of the level coordinates: Burr's, per recipe or shared, or 0
    logit_R0_S: Array
    theta_RQ: Array
    information_RQQ: Array  # F = J' Sigma^-1 J of every run
    score_RQ: Array  # J' Sigma^-1 (value - mean)
    cross_RQn: Array  # J' Sigma^-1 d mean / d (each own parameter, logit R0)
    theta_JQ: Array
    psi_JQ: Array
    psi_of_theta_JQQ: Array  # d psi / d theta
    theta_of_kappa_JQ: Array  # d theta / d log kappa at fixed psi
    x1_J: Array
    x2_J: Array


# ---------------------------------------------------------------- 3 x 3 matrices, written out


def cholesky3(A: Array) -> tuple[Array, ...]:
    """Lower triangle, row by row, of the Cholesky factor of [..., 3, 3]."""
    l00 = jnp.sqrt(A[..., 0, 0])
    l10, l20 = A[..., 1, 0] / l00, A[..., 2, 0] / l00
    l11 = jnp.sqrt(A[..., 1, 1] - l10**2)
    l21 = (A[..., 2, 1] - l20 * l10) / l11
    l22 = jnp.sqrt(A[..., 2, 2] - l20**2 - l21**2)
    return l00, l10, l11, l20, l21, l22


def forward3(L: tuple[Array, ...], x: Array) -> Array:
    """L^-1 x."""
    l00, l10, l11, l20, l21, l22 = L
    y0 = x[..., 0] / l00
    y1 = (x[..., 1] - l10 * y0) / l11
    return jnp.stack([y0, y1, (x[..., 2] - l20 * y0 - l21 * y1) / l22], -1)


def backward3(L: tuple[Array, ...], y: Array) -> Array:
    """L^-T y."""
    l00, l10, l11, l20, l21, l22 = L
    x2 = y[..., 2] / l22
    x1 = (y[..., 1] - l21 * x2) / l11
    return jnp.stack([(y[..., 0] - l10 * x1 - l20 * x2) / l00, x1, x2], -1)


def half_log_det3(L: tuple[Array, ...]) -> Array:
    return jnp.log(L[0]) + jnp.log(L[2]) + jnp.log(L[5])


def log_det3(D: Array) -> Array:
    """log |det D| of [..., 3, 3]."""
    row0, row1, row2 = D[..., 0, :], D[..., 1, :], D[..., 2, :]
    return jnp.log(jnp.abs((row0 * jnp.cross(row1, row2)).sum(-1)))


# ---------------------------------------------------------------- level coordinates


def log_odds_of(log_left: Array, log_kappa: Array) -> Array:
    """u with s(u) = 1 - exp(log_left), the inverse of the Burr shape."""
    return BURR.inverse(log_left, JAX, B=1.0, kappa=jnp.exp(log_kappa))


def level_kappa(u: Sites, family: Family) -> Array:
    """log kappa of the level coordinates: the family's, per recipe or shared; 0 if it has none."""
    return u[family.own["kappa"].site] if "kappa" in family.own else jnp.zeros(())


def theta_of(psi: Array, log_kappa: Array, x1: Array, x2: Array) -> Array:
    """(a, c, b) of the curve with psi = (alpha, logit p1, logit rho).

    p1 = (R(x1) - R0) / (1 - R0),   rho = (R(x2) - R0) / (R(x1) - R0)
    logistic(a) = p1 + (1 - p1) logistic(alpha)
    """
    alpha, level, ratio = psi[..., 0], psi[..., 1], psi[..., 2]
    p1, above = jax.nn.sigmoid(level), jax.nn.sigmoid(alpha)
    ceiling = p1 + (1 - p1) * above
    a = jnp.log(ceiling) - jax.nn.log_sigmoid(-level) - jax.nn.log_sigmoid(-alpha)
    log_left_1 = jax.nn.log_sigmoid(-level) + jax.nn.log_sigmoid(alpha) - jnp.log(ceiling)
    log_left_2 = jnp.log1p(-p1 / ceiling * jax.nn.sigmoid(ratio))
    u1, u2 = log_odds_of(log_left_1, log_kappa), log_odds_of(log_left_2, log_kappa)
    B = (u1 - u2) / (x1 - x2)
    return jnp.stack([a, x1 - u1 / B, jnp.log(B)], -1)


def psi_of(theta: Array, log_kappa: Array, x1: Array, x2: Array) -> Array:
    """The inverse of `theta_of`."""
    a, c, b = theta[..., 0], theta[..., 1], theta[..., 2]
    s1, s2 = (shape(x, c, b, {"kappa": log_kappa}, BURR) for x in (x1, x2))
    ceiling = jax.nn.sigmoid(a)
    p1 = ceiling * s1
    return jnp.stack([logit((ceiling - p1) / (1 - p1)), logit(p1), logit(s2 / s1)], -1)


def jacobian(f, x_JQ: Array) -> Array:
    """d f / d x of a function that acts on each row, [J, Q, Q]."""
    basis = jnp.eye(3, dtype=x_JQ.dtype)
    columns = [jax.jvp(f, (x_JQ,), (jnp.broadcast_to(e[None], x_JQ.shape),))[1] for e in basis]
    return jnp.stack(columns, -1)


# ---------------------------------------------------------------- the map


def columns_of(study: Study, sites: Sites, theta_RQ: Array, curve: str) -> Array:
    """d mean / d (a, c, b, each of the family's own parameters, logit R0) of every evaluation, and
    value - mean, [M, R, n].

    Unused derivatives cost nothing once compiled.
    """
    family = FAMILIES[curve]

    def mean_RM(theta_RQ: Array, own: Sites, shift_R: Array) -> Array:
        logit_R0_R = sites["logit_R0"][study.start_R] + shift_R
        return latent_RM(study, theta_RQ, logit_R0_R, own, family)

    own, shift_R = own_R(study, sites, family), jnp.zeros(theta_RQ.shape[0])
    point = (theta_RQ, own, shift_R)
    zero = jax.tree.map(jnp.zeros_like, point)
    unit = [(zero[0].at[:, q].set(1.0), *zero[1:]) for q in range(3)]
    of_own = [(zero[0], zero[1] | {k: jnp.ones_like(x)}, zero[2]) for k, x in own.items()]
    unit += of_own or [zero]  # at least one column: their number determines how sums round
    unit += [(*zero[:2], jnp.ones_like(shift_R))]
    columns = [jax.jvp(mean_RM, point, tangent)[1] for tangent in unit]
    return jnp.stack([*columns, study.value_RM - mean_RM(*point)], -1).swapaxes(0, 1)


def make_reference(study: Study, sites: Sites, curve: str) -> Reference:
    """Linearise every run at its theta, every recipe at the last compute of its runs.

    A recipe whose gain is entirely, or not at all, in the data is linearised where a trace is.
    """
    theta_RQ, theta_JQ = sites["theta_run"], sites["theta_recipe"]
    family = FAMILIES[curve]
    log_kappa = level_kappa(sites, family)
    last_R = jnp.max(jnp.where(study.seen_RM > 0, study.log_C_RM, -jnp.inf), 1)
    x1_J = jax.ops.segment_max(last_R, study.recipe_R, theta_JQ.shape[0])
    B_J = jnp.exp(theta_JQ[:, 2])
    most_J = MOST_PAST / jnp.maximum(jnp.exp(log_kappa), 1.0) / B_J
    c_J = jnp.clip(theta_JQ[:, 1], x1_J - most_J, x1_J + MOST_AHEAD / B_J)
    theta_JQ = theta_JQ.at[:, 1].set(c_J)
    left_J = 1 - EARLY_SHARE * shape(x1_J, c_J, theta_JQ[:, 2], {"kappa": log_kappa}, BURR)
    x2_J = c_J + log_odds_of(jnp.log(left_J), log_kappa) / B_J
    psi_JQ = psi_of(theta_JQ, log_kappa, x1_J, x2_J)
    of_psi = jacobian(lambda psi: theta_of(psi, log_kappa, x1_J, x2_J), psi_JQ)
    one = jnp.ones_like(log_kappa)
    of_kappa = jax.jvp(lambda k: theta_of(psi_JQ, k, x1_J, x2_J), (log_kappa,), (one,))[1]
    columns_MRn = columns_of(study, sites, theta_RQ, curve)
    white = whiten(wander_filter(study, sites), columns_MRn)
    return Reference(
        own_R(study, sites, family),
        log_kappa,
        sites["logit_R0"],
        theta_RQ,
        *information(white[..., :3], white[..., -1]),
        jnp.einsum("mrp,mrn->rpn", white[..., :3], white[..., 3:-1]),
        theta_JQ,
        psi_JQ,
        jnp.linalg.inv(of_psi),
        of_kappa,
        x1_J,
        x2_J,
    )


def information(J_MRQ: Array, residual_MR: Array) -> tuple[Array, Array]:
    """F = J' J [R, Q, Q] and J' residual [R, Q] of whitened derivatives and residuals."""
    score_RQ = jnp.einsum("mrp,mr->rp", J_MRQ, residual_MR)
    return jnp.einsum("mrp,mrq->rpq", J_MRQ, J_MRQ), score_RQ


def recipes(u: Sites, study: Study, reference: Reference, curve: str) -> tuple[Array, Array]:
    """theta of the recipes [J, Q] and log |d theta / d xi|, with the runs integrated out."""
    family = FAMILIES[curve]
    F_R, eta_R, cross_R = reference.information_RQQ, reference.score_RQ, reference.cross_RQn
    for e, (name, x) in enumerate(own_R(study, u, family).items()):
        moved = x - reference.own[name]
        eta_R = eta_R - cross_R[..., e] * (moved[:, None] if moved.ndim else moved)
    d_R0_R = (u["logit_R0"] - reference.logit_R0_S)[study.start_R]
    eta_R = eta_R - cross_R[..., -1] * d_R0_R[:, None]
    eta_R = eta_R + jnp.einsum("rpq,rq->rp", F_R, reference.theta_RQ)
    S, T = jnp.exp(-2 * u["log_seed_sd"]), jnp.exp(-2 * u["log_recipe_sd"])  # precisions
    L_R = cholesky3(F_R + jnp.diag(S)[None])
    basis = [jnp.broadcast_to(e[None], eta_R.shape) for e in jnp.eye(3)]
    inverse_R = jnp.stack([backward3(L_R, forward3(L_R, e_RQ)) for e_RQ in basis], -1)
    G_R = jnp.diag(S)[None] - S[None, :, None] * inverse_R * S[None, None]  # run about recipe
    gamma_R = S[None] * backward3(L_R, forward3(L_R, eta_R))
    n = study.design_JE.shape[0]
    P_J = jax.ops.segment_sum(G_R, study.recipe_R, n) + jnp.diag(T)[None]
    b_J = jax.ops.segment_sum(gamma_R, study.recipe_R, n) + T[None] * recipe_mean(study, u)
    L_J = cholesky3(P_J)
    linear_JQ = backward3(L_J, forward3(L_J, b_J) + u["xi_recipe"])
    log_det = -half_log_det3(L_J).sum()
    if not family.leveled:
        return linear_JQ, log_det
    log_kappa = level_kappa(u, family)
    d_kappa = log_kappa - reference.log_kappa
    d_kappa = d_kappa[:, None] if d_kappa.ndim else d_kappa
    deviation = linear_JQ - reference.theta_JQ - reference.theta_of_kappa_JQ * d_kappa
    psi_JQ = reference.psi_JQ + jnp.einsum("jpq,jq->jp", reference.psi_of_theta_JQQ, deviation)

    def back(psi_JQ: Array) -> Array:
        return theta_of(psi_JQ, log_kappa, reference.x1_J, reference.x2_J)

    log_det += (log_det3(reference.psi_of_theta_JQQ) + log_det3(jacobian(back, psi_JQ))).sum()
    return back(psi_JQ), log_det


def coordinate(site: Site) -> str:
    """The name of a site's coordinate: of its standardised deviation if it belongs to a recipe or a
    run, else its own name."""
    whitened = site.dims[:1] in (("recipe",), ("run",)) and site.dims != LATENT_DIMS
    return f"xi_{site.name.removeprefix('theta_')}" if whitened else site.name


def natural(u: Sites, study: Study, reference: Reference, options: Options) -> tuple[Sites, Array]:
    """Sites of the model at the coordinates u, and log |d sites / d u|.

    u holds the model's global sites under their own names, xi_recipe [J, Q] and xi_run [R, Q], and
    an xi [J] of every parameter that the family has per recipe.
    """
    log_det_own = jnp.zeros(())
    for site in FAMILIES[options.curve].sites:
        if not site.dims:
            continue
        mean, sd = site.prior(options.priors, u, JAX)
        xi_J = u[coordinate(site)]
        u = u | {site.name: mean + sd * xi_J}
        log_det_own += jnp.log(jnp.broadcast_to(sd, xi_J.shape)).sum()
    theta_JQ, log_det = recipes(u, study, reference, options.curve)
    base_RQ = theta_JQ[study.recipe_R]
    columns_MRn = columns_of(study, u, base_RQ, options.curve)[..., jnp.array([0, 1, 2, -1])]
    white = whiten(wander_filter(study, u), columns_MRn)
    F_R, eta_R = information(white[..., :3], white[..., 3])
    L_R = cholesky3(F_R + jnp.diag(jnp.exp(-2 * u["log_seed_sd"]))[None])
    theta_RQ = base_RQ + backward3(L_R, forward3(L_R, eta_R) + u["xi_run"])
    log_det -= half_log_det3(L_R).sum()
    sites = {name: value for name, value in u.items() if not name.startswith("xi_")}
    sites |= {"theta_recipe": theta_JQ, "theta_run": theta_RQ}
    return sites, log_det + log_det_own


def coordinates_at(sites: Sites, study: Study, options: Options) -> Sites:
    """The coordinates of a reference's own point; xi of theta to first order, 0."""
    u = {}
    for site in sites_of(study, options):
        x = sites[site.name]
        if site.name.startswith("theta_"):
            x = jnp.zeros_like(x)
        elif coordinate(site) != site.name:
            mean, sd = site.prior(options.priors, sites, JAX)
            x = (x - mean) / sd
        u[coordinate(site)] = x
    return u


def template(study: Study, options: Options) -> Sites:
    """Zeros in the shape of the coordinates."""
    sites = sites_of(study, options)
    return {coordinate(site): jnp.zeros(site_shape(site, study)) for site in sites}


def potential(u: Sites, study: Study, reference: Reference, options: Options) -> Array:
    """-log density of the coordinates, up to a constant."""
    sites, log_det = natural(u, study, reference, options)
    return -log_density(scaling_model, (study, options), {}, sites)[0] - log_det
