"""The whitening map: exact inverse and Jacobian, and a posterior that is nearly a unit normal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from rlx.scaling import bayes, coordinates
from rlx.scaling.families import BURR
from rlx.scaling.model import Options, shape
from tests.scaling.test_model import J, R, make_sites, make_study


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("log_kappa", [-0.8, 0.0, 1.2])
def test_level_coordinates_and_their_inverse(log_kappa):
    rng = np.random.default_rng(0)
    theta = jnp.asarray(rng.normal(0, 0.7, (50, 3)))
    x1, x2 = jnp.full(50, 1.1), jnp.full(50, -0.4)
    k = jnp.asarray(log_kappa)
    psi = coordinates.psi_of(theta, k, x1, x2)
    assert np.asarray(coordinates.theta_of(psi, k, x1, x2)) == pytest.approx(
        np.asarray(theta), abs=1e-9
    )
    gain = 1 / (1 + np.exp(-theta[:, 0]))  # the levels that psi names, by hand
    level = gain * shape(x1, theta[:, 1], theta[:, 2], {"kappa": k}, BURR)
    early = gain * shape(x2, theta[:, 1], theta[:, 2], {"kappa": k}, BURR)
    assert 1 / (1 + np.exp(-psi[:, 1])) == pytest.approx(np.asarray(level), rel=1e-9)
    assert 1 / (1 + np.exp(-psi[:, 2])) == pytest.approx(np.asarray(early / level), rel=1e-9)


def test_three_by_three_algebra():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(7, 3, 5))
    A, b = X @ X.swapaxes(-1, -2), rng.normal(size=(7, 3))
    L = coordinates.cholesky3(jnp.asarray(A))
    solved = coordinates.backward3(L, coordinates.forward3(L, jnp.asarray(b)))
    assert np.asarray(solved) == pytest.approx(np.linalg.solve(A, b[..., None])[..., 0], rel=1e-8)
    assert 2 * np.asarray(coordinates.half_log_det3(L)) == pytest.approx(np.linalg.slogdet(A)[1])
    D = rng.normal(size=(7, 3, 3))
    assert np.asarray(coordinates.log_det3(jnp.asarray(D))) == pytest.approx(
        np.linalg.slogdet(D)[1]
    )


@pytest.mark.parametrize("curve", ["burr", "power"])
def test_log_determinant_is_that_of_the_whole_map(curve):
    study, options = make_study(effects=1), Options(curve)
    sites = make_sites(study, options)
    reference = coordinates.make_reference(study, sites, curve)
    rng = np.random.default_rng(2)
    u = coordinates.coordinates_at(sites, study, options)
    u |= {"xi_recipe": jnp.asarray(rng.normal(0, 0.5, (J, 3)))}
    u |= {"xi_run": jnp.asarray(rng.normal(0, 0.5, (R, 3)))}
    u["log_wander_sd"] += 0.3  # away from the reference in what the whitening depends on
    u["mu"] += 0.2
    flat, unravel = ravel_pytree(u)

    @jax.jit
    def whole(v):
        sites, log_det = coordinates.natural(unravel(v), study, reference, options)
        return ravel_pytree(sites)[0], log_det

    columns = []
    for i in range(flat.size):  # central differences
        step = np.zeros(flat.size)
        step[i] = 1e-5
        columns.append((whole(flat + step)[0] - whole(flat - step)[0]) / 2e-5)
    _, log_det = np.linalg.slogdet(np.stack(columns, -1))
    assert float(whole(flat)[1]) == pytest.approx(log_det, abs=1e-6)


def test_at_a_mode_the_posterior_is_nearly_a_unit_normal():
    study, options = make_study(), Options("sigmoid")
    mode = bayes.find_mode(study, options)
    template = coordinates.template(study, options)
    marks = {k: np.full(x.shape, k.startswith("xi_")) for k, x in template.items()}
    xi = np.asarray(ravel_pytree(marks)[0])
    curvature = np.linalg.inv(np.asarray(mode.scale @ mode.scale.T))[np.ix_(xi, xi)]
    eigenvalues = np.linalg.eigvalsh(curvature)
    assert 0.3 < eigenvalues[0] and eigenvalues[-1] < 3
    value, gradient = bayes._value_and_grad(mode.center, study, mode.reference, options)
    assert np.isfinite(value) and np.abs(np.asarray(gradient)[xi]).max() < 0.5  # in sds


@pytest.mark.parametrize("noise", ["normal", "student", "betabinomial"])
def test_curvature_is_that_of_moving_one_coordinate_at_a_time(noise):
    # recipes of 1 to 3 runs; starts of one run, of one recipe's runs, of two recipes' runs
    once, options = make_study(), Options("burr", noise)
    wide = {k: jnp.concatenate([x, x * 0.97]) for k, x in once._asdict().items() if k[-2:] == "RM"}
    wide |= {"recipe_R": jnp.array([0, 0, 1, 2, 2, 2]), "start_R": jnp.array([0, 1, 0, 2, 2, 3])}
    wide |= {"design_JE": jnp.zeros((3, 0)), "start_mean_S": jnp.linspace(-1, -0.5, 4)}
    wide |= {"start_sd_S": jnp.full(4, 0.1), "start_noise_S": jnp.zeros(4)}
    study = once._replace(**wide)
    reference, v = bayes._relinearise(study, options, bayes.first_sites(study, options))
    rng = np.random.default_rng(3)
    v = np.asarray(v) + rng.normal(0, 0.1, v.size)

    def gradient(i, step):
        return np.asarray(
            bayes._value_and_grad(v + step * np.eye(v.size)[i], study, reference, options)[1]
        )

    H = np.array([(gradient(i, 1e-4) - gradient(i, -1e-4)) / 2e-4 for i in range(v.size)])
    blocks, _ = bayes._blocks(study, options)
    every = np.ones(v.size, bool)
    got = bayes._curvature(study, options, reference, v, blocks, every)
    assert got == pytest.approx((H + H.T) / 2, abs=1e-5 * np.abs(H).max())
    assert blocks.slot_D[blocks.recipe_D >= 0].max() < 16  # many coordinates move together
