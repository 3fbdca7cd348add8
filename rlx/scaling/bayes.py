"""The posterior of the hierarchical model: mode, NUTS, draws.

    mode = find_mode(study, options)           # maximum and curvature in `coordinates`
    draws, stats = sample(study, options, mode, ...)   # NumPyro's NUTS from there
    draws, stats = laplace(study, options, mode, ...)  # or a normal at the mode

Everything runs in float64 inside `jax.enable_x64`, which does not change the process's setting.
Compiled programs depend on shapes and options only, so refits of a study do not compile again.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.optimize
from arviz_stats.base import array_stats
from jax import Array
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray
from numpyro.infer.hmc import hmc
from scipy.special import expit
from tqdm import tqdm

from rlx.errors import InputError
from rlx.scaling.coordinates import (
    Reference,
    Sites,
    coordinate,
    coordinates_at,
    make_reference,
    natural,
    potential,
    template,
)
from rlx.scaling.model import JAX, LATENT_DIMS, Options, Study, site_shape, sites_of
from rlx.scaling.point import best_levels
from rlx.scaling.priors import COORDINATES

Floats = NDArray[np.float64]
SiteDraws = dict[str, Floats]  # [chain, draw, ...]

CHAINS, WARMUP, DRAWS, MAX_ROUNDS = 4, 100, 450, 8
MAX_RHAT, MIN_ESS, MIN_BFMI = 1.01, 400, 0.3  # as in `draws`, which does not import JAX
ACCEPTS = (0.9, 0.97, 0.99)  # target acceptance; the next one after a divergence
MODE_ROUNDS, MODE_STEP = 8, 0.02  # relinearise until no theta moves further than this
MAX_DENSE = 1000  # dimensions up to which the whole curvature is computed
SMALL, CURVATURE_FLOOR = 1e-4, 0.2
MAX_CELLS = 1_000_000  # draws x evaluations at once


class Mode(NamedTuple):
    """A normal at the mode: coordinates u = center + scale z, z ~ N(0, 1)."""

    reference: Reference
    center: Array
    scale: Array


class Stats(NamedTuple):
    """Statistics of the sampler, [chain, draw]."""

    diverging: NDArray[np.bool_]
    energy: Floats
    n_steps: NDArray[np.int64]
    rounds: int


# ---------------------------------------------------------------- start and mode


def first_sites(study: Study, options: Options) -> Sites:
    """Prior means; for every run the best of a grid of shapes, penalised by the prior."""
    priors = options.priors
    mean = [getattr(priors, f"mean_{q}") for q in COORDINATES]
    grid_c, grid_b = (np.linspace(m - 2.5 * s, m + 2.5 * s, 25) for m, s in mean[1:])
    c_K, b_K = (g.ravel() for g in np.meshgrid(grid_c, grid_b))
    R = len(study.recipe_R)
    theta_RQ = np.zeros((R, 3))
    for r in range(R):
        seen = np.asarray(study.seen_RM[r]) > 0
        log_C, value = (np.asarray(x[r])[seen] for x in (study.log_C_RM, study.value_RM))
        R0 = float(expit(study.start_mean_S[study.start_R[r]]))
        f_KM = expit(np.exp(b_K)[:, None] * (log_C - c_K[:, None]))
        A_K, _ = best_levels(f_KM, value, np.full(len(value), 1 / len(value)), R0)
        share = np.clip((A_K - R0) / (1 - R0), 0.02, 0.98)
        a_K = np.log(share / (1 - share))
        sse_K = ((R0 + (1 - R0) * share[:, None] * f_KM - value) ** 2).sum(1) / 0.015**2
        theta_KQ = np.stack([a_K, c_K, b_K], -1)
        penalty_K = sum(((theta_KQ[:, q] - m) / s) ** 2 for q, (m, s) in enumerate(mean))
        theta_RQ[r] = theta_KQ[np.argmin(sse_K + penalty_K)]
    J = study.design_JE.shape[0]
    theta_JQ = np.stack([theta_RQ[np.asarray(study.recipe_R) == j].mean(0) for j in range(J)])
    known = {"mu": theta_JQ.mean(0), "theta_recipe": theta_JQ, "theta_run": theta_RQ}
    sites: Sites = {}
    for site in sites_of(study, options):
        first = known[site.name] if site.name in known else site.prior(priors, sites, JAX)[0]
        shape = site_shape(site, study)
        sites[site.name] = jnp.broadcast_to(jnp.asarray(first, jnp.float64), shape)
    return sites


@partial(jax.jit, static_argnames="options")
def _value_and_grad(v: Array, study: Study, reference: Reference, options: Options):
    unravel = ravel_pytree(template(study, options))[1]
    return jax.value_and_grad(lambda v: potential(unravel(v), study, reference, options))(v)


@partial(jax.jit, static_argnames="options")
def _sites_at(v: Array, study: Study, reference: Reference, options: Options) -> Sites:
    unravel = ravel_pytree(template(study, options))[1]
    return natural(unravel(v), study, reference, options)[0]


_reference = partial(jax.jit, static_argnames="curve")(make_reference)


def sites_at(study: Study, options: Options, mode: Mode) -> Sites:
    """Sites of the model at the mode."""
    return _sites_at(mode.center, study, mode.reference, options)


def find_mode(study: Study, options: Options, sites: Sites | None = None) -> Mode:
    """Maximum of the density in whitened coordinates, relinearised until it converges."""
    sites = first_sites(study, options) if sites is None else sites
    reference, center = _relinearise(study, options, sites)
    for round in range(MODE_ROUNDS):
        center = _minimise(study, options, reference, center, 40 if round < 2 else 100)
        sites = _sites_at(center, study, reference, options)
        moved = float(jnp.abs(sites["theta_run"] - reference.theta_RQ).max())
        reference, center = _relinearise(study, options, sites)
        if moved < MODE_STEP:
            break
    return Mode(reference, center, _scale(study, options, reference, center))


def _relinearise(study: Study, options: Options, sites: Sites) -> tuple[Reference, Array]:
    reference = _reference(study, sites, curve=options.curve)
    return reference, ravel_pytree(coordinates_at(sites, study, options))[0]


def _minimise(study: Study, options: Options, reference: Reference, v: Array, n: int) -> Array:
    def objective(v: Floats) -> tuple[float, Floats]:
        value, grad = _value_and_grad(v, study, reference, options)
        value, grad = float(value), np.asarray(grad)
        return (value, grad) if np.isfinite(value + grad.sum()) else (1e12, np.zeros_like(grad))

    limits = {"maxiter": n, "maxfun": 2 * n}
    found = scipy.optimize.minimize(
        objective, np.asarray(v), jac=True, method="L-BFGS-B", options=limits
    )
    return jnp.asarray(found.x)


def _scale(study: Study, options: Options, reference: Reference, center: Array) -> Array:
    """Square root of the inverse curvature at the center.

    Beyond MAX_DENSE dimensions the latents of evaluations are taken as whitened by their prior.
    """
    blocks, latent_D = _blocks(study, options)
    dense_D = ~latent_D if center.size > MAX_DENSE else np.ones(center.size, bool)
    H = _curvature(study, options, reference, np.asarray(center), blocks, dense_D)
    index = np.flatnonzero(dense_D)
    eigenvalue, basis = np.linalg.eigh(H[np.ix_(index, index)])
    scale = np.eye(center.size)
    scale[np.ix_(index, index)] = basis / np.sqrt(np.maximum(eigenvalue, CURVATURE_FLOOR))
    return jnp.asarray(scale)


def log_evidence(study: Study, options: Options, mode: Mode) -> float:
    """log of the integral of likelihood times prior, by Laplace's method.

    log p(y | m) + log p(m) + D/2 log(2 pi) + log |det scale| at the mode m of the coordinates
    (MacKay 2003, Information Theory, Inference, and Learning Algorithms, Eq. 27.5).
    """
    minus_log_p = float(_value_and_grad(mode.center, study, mode.reference, options)[0])
    log_det = np.linalg.slogdet(np.asarray(mode.scale))[1]
    return float(-minus_log_p + 0.5 * mode.center.size * np.log(2 * np.pi) + log_det)


class Blocks(NamedTuple):
    """Conditional independence: given what is shared, of recipes; given a recipe, of its runs."""

    recipe_D: NDArray[np.int64]  # owner of the coordinate; -1: shared by several recipes
    run_D: NDArray[np.int64]  # -1: of a recipe, or shared
    slot_D: NDArray[np.int64]  # index among the coordinates of the same run, recipe, or of all


def _blocks(study: Study, options: Options) -> tuple[Blocks, NDArray[np.bool_]]:
    """Of every coordinate: its place in the hierarchy, and whether it belongs to an evaluation."""
    recipe_R, start_R = np.asarray(study.recipe_R), np.asarray(study.start_R)
    J = study.design_JE.shape[0]
    owners = [np.unique(recipe_R[start_R == s]) for s in range(len(study.start_mean_S))]
    recipe_S = [own[0] if len(own) == 1 else -1 for own in owners]
    recipe_of = {"run": recipe_R, "recipe": np.arange(J), "start": np.array(recipe_S)}
    run_of = {"run": np.arange(len(recipe_R))}
    recipe, run, latent = {}, {}, {}
    for site in sites_of(study, options):
        shape, name = site_shape(site, study), coordinate(site)
        axis = site.dims[0] if site.dims else ""
        for place, of in ((recipe, recipe_of), (run, run_of)):
            index = np.reshape(of.get(axis, -1), (-1, *[1] * (len(shape) - 1))) if shape else -1
            place[name] = np.broadcast_to(index, shape)
        latent[name] = np.full(shape, site.dims == LATENT_DIMS)
    recipe_D, run_D, latent_D = (np.asarray(ravel_pytree(x)[0]) for x in (recipe, run, latent))
    slots = pd.DataFrame({"recipe": recipe_D, "run": run_D}).groupby(["recipe", "run"]).cumcount()
    return Blocks(recipe_D, run_D, slots.to_numpy()), latent_D


def _curvature(
    study: Study,
    options: Options,
    reference: Reference,
    v_D: Floats,
    blocks: Blocks,
    dense_D: NDArray[np.bool_],
) -> Floats:
    """Second derivatives [D, D] of the potential, by central differences of the gradient.

    One pair of gradients moves one slot's coordinates in all runs, or in all recipes, together
    (Curtis, Powell & Reid 1974, J. Inst. Maths Applics 13:117): the cost grows with the number of
    evaluations per run, not with the number of runs.
    """
    H, known = np.zeros((2, v_D.size, v_D.size))
    recipe_D, run_D, slot_D = blocks
    levels = ((run_D, run_D >= 0), (recipe_D, (recipe_D >= 0) & (run_D < 0)))
    for owner_D, here_D in (*levels, (np.zeros_like(run_D), recipe_D < 0)):
        here_D, inner = here_D & dense_D, np.flatnonzero(owner_D >= 0)
        for slot in np.unique(slot_D[here_D]):
            moved = np.flatnonzero(here_D & (slot_D == slot))
            step = np.zeros(v_D.size)
            step[moved] = SMALL
            ahead, behind = (
                np.asarray(_value_and_grad(v_D + s * step, study, reference, options)[1])
                for s in (1, -1)
            )
            member = np.full(owner_D.max() + 1, -1)
            member[owner_D[moved]] = moved
            column = inner[member[owner_D[inner]] >= 0]
            row = member[owner_D[column]]
            H[row, column] = (ahead - behind)[column] / (2 * SMALL)
            known[row, column] = 1
    return (H + H.T) / np.maximum(known + known.T, 1)


# ---------------------------------------------------------------- draws


@partial(jax.jit, static_argnames="options")
def _round(key: Array, z_HD: Array, study: Study, mode: Mode, accept: Array, options: Options):
    """A warm-up of the step size and DRAWS draws of every chain, in z."""
    unravel = ravel_pytree(template(study, options))[1]

    def energy(z: Array) -> Array:
        u = unravel(mode.center + mode.scale @ z)
        return potential(u, study, mode.reference, options)

    init, kernel = hmc(energy, algo="NUTS")

    def chain(key: Array, z: Array):
        state = init(
            z,
            WARMUP,
            step_size=0.4,
            adapt_mass_matrix=False,
            target_accept_prob=accept,
            rng_key=key,
        )

        def step(state, _):
            state = kernel(state)
            return state, (state.z, state.diverging, state.energy, state.num_steps)

        return jax.lax.scan(step, state, None, WARMUP + DRAWS)[1]  # one loop compiles faster

    drawn = jax.vmap(chain)(jax.random.split(key, z_HD.shape[0]), z_HD)
    return jax.tree.map(lambda x_HX: x_HX[:, WARMUP:], drawn)


@partial(jax.jit, static_argnames="options")
def _sites_of(z_HXD: Array, study: Study, mode: Mode, options: Options) -> Sites:
    """Sites of draws in z, without those of evaluations; in batches, to limit memory."""
    unravel = ravel_pytree(template(study, options))[1]
    kept = {site.name for site in sites_of(study, options) if site.dims != LATENT_DIMS}

    def one(z: Array) -> Sites:
        u = unravel(mode.center + mode.scale @ z)
        sites = natural(u, study, mode.reference, options)[0]
        return {name: x for name, x in sites.items() if name in kept}

    H, X, D = z_HXD.shape
    batch = min(H * X, max(1, MAX_CELLS // study.value_RM.size))
    sites = jax.lax.map(one, z_HXD.reshape(-1, D), batch_size=batch)
    return jax.tree.map(lambda x: x.reshape(H, X, *x.shape[1:]), sites)


class Round(NamedTuple):
    """SiteDraws of all chains, and the sampler's statistics, [chain, draw]."""

    draws: SiteDraws
    diverging: NDArray[np.bool_]
    energy: Floats
    n_steps: NDArray[np.int64]


