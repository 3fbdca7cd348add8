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
from rlx.scaling.infer import best_curve
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


TWO = {"kappa": 0.6, "second": 0.3, "delay": 1.4, "sharp": 2.0}
DIP = {"kappa": 0.8, "fall": 0.5, "lead": 1.5}
OWN = {
    "burr": {"kappa": 0.6},
    "sigmoid": {},
    "power": {},
    "late": {"kappa": 2.0, "omega": 0.3},
    "two_rises": TWO,
    "dip": DIP,
}


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


def test_two_rises_is_the_weighted_sum_of_its_rises():
    C = np.array([0.0, 1.0, 7.0, 30.0, 1e4])
    p = {"A": 0.8, "B": 1.5, "C_mid": 7.0, "R0": 0.2}
    first = FAMILIES["burr"].at(C, **p, kappa=0.6)
    then = p | {"B": 1.5 * 2.0, "C_mid": 7.0 * np.exp(1.4)}
    second = FAMILIES["sigmoid"].at(C, **then)
    got = FAMILIES["two_rises"].at(C, **p, **TWO)
    np.testing.assert_allclose(got, 0.7 * first + 0.3 * second, rtol=1e-12)
    gap = 0.8 - FAMILIES["two_rises"].at([1e8, 1e9], **p, **TWO)
    tail = FAMILIES["two_rises"].tail(B=1.5, **TWO)
    assert np.log10(gap[0] / gap[1]) == pytest.approx(tail, rel=1e-2)


def test_dip_falls_by_its_share_of_R0_then_rises_to_A():
    dip, p = FAMILIES["dip"], {"A": 0.8, "B": 1.5, "C_mid": 1e3, "R0": 0.2}
    C, far = np.r_[0.0, np.geomspace(1e-3, 1e8, 2000)], DIP | {"lead": 5.0}
    R = dip.at(C, **p, **far)
    assert R[0] == 0.2 and R[-1] == pytest.approx(0.8, abs=1e-3)
    assert dip.at(1.0, **p, **DIP | {"lead": 50.0}) == pytest.approx(0.1, abs=1e-3)  # half of R0
    low = int(R.argmin())
    assert 0.1 < R[low] < 0.12
    assert (np.diff(R[: low + 1]) <= 0).all() and (np.diff(R[low:]) > 0).all()
    none = dip.at(C, **p, **DIP | {"fall": 0.0})
    np.testing.assert_array_equal(none, FAMILIES["burr"].at(C, **p, kappa=0.8))


def test_compute_to_of_dip_is_where_it_rises_through_the_level():
    p = {"A": 0.8, "B": 1.5, "C_mid": 1e3, "R0": 0.2}
    C = FAMILIES["dip"].compute_to([0.25, 0.6, 0.2, 0.15, 0.8, 0.9], **p, **DIP)
    np.testing.assert_allclose(FAMILIES["dip"].at(C[:2], **p, **DIP), [0.25, 0.6], rtol=1e-9)
    assert C[0] > FAMILIES["burr"].compute_to(0.25, **p, kappa=0.8)
    assert C[2:].tolist() == [0.0, 0.0, np.inf, np.inf]


SHARP = TWO | {"kappa": 1.0, "delay": 1.6, "sharp": 4.0}  # two rises, far apart


