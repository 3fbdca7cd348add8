"""A family is one object: share, inverse, and all that follows from it for one made up here."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import expit

import rlx.scaling as sc
from rlx.scaling import bayes, coordinates, model
from rlx.scaling.families import FAMILIES, Burr, Family, Own
from rlx.scaling.model import Options
from rlx.scaling.priors import NUMPY, Priors, Site, prior_theta
from tests.scaling.test_model import RECIPE_R, J, R, dense_normal, make_sites, make_study


class Late(Family):
    """Burr, and with a weight of every recipe's own a logistic that comes later."""

    name = "late"
    own = {"kappa": Own("log_kappa", "exp"), "omega": Own("logit_omega_recipe", "logistic")}
    sites = (
        Site("log_kappa", (), lambda priors, *_: priors.log_kappa),
        Site("logit_omega", (), lambda *_: (-2.0, 1.0)),
        Site("log_omega_sd", (), lambda *_: (0.0, 0.3)),
        Site(
            "logit_omega_recipe",
            ("recipe",),
            lambda _, sites, ops: (sites["logit_omega"], ops.exp(sites["log_omega_sd"])),
        ),
    )

    def share(self, x, ops, *, B, kappa, omega):
        burr = FAMILIES["burr"].share(x, ops, B=B, kappa=kappa)
        return (1 - omega) * burr + omega * ops.logistic(0.8 * (x - np.log(4.0)))


class Kappas(Burr):
    """Burr with a kappa of every recipe's own, which its level coordinates follow."""

    name = "kappas"
    own = {"kappa": Own("log_kappa_recipe", "exp")}
    sites = (
        *Burr.sites,
        Site("log_kappa_recipe", ("recipe",), lambda _, sites, ops: (sites["log_kappa"], 0.3)),
    )


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setitem(FAMILIES, "late", Late())
    monkeypatch.setitem(FAMILIES, "kappas", Kappas())
    with jax.enable_x64(True):
        yield FAMILIES["late"]


OWN = {"burr": {"kappa": 0.6}, "sigmoid": {}, "power": {}, "late": {"kappa": 2.0, "omega": 0.3}}


@pytest.mark.parametrize("name", OWN)
def test_share_is_one_function_in_numpy_and_jax(name, late):
    family, x = FAMILIES[name], np.linspace(-30, 30, 41)
    ours = family.share(x, NUMPY, B=1.7, **OWN[name])
    theirs = family.share(jnp.asarray(x), model.JAX, B=1.7, **OWN[name])
    np.testing.assert_allclose(np.asarray(theirs), ours, rtol=1e-12)
    assert (np.diff(ours) >= 0).all() and ours[0] < 1e-9 and ours[-1] > 1 - 1e-9


@pytest.mark.parametrize("name", OWN)
def test_inverse_by_bracketing_undoes_the_share_and_is_the_closed_form(name, late):
    family, left = FAMILIES[name], np.log([[0.999, 0.5, 0.01], [0.9, 0.2, 1e-6]])
    B = np.array([[0.4], [3.0]])
    x = Family.inverse(family, left, NUMPY, B=B, **OWN[name])
    np.testing.assert_allclose(
        1 - family.share(x, NUMPY, B=B, **OWN[name]), np.exp(left), rtol=1e-8
    )
    np.testing.assert_allclose(family.inverse(left, NUMPY, B=B, **OWN[name]), x, atol=1e-8)


def test_compute_to_of_a_family_without_a_closed_inverse(late):
    p = {"A": 0.8, "B": 1.5, "C_mid": 7.0, "R0": 0.2, "kappa": 1.0, "omega": [0.0, 0.4]}
    C = late.compute_to(0.6, **p)
    np.testing.assert_allclose(late.at(C, **p), 0.6, rtol=1e-10)
    assert C[0] == pytest.approx(7.0 * (0.4 / 0.2) ** (1 / 1.5))  # the sigmoid's
    assert C[1] > C[0]
    assert late.compute_to([0.8, 0.9, 0.2, 0.1], **p | {"omega": 0.3}).tolist() == [
        np.inf,
        np.inf,
        0.0,
        0.0,
    ]


def test_a_level_beyond_all_computes_is_never_reached(late):
    p = {"A": 0.8, "C_mid": 7.0, "R0": 0.2, "kappa": 1.0, "omega": 0.0}
    C = late.compute_to([0.3, 0.5, 0.7], B=1e-3, **p)  # the odds move by e in e^1000
    assert C[1] == pytest.approx(7.0) and (C[0], C[2]) == (0.0, np.inf)


def late_sites(study, curve="late"):
    sites = make_sites(study, Options("burr"))
    own_J = np.random.default_rng(5).normal(-1.0, 0.5, J)
    more = {"logit_omega": -1.5, "log_omega_sd": 0.2, "logit_omega_recipe": own_J}
    more = more if curve == "late" else {"log_kappa_recipe": own_J}
    return sites | {name: jnp.asarray(x) for name, x in more.items()}


