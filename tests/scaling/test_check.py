"""Diagnostics: each finding has its line and its remedy."""

import json

import numpy as np
import pytest
from scipy.stats import chi2, norm

from rlx.scaling import bayes, draws
from rlx.scaling.residuals import directions, residual_tests
from tests.scaling.drawn import C_POINTS, R0, X, posterior
from tests.scaling.hand import hand_fit

SURE = [(0.6, 1.0, 1.5), (0.61, 1.0, 1.5), (0.6, 1.02, 1.5), (0.61, 1.02, 1.5)]
VAGUE = [(0.45, 1.0, 1.5), (0.95, 9.0, 1.5), (0.35, 0.5, 1.5), (0.99, 12.0, 1.5)]


def test_the_sampler_stops_by_the_bounds_of_the_check():
    names = ("MAX_RHAT", "MIN_ESS", "MIN_BFMI")
    assert [getattr(bayes, name) for name in names] == [getattr(draws, name) for name in names]


def test_a_good_fit_has_no_problems():
    check = hand_fit({"one": SURE}).check()
    assert check.ok and str(check).endswith("no problems")
    assert check.sampler["ok"].all() and len(check.sampler) == 4
    row = check.runs.iloc[0]
    share = [(1 + (c / 4.0) ** b) ** -1 for _, c, b in SURE]
    assert row["seen_q50"] == pytest.approx(np.median(share)) and row["past_C_mid"] == 1.0


def test_a_preview_does_not_speak_of_a_sampler():
    fit = hand_fit({"one": SURE}, method="laplace", rhat=np.nan, ess=np.nan)
    assert repr(fit) == "ScalingFit(sigmoid, 1 runs of 1 recipes, laplace, a preview)"
    assert str(fit.check()).split()[0] == "run"  # the header of the table of runs
    sampled = "ScalingFit(sigmoid, 1 runs of 1 recipes, converged: rhat 1.000, ess 1000, 0"
    assert repr(hand_fit({"one": SURE})) == f"{sampled} divergences)"


@pytest.mark.parametrize(
    ("attrs", "start"),
    [
        ({"rhat": 1.05}, "rhat=1.05: at most 1.01"),
        ({"ess": 120.0}, "ess=120: at least 400"),
        ({"divergences": 3}, "divergences=3: none"),
        ({"bfmi": 0.1}, "bfmi=0.1: above 0.3"),
        ({"method": "laplace"}, "method=laplace: a preview"),
        ({"r0": "null"}, "first evaluation at 0.25 of the last C: R0 of one-s0, and the curve"),
        ({"departed": '{"one-s0": -7.0}'}, "run=one-s0: left its curve (z = -7.0)"),
    ],
)
def test_each_problem_says_what_and_what_to_do(attrs, start):
    check = hand_fit({"one": SURE}, **attrs).check()
    assert len(check.problems) == 1 and check.problems[0].startswith(start)
    assert ";" in check.problems[0]


def test_a_ceiling_that_the_prior_decides_is_named():
    fit = hand_fit({"sure": SURE, "vague": VAGUE})
    (problem,) = fit.check().problems
    assert (
        problem.startswith("prior_share>0.5") and "vague-s0" in problem and "sure-s0" not in problem
    )
    assert fit.status("run")[0] == "ok"
    assert fit.status("run")[1].startswith("ceiling not identified")


def test_as_json():
    found = json.loads(json.dumps(hand_fit({"one": SURE}, rhat=1.2).check().as_dict()))
    assert found["ok"] is False and found["runs"][0]["run"] == "one-s0"
    assert found["sampler"][0]["diagnostic"] == "rhat" and found["sampler"][0]["value"] == 1.2


# ------------------------------------------------------------------ what the curves leave over

SHARE_M = C_POINTS**1.5 / (C_POINTS**1.5 + 3.0**1.5)  # sigmoid, C_mid = 3, B = 1.5
NOISE, WANDER, PRIOR_SD = 0.01, 0.008, 0.05
SIGMA_MM = np.diag(np.full(8, NOISE**2 + WANDER**2))  # wander forgotten from one to the next


def exact(values_RM, recipe_of_run, z_X):
    """The posterior of the ceiling A ~ N(0.6, PRIOR_SD), one for all runs and of which the curves
    are linear, given evaluations: draws that have its exact mean and sd."""
    R = len(values_RM)
    weight_M = np.linalg.solve(SIGMA_MM, SHARE_M)
    precision = PRIOR_SD**-2 + R * SHARE_M @ weight_M
    gain = (0.6 - R0) / PRIOR_SD**2 + (values_RM - R0).sum(0) @ weight_M
    A_X = R0 + gain / precision + z_X / np.sqrt(precision)
    J = max(recipe_of_run) + 1
    shape = {"recipe_of_run": recipe_of_run, "wander_sd": WANDER, "noise_sd": NOISE}
    fit = posterior(np.tile(A_X[:, None], (1, J)), [3.0] * J, [1.5] * J, **shape)
    fit.tree["observed_data"]["value"].values[:] = values_RM
    return fit