def sample(
    study: Study, options: Options, mode: Mode, *, seed: int, progress: bool = False
) -> tuple[SiteDraws, Stats]:
    """NUTS in rounds of WARMUP + DRAWS until R-hat, effective sample size and E-BFMI are good.

    If a round is merely too short, the next one is appended. After divergences it is discarded and
    repeated with the next of ACCEPTS, in coordinates centred and scaled by its draws.
    """
    key = jax.random.key(seed)
    shape = (CHAINS, mode.center.size)
    z_HD = 0.5 * jax.random.normal(jax.random.fold_in(key, MAX_ROUNDS), shape)
    rung, kept = 0, []
    bar = tqdm(total=MAX_ROUNDS, desc="NUTS", unit="round", disable=not progress)
    for round in range(1, MAX_ROUNDS + 1):
        args = (study, mode, jnp.asarray(ACCEPTS[rung]), options)
        z_HXD, *stats = _round(jax.random.fold_in(key, round), z_HD, *args)
        draws = {k: np.asarray(x) for k, x in _sites_of(z_HXD, study, mode, options).items()}
        kept.append(Round(draws, *(np.asarray(x) for x in stats)))
        rhat, ess = convergence(_joined(kept))
        diverging, energy, _ = _statistics(kept)
        bar.update()
        bar.set_postfix(rhat=f"{rhat:.3f}", ess=f"{ess:.0f}", divergences=int(diverging.sum()))
        good = rhat <= MAX_RHAT and ess >= MIN_ESS and bfmi(energy) > MIN_BFMI
        if round == MAX_ROUNDS or (good and not diverging.any()):
            break
        z_HD = z_HXD[:, -1]
        if diverging.any():
            mode, z_HD = _rescaled(mode, z_HXD)
            rung, kept = min(rung + 1, len(ACCEPTS) - 1), []
    bar.close()
    return _joined(kept), Stats(*_statistics(kept), round)


