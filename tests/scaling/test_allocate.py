"""Allocation against posteriors whose answers are known by hand or in closed form."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.special import logit
from scipy.stats import norm

import rlx.scaling as sc
from rlx.scaling import allocate, worth
from rlx.scaling import curve as curves
from rlx.scaling.draws import Curves
from rlx.scaling.families import FAMILIES
from tests.scaling.drawn import R0, TIGHT, X, posterior, spread

# ---------------------------------------------------------------- value of information


def test_preposterior_is_the_closed_form_of_two_normals():
    # U_0 - U_1 ~ N(d, s^2), seen with noise v: E max = m_1 + t psi(d / t), t^2 = s^4 / (s^2 + v^2)
    rng = np.random.default_rng(1)
    n, s, v = 200_000, 0.03, 0.04
    for d in (0.0, 0.02, -0.05):
        U = np.stack([0.6 + d + s * rng.normal(size=n), np.full(n, 0.6)], axis=1)
        Z = (U[:, 0] + v * rng.normal(size=n))[:, None]
        t = s**2 / np.hypot(s, v)
        exact = 0.6 + d * norm.cdf(d / t) + t * norm.pdf(d / t)
        assert worth.preposterior(Z, U) == pytest.approx(exact, abs=3e-4)


def test_data_that_say_nothing_are_worth_nothing():
    rng = np.random.default_rng(2)
    gains = []
    for _ in range(200):
        U, Z = 0.6 + 0.05 * rng.normal(size=(400, 6)), rng.normal(size=(400, 9))
        gains.append(worth.preposterior(Z, U) - U.mean(0).max())
    assert np.mean(gains) < 2 * np.std(gains) / 200**0.5


def test_the_regression_agrees_with_importance_weights():
    # ceilings skewed by the ridge with C_mid, data a run's later curve: E[A | y] by reweighting
    rng = np.random.default_rng(3)
    n, sd = 20_000, 0.01
    c = 0.4 * rng.normal(size=n)
    A = np.stack([0.6 + 0.08 * np.tanh(c + 0.5 * rng.normal(size=n)), np.full(n, 0.62)], axis=1)
    C_T = np.array([2.0, 3.0, 4.0])
    mean_XT = curves.sigmoid(C_T, A=A[:, :1], B=1.5, C_mid=2 * np.exp(c)[:, None], R0=R0)
    y_XT = mean_XT + sd * rng.normal(size=mean_XT.shape)
    got = worth.preposterior(allocate._blocks(y_XT), A) - A.mean(0).max()
    gains = []
    for y_T in y_XT[:1500]:
        log_w = -0.5 * (((y_T - mean_XT) / sd) ** 2).sum(1)
        w = np.exp(log_w - log_w.max())
        post = w @ A / w.sum()
        gains.append(post.max() - post[A.mean(0).argmax()])
    exact, error = np.mean(gains), np.std(gains) / 1500**0.5
    assert exact > 20 * error / 4
    assert got == pytest.approx(exact, abs=0.1 * exact + 3 * error)


def test_evaluations_have_the_moments_of_curve_wander_and_noise():
    n, sigma, length, noise = 40_000, 0.02, 2.0, 0.01
    one = np.ones((n, 1))
    p = {"A": 0.6 * one, "B": 2.0 * one, "C_mid": 3.0 * one, "R0": R0 * one, "kappa": one}
    curve = Curves(FAMILIES["burr"], p)
    source = allocate.Source(
        lambda _, C_T: curve.at(C_T)[:, 0],
        0.05 * one,
        1e-4 * one,
        noise * one,
        np.full(n, sigma),
        np.full(n, length),
    )
    y_XT = source.evaluations(np.random.default_rng(0), 0, 4.0, 0.5, 0.5, 3)
    rho = np.exp(-1 / length)
    C = np.array([4.5, 5.0, 5.5])
    mean = curves.sigmoid(C, A=0.6, B=2.0, C_mid=3.0, R0=R0) + 0.05 * rho ** np.arange(1, 4)
    np.testing.assert_allclose(y_XT.mean(0), mean, atol=6e-4)
    var = sigma**2 + rho ** (2 * np.arange(1, 4)) * (1e-4 - sigma**2)
    want = np.diag(var + noise**2)
    want[0, 1] = want[1, 0] = rho * var[0]
    want[1, 2] = want[2, 1] = rho * var[1]
    want[0, 2] = want[2, 0] = rho**2 * var[0]
    np.testing.assert_allclose(np.cov(y_XT.T), want, atol=1.2e-5)
    # a step of four gaps pools four evaluations, and forgets four times as fast
    pooled = source.evaluations(np.random.default_rng(0), 0, 4.0, 2.0, 0.5, 1)
    var = sigma**2 + rho**8 * (1e-4 - sigma**2) + noise**2 / 4
    assert pooled.var() == pytest.approx(var, rel=0.03)


def test_blocks_are_standardised_means_of_neighbours():
    y = np.random.default_rng(0).normal(size=(50, 7))
    Z = allocate._blocks(y)
    want = np.stack([y[:, :3].mean(1), y[:, 3:5].mean(1), y[:, 5:].mean(1)], axis=1)
    np.testing.assert_allclose(Z, (want - want.mean(0)) / want.std(0), atol=1e-12)
    assert allocate._blocks(y[:, :2]).shape == (50, 2)
    assert (allocate._blocks(np.ones((5, 1))) == 0).all()


# ---------------------------------------------------------------- allocate


def rows(table, kind):
    return table[table["kind"] == kind].set_index("name")


def test_ceilings_that_are_known_need_no_data():
    table = posterior([[0.6, 0.6, 0.5]], 4.0, 1.5, noise_sd=0.01).allocate(8.0)
    assert (table["value"] == 0).all() and (table["compute"] == 0).all()
    assert table.attrs["value"] == table.attrs["spent"] == table.attrs["perfect"] == 0
    assert set(table["action"]) == {"stop", "no seed"}


def test_the_value_of_one_run_in_closed_form():
    # R(8 m) for long: the run sits on its ceiling, so y = A + noise; T = 4 a chunk of 8 / 8
    s, v, d = 0.02, 0.03, -0.01
    A = np.stack([spread([0.6 + d], [s])[:, 0], np.full(X, 0.6)], axis=1)
    fit = posterior(A, 1e-6, 2.0, noise_sd=v)
    table = rows(fit.allocate(8.0, chunk=8.0), "run")
    # 4 pooled evaluations of 2 gaps each: sd v / sqrt(2), their mean v / sqrt(8)
    t = s**2 / np.hypot(s, v / 8**0.5)
    exact = d * norm.cdf(d / t) + t * norm.pdf(d / t)
    assert table.loc["j0-0", "value"] == pytest.approx(exact, rel=0.05)
    assert table.loc["j0-0", "value_per_compute"] == pytest.approx(exact / 8, rel=0.05)
    assert table.loc["j1-1", "value"] == 0 and table.loc["j1-1", "action"] == "stop"
    # its seeds are all alike: the 8 evaluations of a new one say the same, at the same compute
    seed = rows(fit.allocate(8.0, chunk=8.0), "recipe").loc["j0"]
    assert seed["value"] == pytest.approx(exact, rel=0.07)
    assert seed["compute"] + table.loc["j0-0", "compute"] == 8
    # with more graded samples the value rises to that of knowing A
    sure = fit.allocate(8.0, chunk=8.0, trials=1e9)
    perfect = d * norm.cdf(d / s) + s * norm.pdf(d / s)
    assert rows(sure, "run").loc["j0-0", "value"] == pytest.approx(perfect, rel=0.06)
    assert sure.attrs["perfect"] == pytest.approx(perfect, rel=0.06)


def test_more_evaluations_of_a_run_are_worth_more():
    # a steep curve: nothing is to be seen before C = 6, the ceiling after the last compute, 8
    s, v, d = 0.02, 0.06, -0.01
    A = np.stack([spread([0.6 + d], [s])[:, 0], np.full(X, 0.6)], axis=1)
    fit = posterior(A, 6.0, 40.0, noise_sd=v)
    offers = allocate._run_offers(fit, np.array([True, False]), 8.0, 4.0, None)
    assert [(offer.index, offer.compute) for offer in offers] == [(0, [4.0, 8.0])]
    problem = worth.Problem(A, np.ones(2, bool), offers)
    for size, T in ((0, 4), (1, 8)):
        t = s**2 / np.hypot(s, v / T**0.5)
        exact = d * norm.cdf(d / t) + t * norm.pdf(d / t)
        assert problem.value({0: size}) == pytest.approx(exact, rel=0.15)


def test_what_is_within_the_error_is_not_bought():
    z, e = np.random.default_rng(1).normal(size=(2, X, 1))
    tiny = np.c_[0.6 + 1e-4 * z, np.full(X, 0.6)]
    problem = worth.Problem(tiny, np.ones(2, bool), [worth.Offer("run", 0, [1.0], [z])])
    assert 0 < problem.value({0: 0}) < 1e-4 and problem.greedy(1.0) == {}
    rare = np.c_[0.58 + 0.04 * z[:100], np.full(100, 0.6)]  # few draws: an error of 0.001
    for noise, plan in ((1.0, {0: 0}), (2.5, {})):
        offers = [worth.Offer("run", 0, [1.0], [z[:100] + noise * e[:100]])]
        problem = worth.Problem(rare, np.ones(2, bool), offers)
        gain = np.maximum(rare[:, 0], rare[:, 1]) - 0.6
        assert problem.error() == pytest.approx(gain.std() / 10)
        assert problem.value({0: 0}) > 1e-4 and problem.greedy(1.0) == plan


def test_two_near_equals_get_the_budget_and_the_worst_is_stopped():
    A = spread([0.6, 0.605, 0.4], [0.04, 0.04, 0.02])
    fit = posterior(A, 4.0, 1.5, noise_sd=0.01, recipe_of_run=[0, 0, 1, 1, 2, 2])
    table = fit.allocate(6.0)
    run = rows(table, "run")
    assert (run["action"].iloc[4:] == "stop").all()
    assert run["value"].iloc[4:].max() == 0
    bought = run[run["action"] == "continue"]
    assert {name[:2] for name in bought.index} == {"j0", "j1"}
    assert (
        table["compute"].sum() == pytest.approx(table.attrs["spent"]) and table.attrs["spent"] <= 6
    )
    assert table.attrs["value"] >= run["value"].max()
    assert table.attrs["value"] <= table.attrs["perfect"]
    best = rows(table, "recipe")["p_best"]
    share = np.bincount(A.argmax(1), minlength=3) / X
    np.testing.assert_allclose(best, share, atol=1e-12)
    np.testing.assert_allclose(run["p_best"], np.repeat(share, 2), atol=1e-12)
    np.testing.assert_allclose(rows(table, "recipe")["payoff"], A.mean(0), rtol=1e-9)


def test_a_run_that_left_its_curve_is_never_continued():
    A = spread([0.6, 0.605, 0.7], [0.04, 0.04, 0.04])
    fit = posterior(A, 4.0, 1.5, noise_sd=0.01, departed=[0, 3], recipe_of_run=[0, 0, 1, 2])
    table = fit.allocate(8.0)
    run, recipe = rows(table, "run"), rows(table, "recipe")
    assert run["status"].tolist() == ["departed", "ok", "ok", "departed"]
    assert run["action"].iloc[[0, 3]].tolist() == ["stop", "stop"]
    assert run["value"].iloc[[0, 3]].isna().all() and run["value"].iloc[[1, 2]].notna().all()
    # recipe 2 has no run left: neither the best nor worth a seed
    assert recipe["p_best"].iloc[2] == 0 and np.isnan(recipe["value"].iloc[2])
    assert recipe["p_best"].sum() == pytest.approx(1)
    every = posterior(A, 4.0, 1.5, noise_sd=0.01, departed=[0, 1, 2])
    with pytest.raises(sc.InputError, match="runs=all: departed from their curves"):
        every.allocate(8.0)


def test_a_new_seed_is_bought_where_only_it_can_tell():
    # runs on their plateau, their own ceilings known: continuing repeats what all draws say. The
    # typical ceiling of recipe 0 is unknown, as its seeds differ; a new one says something
    rng = np.random.default_rng(5)
    A = spread([0.59, 0.6], [0.03, TIGHT])
    run_A = np.stack([np.full(X, 0.61), np.full(X, 0.6)], axis=1) + TIGHT * rng.normal(size=(X, 2))
    fit = posterior(A, 0.1, 2.0, noise_sd=0.005, seed_sd=0.05, run_A_XR=run_A)
    table = fit.allocate(8.0)
    assert rows(table, "recipe")["action"].tolist() == ["add seed", "no seed"]
    assert rows(table, "recipe")["compute"].tolist() == [8.0, 0.0]
    assert (rows(table, "run")["action"] == "stop").all()
    # with 7.9 a seed cannot be had
    less = fit.allocate(7.9)
    assert rows(less, "recipe")["value"].isna().all() and less.attrs["spent"] == 0


def test_best_final_pays_the_pass_rate_at_the_horizon():
    # ceilings differ, but at C = 10 the quick one leads: 0.2 + 0.3 * 10 / 11 against 0.2 + 0.12
    fit = posterior([[0.5, 0.8]], [1.0, 40.0], 1.0, noise_sd=0.01)
    table = fit.allocate(4.0, objective="best_final", horizon=10.0)
    run, recipe = rows(table, "run"), rows(table, "recipe")
    assert run["payoff"].tolist() == pytest.approx([0.2 + 3 / 11, 0.32])
    assert run["p_best"].tolist() == recipe["p_best"].tolist() == [1, 0]
    far = fit.allocate(4.0, objective="best_final", horizon=1e4)
    assert rows(far, "run")["p_best"].tolist() == [0, 1]
    default = fit.allocate(4.0, objective="best_final")
    assert default.attrs["horizon"] == 16 and default.attrs["chunk"] == 0.5
    assert rows(fit.allocate(4.0), "run")["p_best"].tolist() == [0, 1]  # the higher ceiling


def test_best_final_sums_runs_and_values_a_new_seed_as_one_more_to_choose():
    # seeds of recipe 0 spread by 0.05 in A: buying one more gives the better of two, sd known
    A = np.full((X, 1), 0.6)
    sd_logit = 0.2
    fit = posterior(A, 1e-3, 2.0, noise_sd=1e-3, seed_sd=sd_logit, recipe_of_run=[0, 0])
    table = fit.allocate(8.0, objective="best_final")
    new = R0 + (1 - R0) / (
        1 + np.exp(-logit(0.5) - sd_logit * np.random.default_rng(0).normal(size=10**6))
    )
    exact = np.maximum(new, 0.6).mean() - 0.6
    row = rows(table, "recipe").iloc[0]
    assert row["action"] == "add seed" and row["p_best"] == 1
    assert row["value"] == pytest.approx(exact, rel=0.1)
    assert row["payoff"] == pytest.approx(new.mean(), abs=2e-3)
    assert table.attrs["perfect"] + table.attrs["error"] >= table.attrs["value"]


def test_the_plan_looks_at_more_than_one_chunk():
    # one chunk cannot change the choice, four can: what counts is the best value per compute
    compute = [1.0, 2.0, 4.0]
    U = np.stack([0.6 + 0.02 * np.sign(np.arange(X) % 4 - 0.5), np.full(X, 0.605)], axis=1)
    silent, loud = np.zeros((X, 1)), U[:, :1]
    offers = [worth.Offer("run", 0, compute, [silent, silent, loud])]
    problem = worth.Problem(U, np.ones(2, bool), offers)
    assert problem.greedy(4.0) == {0: 2} and problem.greedy(3.9) == {}
    assert problem.alone() == {("run", 0): (4.0, pytest.approx(problem.value({0: 2})))}


def test_the_plan_buys_by_value_per_compute_and_within_the_budget():
    rng = np.random.default_rng(0)
    U = np.c_[0.6 + 0.03 * rng.normal(size=(X, 2)), np.full(X, 0.61)]
    offers = [
        worth.Offer("run", 0, [1.0, 2.0], [U[:, :1] + 0.05 * rng.normal(size=(X, 1)), U[:, :1]]),
        worth.Offer("run", 1, [3.0], [U[:, 1:2]]),
    ]
    problem = worth.Problem(U, np.ones(3, bool), offers)
    rate = {k: problem.value({0: k}) / (k + 1) for k in (0, 1)}
    assert rate[1] > rate[0] and problem.value({1: 0}) / 3 < rate[1]
    assert problem.greedy(2.0) == {0: 1} and problem.greedy(4.9) == {0: 1}
    assert problem.greedy(5.0) == {0: 1, 1: 0}
    assert problem.greedy(1.0) == {0: 0} and problem.greedy(0.9) == {}
    both = problem.value({0: 1, 1: 0})
    assert both == pytest.approx(problem.perfect(), rel=1e-3)  # all is known


def test_a_plan_grows_at_the_price_of_what_it_adds():
    rng = np.random.default_rng(0)
    U = np.c_[0.6 + 0.03 * rng.normal(size=(X, 2)), np.full(X, 0.61)]
    rough, seen = U + 0.02 * rng.normal(size=U.shape), U[:, :1]
    grows = worth.Problem(
        U, np.ones(3, bool), [worth.Offer("run", 0, [1.0, 2.0], [rough[:, :1], seen])]
    )
    assert grows.value({0: 0}) > grows.value({0: 1}) / 2
    assert grows.greedy(2.0) == {0: 1} and grows.greedy(1.9) == {0: 0}
    # the second is worth less, and more per compute; only one of them can be had
    offers = [
        worth.Offer("run", 0, [10.0], [seen]),
        worth.Offer("run", 1, [2.0], [rough[:, 1:2]]),
    ]
    assert worth.Problem(U, np.ones(3, bool), offers).greedy(10.0) == {1: 0}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"budget": 0.0}, "budget=0.0: not a positive compute; give a compute above 0"),
        ({"budget": float("nan")}, "budget=nan: not a positive compute"),
        (
            {"budget": 1.0, "objective": "win"},
            "objective=win: unknown; use pick_best or best_final",
        ),
        ({"budget": 1.0, "chunk": 2.0}, r"chunk=2.0: not in \[budget / 64, budget\]"),
        ({"budget": 1.0, "chunk": 0.001}, r"chunk=0.001: not in"),
        ({"budget": 1.0, "horizon": 7.0}, "horizon=7.0: not beyond the last compute, 8"),
        ({"budget": 1.0, "trials": 0}, "trials=0: no graded samples"),
    ],
)
def test_allocate_refuses(options, line):
    with pytest.raises(sc.InputError, match=line):
        posterior([[0.5, 0.6]], 2.0, 1.0).allocate(**options)


# ---------------------------------------------------------------- a fitted study


@pytest.fixture(scope="module")
def study():
    """8 recipes of 2 runs on three axes: loss b gains 0.15 of ceiling, size 32 doubles C_mid."""
    rng = np.random.default_rng(0)
    out = []
    for loss, size, lr, seed in (
        (loss, size, lr, seed)
        for loss in ("a", "b")
        for size in (8, 32)
        for lr in (1, 2)
        for seed in (0, 1)
    ):
        A = (0.55 if loss == "a" else 0.7) + 0.01 * rng.normal()
        C_mid = (1.0 if size == 8 else 2.0) * np.exp(0.05 * rng.normal())
        C = np.linspace(0.25, 4, 16)
        p = curves.sigmoid(np.r_[0.0, C], A=A, B=1.6, C_mid=C_mid, R0=0.25)
        passes = rng.binomial(4000, p)
        passes[0] = 1000
        out.append(
            pd.DataFrame(
                {"recipe": "r", "loss": loss, "size": size, "lr": lr, "seed": seed}
                | {"C": np.r_[0.0, C], "passes": passes, "trials": 4000}
            )
        )
    table = pd.concat(out, ignore_index=True)
    columns = {"recipe": "recipe", "seed": "seed", "compute": "C", "passes": "passes"}
    evals = sc.Evals.from_frame(table, trials="trials", axes=["loss", "size", "lr"], **columns)
    return sc.fit(evals, method="laplace")


def test_axes_of_a_fitted_study(study):
    loss, size, lr = (study.effects(axis) for axis in ("loss", "size", "lr"))
    assert loss["verdict"].tolist() == ["ceiling mover"] and loss["matched"].tolist() == [4]
    assert abs(loss["dA_q50"].iloc[0] - 0.15) < 0.03
    assert size["verdict"].tolist() == ["efficiency shaper"]
    assert size["reference"].tolist() == ["8"] and size["level"].tolist() == ["32"]
    assert abs(np.log(size["compute_ratio_q50"].iloc[0] / 2)) < 0.15
    assert lr["level"].tolist() == ["2"] and (lr[["p_raises", "p_lowers"]] < 0.5).all(axis=None)
    assert (loss["prior_share"] < 0.5).all() and (loss["extrapolation"] < 2).all()


def test_allocation_of_a_fitted_study_takes_a_second(study):
    start = time.process_time()
    table = study.allocate(16.0)
    assert time.process_time() - start < 6  # about half a second on an idle core
    assert len(table) == 16 + 8 and table["payoff"].between(0, 1).all()
    lower = table["name"].str.contains("-a-|loss=a")  # of the ceilings: nobody asks about those
    assert lower.sum() == len(table) / 2 and not (table["compute"] > 0)[lower].any()
    assert (table["p_best"][lower] == 0).all() and table.attrs["spent"] > 0
    gain = study.gain(16.0)
    np.testing.assert_allclose(table["gain_mean"].iloc[:16], gain["mean"])
    np.testing.assert_allclose(table["gain_q95"].iloc[:16], gain["q95"])
    assert table["status"].iloc[:16].tolist() == study.status("run")