@pytest.mark.parametrize(
    ("family", "own", "R0"), [("two_rises", SHARP, 0.25), ("dip", DIP | {"fall": 0.6}, 0.4)]
)
def test_evidence_finds_the_family_and_its_fit_the_parameters(family, own, R0):
    p = {"B": 1.5, "C_mid": 3.0, "R0": R0, **own}
    recipes = {f"A{A}": {"A": A, **p} for A in (0.65, 0.75, 0.85)}
    evals, _ = sc.simulate(recipes, family=family, seeds=3, points=24, compute=30.0, seed=1)
    found = sc.evidence(evals).set_index("curve")["over_first"]
    assert found.idxmax() == family and found[family] > 15 and found["burr"] == 0
    fit = sc.fit(evals, curve="auto", method="laplace")
    assert fit.attrs["curve"] == family and f"curve={family}, by log evidence" in fit.attrs["notes"]
    low, high = fit.param("asymptote").quantile([0.05, 0.95], ["chain", "draw"]).values
    truth = np.array([0.65, 0.75, 0.85])
    assert ((low < truth) & (truth < high)).all() and (high - low).mean() < 0.1
    burr = sc.fit(evals, method="laplace")
    low, high = burr.param("asymptote").quantile([0.05, 0.95], ["chain", "draw"]).values
    assert ((truth < low) | (high < truth)).any()  # burr cannot say it
    (line,) = [x for x in burr.check(["two_rises", "dip"]).problems if x.startswith("curve=")]
    assert f"{family} explains the evaluations better" in line and f"curve={family}" in line
    share = fit.param({"two_rises": "second", "dip": "fall"}[family]).mean(["chain", "draw"])
    truth = own["second" if family == "two_rises" else "fall"]
    assert np.abs(share.values - truth).max() < (0.08 if family == "two_rises" else 0.3)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_study_of_sigmoids_stays_burr(seed):
    p = {"B": 1.5, "C_mid": 3.0, "R0": 0.25}
    recipes = {f"A{A}": {"A": A, **p} for A in (0.65, 0.75, 0.85)}
    evals, _ = sc.simulate(recipes, seeds=3, points=24, compute=30.0, seed=seed)
    fit = sc.fit(evals, curve="auto", method="laplace")
    assert fit.attrs["curve"] == "burr"
    assert not [x for x in fit.check(["two_rises", "dip"]).problems if x.startswith("curve=")]


def test_evidence_is_the_integral_of_likelihood_times_prior():
    """One run whose curve is known but for R0: the other parameters are held by narrow priors."""
    priors = Priors(
        mean_a=(0.0, 1e-4), mean_c=(0.0, 1e-4), mean_b=(0.4, 1e-4), log_kappa=(0.0, 1e-4),
        recipe_sd_a=(1e-4, 1e-3), recipe_sd_c=(1e-4, 1e-3), recipe_sd_b=(1e-4, 1e-3),
        seed_sd_a=(1e-4, 1e-3), seed_sd_c=(1e-4, 1e-3), seed_sd_b=(1e-4, 1e-3),
        wander_sd=(1e-6, 1e-3), wander_length=(3.0, 1e-3), start=(0.0, 0.3),
    )  # fmt: skip
    C, se = np.array([1.0, 2.0, 4.0, 8.0]), 0.02
    y = np.array([0.35, 0.44, 0.53, 0.57])
    table = {"run": "r", "recipe": "r", "seed": 0, "compute": C, "value": y, "stderr": se}
    evals = sc.Evals.from_frame(pd.DataFrame(table))
    got = sc.evidence(evals, ["burr"], priors=priors)["log_evidence"][0]
    logit_R0 = np.linspace(-4, 4, 4001)
    R0 = expit(logit_R0)[:, None]
    share = expit(np.exp(0.4) * np.log(C / np.median(C)))
    mean = R0 + (1 - R0) * 0.5 * share
    log_p = stats.norm.logpdf(y, mean, se).sum(1)
    log_p += stats.norm.logpdf(logit_R0, np.log(y[0] / (1 - y[0])), 0.3)
    assert got == pytest.approx(np.log(np.trapezoid(np.exp(log_p), logit_R0)), abs=0.05)


@pytest.mark.parametrize(
    ("over", "best"),
    [([0, 2.9, -1], "a"), ([0, 3.1, -1], "b"), ([0, 4, 5], "c"), ([0, np.nan, 1], "a")]
    + [([0, np.nan, 4], "c"), ([np.nan] * 3, "a")],
)
def test_another_family_needs_odds_of_twenty(over, best):
    assert best_curve(pd.DataFrame({"curve": list("abc"), "over_first": over})) == best


def test_evidence_of_an_unknown_family():
    with pytest.raises(sc.InputError, match="curve=cubic: not available; use curve=burr"):
        sc.evidence(None, ["cubic"])


def late_sites(study, curve="late"):
    sites = make_sites(study, Options("burr"))
    own_J = np.random.default_rng(5).normal(-1.0, 0.5, J)
    more = {
        "late": {"logit_omega": -1.5, "log_omega_sd": 0.2, "logit_omega_recipe": own_J},
        "kappas": {"log_kappa_recipe": own_J},
        "dip": {"logit_fall_mean": -1.5, "logit_fall": own_J, "log_lead": 0.4},
    }[curve]
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
    ("curve", "site"),
    [
        ("late", "logit_omega_recipe"),
        ("kappas", "log_kappa_recipe"),
        ("dip", "logit_fall"),
    ],
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