def _joined(kept: list[Round]) -> SiteDraws:
    return {k: np.concatenate([part.draws[k] for part in kept], 1) for k in kept[0].draws}


def _statistics(kept: list[Round]) -> tuple[NDArray[np.bool_], Floats, NDArray[np.int64]]:
    diverging, energy, n_steps = zip(*(part[1:] for part in kept), strict=True)
    return np.concatenate(diverging, 1), np.concatenate(energy, 1), np.concatenate(n_steps, 1)


def _rescaled(mode: Mode, z_HXD: Array) -> tuple[Mode, Array]:
    """Coordinates in which the draws have mean 0 and sd 1, and each chain's last draw in them."""
    mean_D, sd_D = z_HXD.mean((0, 1)), z_HXD.std((0, 1))
    center = mode.center + mode.scale @ mean_D
    return Mode(mode.reference, center, mode.scale * sd_D), (z_HXD[:, -1] - mean_D) / sd_D


def laplace(study: Study, options: Options, mode: Mode, *, seed: int) -> tuple[SiteDraws, Stats]:
    """Independent draws of the normal at the mode, a preview; infinite ones are redrawn.

    Raises:
        InputError: no draw is finite.
    """
    shape = (1, 2 * CHAINS * DRAWS, mode.center.size)
    halves = jnp.split(jax.random.normal(jax.random.key(seed), shape), 2, axis=1)
    draws: SiteDraws = {}
    for z_HXD in halves:  # the second only if draws of the first are not finite
        sites = _sites_of(z_HXD, study, mode, options)
        new = {k: np.asarray(x)[0] for k, x in sites.items()}
        draws = {k: np.concatenate([draws[k], x]) for k, x in new.items()} if draws else new
        finite = [np.isfinite(x).reshape(len(x), -1).all(1) for x in draws.values()]
        kept = np.flatnonzero(np.all(finite, 0))[: CHAINS * DRAWS]
        if len(kept) == CHAINS * DRAWS:
            break
    if not len(kept):
        reason = "the fit has no mode: the data determine no curve"
        remedy = "leave out runs that have not risen, or give method=nuts"
        raise InputError("method", "laplace", reason, remedy)
    kept = np.resize(kept, (CHAINS, DRAWS))  # repeats draws if more than half are not finite
    none = np.zeros((CHAINS, DRAWS))
    stats = Stats(none.astype(bool), none, none.astype(int), 0)
    return {k: x[kept] for k, x in draws.items()}, stats


def convergence(draws: SiteDraws) -> tuple[float, float]:
    """Largest rank-normalised R-hat and smallest bulk or tail effective sample size of any site."""
    flat = np.concatenate([x.reshape(*x.shape[:2], -1) for x in draws.values()], -1)
    rhat = array_stats.rhat(flat, chain_axis=0, draw_axis=1)
    bulk = array_stats.ess(flat, chain_axis=0, draw_axis=1, method="bulk")
    tail = array_stats.ess(flat, chain_axis=0, draw_axis=1, method="tail", prob=(0.05, 0.95))
    return float(np.max(rhat)), float(min(np.min(bulk), np.min(tail)))


def bfmi(energy: Floats) -> float:
    """Smallest of the chains' energy Bayesian fractions of missing information."""
    change = np.square(np.diff(energy, axis=1)).mean(1)
    return float((change / energy.var(1)).min())