def studies(count, recipe_of_run=(0, 0, 1), seed=0):
    """Evaluations [R, M] drawn from the prior, and fits of them."""
    rng = np.random.default_rng(seed)
    z_X = norm.ppf((np.arange(X) + 0.5) / X)[rng.permutation(X)]
    for _ in range(count):
        A = rng.normal(0.6, PRIOR_SD)
        noise_RM = np.hypot(NOISE, WANDER) * rng.normal(size=(len(recipe_of_run), 8))
        yield exact(R0 + (A - R0) * SHARE_M + noise_RM, list(recipe_of_run), z_X)


def test_residual_tests_of_a_right_model_find_what_chance_finds():
    """`late` and `slope` are standard normals; `memory` rejects too rarely, for a fitted curve
    leaves residuals that change sign more often than the noise does."""
    tables = [residual_tests(fit).set_index(["test", "level", "name"]) for fit in studies(120)]
    z, p = (np.array([table[name] for table in tables]) for name in ("z", "p_value"))
    for i, (test, level, _) in enumerate(tables[0].index):
        if test in ("late", "slope"):
            assert z[:, i].std() == pytest.approx(1.0, abs=0.2), (test, level)
            assert abs(z[:, i].mean()) < 0.3
        least = 0.0 if test == "memory" else 0.12
        assert least < (p[:, i] < 0.25).mean() < 0.38, (test, level)
    levels = tables[0].index.to_frame()["level"].value_counts()
    assert levels.to_dict() == {"run": 12, "recipe": 2, "study": 2}  # recipe 1 is its only run


def test_residual_tests_by_the_covariance_of_the_residuals():
    """One study, with every matrix written out."""
    (fit,) = studies(1, seed=3)
    table = residual_tests(fit).set_index(["test", "level", "name"])
    curve_XRM = fit.curves("run").at(fit.constant("compute"))[::5]
    residual_RM = np.asarray(fit.tree["observed_data"]["value"]) - curve_XRM.mean(0)
    d_M = directions(fit.constant("compute"), np.full(3, 8))["slope"][0]
    assert d_M.tolist() == [0, 0, 0, 0, 0, 0, 0.5, 1]
    weight_M = np.linalg.solve(SIGMA_MM, d_M)
    var_MM = SIGMA_MM - np.cov(curve_XRM[:, 0].T, bias=True)
    z = weight_M @ residual_RM[0] / np.sqrt(weight_M @ var_MM @ weight_M)
    assert table["z"]["slope", "run", "j0-0"] == pytest.approx(z, rel=1e-6)
    u_M = residual_RM[0] / np.hypot(NOISE, WANDER)
    assert table["z"]["memory", "run", "j0-0"] == pytest.approx(u_M[1:] @ u_M[:-1] / 7**0.5)
    free = 8 - np.trace(np.linalg.solve(SIGMA_MM, np.cov(curve_XRM[:, 0].T, bias=True)))
    assert table["p_value"]["scatter", "run", "j0-0"] == pytest.approx(chi2.sf(u_M @ u_M, free))


def lines(change_RM):
    """What check says of a study whose evaluations were changed after the fit, without what it says
    of the prior: the hand-made draws of other sites are points."""
    (fit,) = studies(1, seed=1)
    fit.tree["observed_data"]["value"].values[:] += change_RM
    tests = ("late", "slope", "memory", "scatter")
    return [line for line in fit.check().problems if line.split(":")[0] in tests]


def test_a_right_fit_leaves_nothing_over():
    assert lines(np.zeros((3, 8))) == []


@pytest.mark.parametrize(
    ("change_M", "start", "words"),
    [
        ([0] * 6 + [0.05, 0.05], "late", "above the curve in the last quarter"),
        ([0] * 6 + [-0.05, -0.05], "late", "below the curve in the last quarter"),
        ([0] * 6 + [0.04, 0.08], "slope", "at the end steeper than the curve"),
        ([0.05] * 4 + [-0.05] * 4, "memory", "long on one side of the curve"),
        ([0, 0, 0.09, 0, -0.09, 0, 0, 0], "scatter", "times as far from the curve"),
    ],
)
def test_what_the_curve_of_one_run_leaves_over_is_said(change_M, start, words):
    found = lines(np.array([change_M, [0] * 8, [0] * 8]))
    (line,) = [line for line in found if line.startswith(start)]
    assert "run j0-0" in line and words in line and "j1-2" not in line and "; " in line


def test_what_all_runs_have_in_common_is_found_though_none_shows_it():
    """p = 0.005 is too large for any of 16 tests, and small enough for one of the study's two."""
    (found,) = lines(np.tile([0] * 6 + [0.0075, 0.0075], (3, 1)))
    assert found.startswith("late: all runs 0.01")


def test_a_mode_far_from_the_prior_is_named():
    fit = posterior([0.6], [3.0], [1.5], kappa=np.exp(-3.1), wander_sd=0.01)
    (line,) = [line for line in fit.check().problems if line.startswith("log_kappa")]
    assert line.startswith("log_kappa=-3.10: 6.2 prior sds") and line.endswith("method=nuts")


def test_a_ceiling_at_the_horizon_is_not_the_asymptote():
    """The horizon's is known, whatever the asymptote: only the latter is the prior's."""
    fit = hand_fit({"vague": VAGUE})
    (problem,) = fit.check().problems
    assert "asymptotes of vague-s0" in problem and "param A" in problem
    assert fit.check().runs["prior_share"][0] == fit.prior_share("asymptote", "run")[0]