def test_density_of_a_family_with_a_parameter_per_recipe(late):
    study, options = make_study(effects=2), Options("late")
    sites, burr = late_sites(study), make_sites(study, Options("burr"))
    got = log_density(model.scaling_model, (study, options), {}, sites)[0]
    rest = log_density(model.scaling_model, (study, Options("burr")), {}, burr)[0]
    norm = stats.norm.logpdf
    own = norm(-1.5, -2, 1) + norm(0.2, 0, 0.3)
    own += norm(np.asarray(sites["logit_omega_recipe"]), -1.5, np.exp(0.2)).sum()
    mean = []
    for r, (a, c, b) in enumerate(np.asarray(sites["theta_run"])):
        R0 = expit(float(sites["logit_R0"][study.start_R[r]]))
        p = {"A": R0 + (1 - R0) * expit(a), "B": np.exp(b), "C_mid": np.exp(c), "R0": R0}
        omega = expit(float(sites["logit_omega_recipe"][RECIPE_R[r]]))
        C = np.exp(np.asarray(study.log_C_RM[r]))
        mean.append(late.at(C, **p, kappa=np.exp(0.3), omega=omega))
    likelihood = dense_normal(study, sites, mean)
    burr_mean = np.asarray(model.curve_RM(study, burr["theta_run"], burr, "burr"))
    assert float(got - rest) == pytest.approx(
        own + likelihood - dense_normal(study, burr, burr_mean), rel=1e-8
    )


@pytest.mark.parametrize(
    ("curve", "site"), [("late", "logit_omega_recipe"), ("kappas", "log_kappa_recipe")]
)
def test_coordinates_of_a_family_with_a_parameter_per_recipe(curve, site, late):
    study, options = make_study(effects=1), Options(curve)
    sites = late_sites(study, curve)
    reference = coordinates.make_reference(study, sites, curve)
    u = coordinates.coordinates_at(sites, study, options)
    assert u.keys() == coordinates.template(study, options).keys()
    back = coordinates.natural(u, study, reference, options)[0]
    assert back.keys() == sites.keys()
    got, want = (np.asarray(x[site]) for x in (back, sites))
    assert got == pytest.approx(want)
    rng = np.random.default_rng(2)
    u |= {"xi_recipe": jnp.asarray(rng.normal(0, 0.5, (J, 3)))}
    u |= {"xi_run": jnp.asarray(rng.normal(0, 0.5, (R, 3)))}
    u[f"xi_{site}"] += 0.4
    u["log_kappa"] += 0.2
    flat, unravel = ravel_pytree(u)

    @jax.jit
    def whole(v):
        sites, log_det = coordinates.natural(unravel(v), study, reference, options)
        return ravel_pytree(sites)[0], log_det

    steps = 1e-5 * np.eye(flat.size)
    columns = [(whole(flat + step)[0] - whole(flat - step)[0]) / 2e-5 for step in steps]
    _, log_det = np.linalg.slogdet(np.stack(columns, -1))
    assert float(whole(flat)[1]) == pytest.approx(log_det, abs=1e-6)
    blocks, _ = bayes._blocks(study, options)
    marks = {k: np.full(x.shape, k == f"xi_{site}") for k, x in u.items()}
    assert blocks.recipe_D[ravel_pytree(marks)[0]].tolist() == list(range(J))


def test_prior_draws_of_a_parameter_per_recipe():
    drawn = prior_theta(Priors(), np.zeros((3, 0)), Late.sites)
    omega = drawn["logit_omega_recipe"]
    assert drawn["logit_omega"].shape == (4000,) and omega.shape == (4000, 3)
    assert omega.mean() == pytest.approx(-2, abs=0.1)
    between, within = omega.mean(1).var(), omega.var(1, ddof=1).mean()
    assert within == pytest.approx(np.exp(2 * 0.3**2), rel=0.1)  # mean of a log-normal variance
    assert between - within / 3 == pytest.approx(1, rel=0.15)


def test_a_family_made_up_elsewhere_is_fitted_saved_and_asked(late, tmp_path):
    C = np.linspace(0, 8, 17)
    rows = [
        {"recipe": recipe, "compute": c, "trials": 4000, "value": y, "seed": s}
        for recipe, omega in (("a", 0.05), ("b", 0.4))
        for s in (0, 1)
        for c, y in zip(
            C, late.at(C, A=0.8, B=2.0, C_mid=1.5, R0=0.2, kappa=1.0, omega=omega), strict=True
        )
    ]
    fit = sc.fit(sc.Evals.from_frame(pd.DataFrame(rows)), curve="late", method="laplace")
    omega = fit.tree["posterior"]["logit_omega_recipe"]
    assert omega.dims == ("chain", "draw", "recipe")
    low, high = omega.mean(("chain", "draw")).values
    assert high > low + 0.5
    fit.save(tmp_path / "posterior.nc")
    again = sc.load(tmp_path / "posterior.nc")
    for by in ("recipe", "run"):
        C = again.compute_to(0.6, by=by)
        assert np.isfinite(C["q50"]).all()
        near = again.curve(C["q50"].iloc[0], by)[:, :, 0].median().item()
        assert near == pytest.approx(0.6, abs=0.02)
    assert again.summary().equals(fit.summary())
    lost = again.tree.copy()
    lost["posterior"] = lost["posterior"].to_dataset().drop_vars("logit_omega")
    sc.ScalingFit(lost).save(tmp_path / "less.nc")
    with pytest.raises(sc.InputError, match="lacks posterior/logit_omega"):
        sc.load(tmp_path / "less.nc")
