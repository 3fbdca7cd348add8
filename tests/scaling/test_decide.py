"""Effects and allocation against posteriors whose answers are known by hand or in closed form."""

import json
import time
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import logit
from scipy.stats import norm

import rlx.scaling as sc
from rlx.scaling import curve as curves
from rlx.scaling import decide
from rlx.scaling.families import FAMILIES
from rlx.scaling.infer import evals_dataset
from rlx.scaling.posterior import ScalingFit

R0, X = 0.2, 2000
C_POINTS = np.arange(1.0, 9.0)  # evaluations of every run, once every 1 of compute
TIGHT = 1e-9


def posterior(
    A_XJ,
    C_mid_J,
    B_J,
    *,
    axes=None,
    recipe_of_run=None,
    seed_sd=TIGHT,
    wander_sd=TIGHT,
    noise_sd=TIGHT,
    kappa=1.0,
    R0_J=None,
    last_R=None,
    departed=(),
    curve="burr",
    run_A_XR=None,
):
    """A fit with these draws; runs are as their recipe, with values on their mean curve."""
    A_XJ = np.broadcast_to(A_XJ, (X, np.shape(A_XJ)[-1]))
    J = A_XJ.shape[1]
    recipe_of_run = np.arange(J) if recipe_of_run is None else np.array(recipe_of_run)
    R = len(recipe_of_run)
    R0_J = np.full(J, R0) if R0_J is None else np.array(R0_J)
    last_R = np.full(R, 8.0) if last_R is None else np.array(last_R)

    def theta(A, C_mid, B, low):
        three = [logit((A - low) / (1 - low)), np.log(C_mid), np.log(B)]
        return np.stack([np.broadcast_to(x, A.shape) for x in three], axis=-1)

    theta_XJQ = theta(A_XJ, np.asarray(C_mid_J, float), np.asarray(B_J, float), R0_J)
    theta_XRQ = theta_XJQ[:, recipe_of_run]
    if run_A_XR is not None:
        theta_XRQ = theta_XRQ.copy()
        theta_XRQ[..., 0] = logit((run_A_XR - R0) / (1 - R0))

    def draws(x, *dims):
        x = np.asarray(x, float)
        return (("chain", "draw", *dims), x.reshape(4, X // 4, *x.shape[1:]))

    one = np.ones(X)
    names = {
        "recipe": [f"j{j}" for j in range(J)],
        "run": [f"j{j}-{r}" for r, j in enumerate(recipe_of_run)],
    }
    names |= {"start": [f"s{j}" for j in range(J)], "coordinate": ["a", "c", "b"]}
    draw = {
        "theta_recipe": draws(theta_XJQ, "recipe", "coordinate"),
        "theta_run": draws(theta_XRQ, "run", "coordinate"),
        "logit_R0": draws(one[:, None] * logit(R0_J), "start"),
        "log_seed_sd": draws(np.log(seed_sd) * np.ones((X, 3)), "coordinate"),
        "log_wander_sd": draws(np.log(wander_sd) * one),
        "log_wander_length": draws(np.log(1e-3) * one),
    }
    if curve == "burr":
        draw["log_kappa"] = draws(np.log(kappa) * one)
    A_R = (A_XJ[:, recipe_of_run] if run_A_XR is None else run_A_XR).mean(0)
    mean = {"C_mid": np.asarray(C_mid_J), "B": np.asarray(B_J), "R0": R0_J}
    mean = {k: np.broadcast_to(v, J)[recipe_of_run, None] for k, v in mean.items()}
    C_RM = last_R[:, None] * C_POINTS / 8
    value_RM = curves.burr(C_RM, A=A_R[:, None], kappa=kappa, **mean)
    point = ("run", "evaluation")
    constant = {
        "compute": (point, C_RM),
        "stderr": (point, np.full(C_RM.shape, noise_sd)),
        "trials": (point, np.full(C_RM.shape, np.nan)),
        "recipe_of_run": ("run", recipe_of_run),
        "start_of_run": ("run", recipe_of_run),
        "C_max": ("run", last_R),
        "design": (("recipe", "effect"), np.zeros((J, 0))),
    }
    axes = {"recipe": names["recipe"]} | (axes or {})
    rows = {"run": np.repeat(names["run"], C_RM.shape[1]), "compute": C_RM.ravel()}
    frame = pd.DataFrame(rows | {"value": value_RM.ravel(), "stderr": noise_sd})
    evals = sc.Evals.from_frame(frame, stderr="stderr", scale="fraction")
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(draw, coords=names),
            "observed_data": xr.Dataset({"value": (point, value_RM)}, coords={"run": names["run"]}),
            "constant_data": xr.Dataset(constant),
            "levels": xr.Dataset({f"axis_{k}": ("recipe", v) for k, v in axes.items()}),
            "evals": evals_dataset(evals),
        }
    )
    priors = json.dumps(asdict(sc.Priors()))
    names_of_departed = {names["run"][r]: -9.0 for r in departed}
    tree.attrs = {"curve": curve, "noise": "normal", "method": "laplace", "C_ref": 1.0}
    tree.attrs |= {"priors": priors, "departed": json.dumps(names_of_departed)}
    return ScalingFit(tree)


def spread(mean_J, sd_J, seed=0):
    """Normal draws [X, J], independent, with exactly these means."""
    x = np.random.default_rng(seed).normal(size=(X, len(mean_J)))
    x = (x - x.mean(0)) / x.std(0)
    return np.array(mean_J) + np.array(sd_J) * x


# ---------------------------------------------------------------- effects


def only(table):
    assert len(table) == 1
    return table.iloc[0]


def test_a_level_that_moves_only_the_ceiling():
    # y = .2 + .8 * .3 = .44; i gains 40 % of .6 there, C = 4 * (.4 / .6)^(1/2), j 80 %, C = 4 * 2
    row = only(posterior([[0.5, 0.8]], 4.0, 2.0).effects("recipe"))
    assert (row["level"], row["reference"], row["matched"]) == ("j1", "j0", 1)
    for q in ("q05", "q50", "q95"):
        assert row[f"dA_{q}"] == pytest.approx(0.3, rel=1e-12)
        assert row[f"compute_ratio_{q}"] == pytest.approx((2 / 3) ** 0.5 / 2, rel=1e-9)
        assert row[f"pace_ratio_{q}"] == pytest.approx(1.0, rel=1e-9)
        assert row[f"dlogC_mid_{q}"] == pytest.approx(0.0, abs=1e-12)
    assert row["p_ceiling"] == row["p_raises"] == row["p_cheaper"] == row["p_efficiency"] == 1
    assert row["p_lowers"] == row["p_dearer"] == row["p_pace"] == row["p_uncompared"] == 0
    assert row["verdict"] == "ceiling mover"
    assert row["extrapolation"] == pytest.approx(1.0)  # j0 needs 8, its last compute
    assert row["prior_share"] == pytest.approx(0.0, abs=1e-12)


def test_a_level_that_moves_only_C_mid():
    row = only(posterior([[0.6, 0.6]], [2.0, 3.0], 1.5).effects("recipe"))
    assert row["compute_ratio_q50"] == pytest.approx(1.5, rel=1e-9)
    assert row["pace_ratio_q50"] == pytest.approx(1.5, rel=1e-9)
    assert row["dlogC_mid_q50"] == pytest.approx(np.log(1.5), rel=1e-9)
    assert (row["p_dearer"], row["p_cheaper"], row["p_ceiling"]) == (1, 0, 0)
    assert row["verdict"] == "efficiency shaper"
    assert row["extrapolation"] == pytest.approx(3 * 4 ** (1 / 1.5) / 8)


def test_a_level_that_moves_nothing_and_one_that_moves_both():
    table = posterior([[0.6, 0.61, 0.8]], [2.0, 2.1, 4.0], 1.5).effects("recipe")
    assert table["level"].tolist() == ["j1", "j2"]
    assert table["verdict"].tolist() == ["neither", "both"]
    wide = posterior([[0.6, 0.61, 0.8]], [2.0, 2.1, 4.0], 1.5).effects(
        "recipe", margin_A=0.005, margin_compute=0.01
    )
    assert wide["p_ceiling"].tolist() == [1, 1]


def test_probabilities_are_frequencies_of_draws_beyond_the_margins():
    A = np.tile([0.5, 0.5], (X, 1))
    # .6 raise by .03, .25 lower by .04, .15 lower by .01: no direction has .85
    A[:1200, 1], A[1200:1700, 1], A[1700:, 1] = 0.53, 0.46, 0.49
    fit = posterior(A, 2.0, 1.5)
    row = only(fit.effects("recipe"))
    assert (row["p_ceiling"], row["p_raises"], row["p_lowers"]) == (0.85, 0.6, 0.25)
    assert (row["dA_q05"], row["dA_q50"], row["dA_q95"]) == pytest.approx((-0.04, 0.03, 0.03))
    assert row["verdict"] == "undecided"
    assert only(fit.effects("recipe", decide=0.85))["verdict"] == "undecided"
    assert only(fit.effects("recipe", decide=0.6))["verdict"] == "ceiling mover"
    assert only(fit.effects("recipe", margin_A=0.035))["p_ceiling"] == 0.25
    assert only(fit.effects("recipe", margin_A=0.035, prob=0.6))["dA_q20"] == pytest.approx(-0.04)
    prior_A = fit._prior_parameters("recipe")["A"]
    sd = (A[:, 1] - A[:, 0]).std() / (prior_A[:, 1] - prior_A[:, 0]).std()
    assert row["prior_share"] == pytest.approx(sd, rel=1e-9)


@pytest.mark.parametrize(
    ("raises", "lowers", "cheaper", "dearer", "sooner", "later", "uncompared", "verdict"),
    [
        (0.9, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, "both"),
        (0.0, 0.9, 0.0, 0.0, 0.0, 0.9, 0.0, "both"),
        (0.9, 0.0, 1.0, 0.0, 0.8, 0.0, 0.0, "ceiling mover"),
        (0.0, 0.9, 0.0, 0.0, 0.45, 0.45, 0.0, "ceiling mover"),
        (0.8, 0.0, 0.9, 0.0, 0.9, 0.0, 0.1, "efficiency shaper"),
        (0.0, 0.0, 0.0, 0.9, 0.0, 0.9, 0.0, "efficiency shaper"),
        (0.0, 0.0, 0.0, 0.9, 0.9, 0.0, 0.0, "undecided"),  # dearer, though sooner
        (0.8, 0.0, 0.9, 0.0, 0.8, 0.0, 0.0, "undecided"),  # cheaper, perhaps for its ceiling alone
        (0.5, 0.49, 0.5, 0.49, 0.5, 0.49, 0.0, "undecided"),  # beyond the margins, no direction
        (0.1, 0.0, 0.0, 0.05, 0.0, 1.0, 0.05, "neither"),
        (0.05, 0.05, 0.05, 0.0, 0.5, 0.5, 0.05, "neither"),
        (0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, "undecided"),
        (0.0, 0.0, 0.05, 0.0, 0.0, 0.0, 0.2, "undecided"),
    ],
)
def test_a_verdict_needs_a_direction(
    raises, lowers, cheaper, dearer, sooner, later, uncompared, verdict
):
    p = {"p_raises": raises, "p_lowers": lowers, "p_ceiling": raises + lowers}
    p |= {"p_cheaper": cheaper, "p_dearer": dearer, "p_efficiency": cheaper + dearer}
    p |= {"p_sooner": sooner, "p_later": later, "p_uncompared": uncompared}
    assert decide._verdict(p, 0.9 - 1e-12) == verdict


def test_a_posterior_that_is_merely_wide_is_undecided():
    A = np.random.default_rng(0).uniform(0.25, 1.0, (X, 2))  # anywhere, of two equal recipes
    row = only(posterior(A, 2.0, 1.5).effects("recipe"))
    assert min(row["p_ceiling"], row["p_efficiency"]) > 0.9
    assert 0.4 < row["p_raises"] < 0.55 and 0.4 < row["p_cheaper"] < 0.55
    assert row["verdict"] == "undecided"


def test_margins_of_compute_are_relative():
    # 1.12 and 1 / 1.12 are beyond 10 %, 1.08 and 1 / 1.08 are not
    C_mid = np.array([1.0, 1.12, 1 / 1.12, 1.08, 1 / 1.08])
    table = posterior(np.full((1, 5), 0.6), C_mid, 1.5).effects("recipe")
    assert table["p_dearer"].tolist() == [1, 0, 0, 0]
    assert table["p_cheaper"].tolist() == [0, 1, 0, 0]
    assert table["p_efficiency"].tolist() == table["p_pace"].tolist() == [1, 1, 0, 0]


def test_pace_is_taken_at_four_fifths_of_the_gain():
    row = only(posterior([[0.5, 0.7]], 2.0, [1.0, 2.0]).effects("recipe"))
    assert row["pace_ratio_q50"] == pytest.approx(4 ** (1 / 2 - 1))


def test_exponents_of_the_tail_and_of_the_curve():
    # kappa shared: the ratios of B and of B kappa agree; under "power", B is the exponent itself
    row = only(posterior([[0.6, 0.6]], 2.0, [1.0, 1.5], kappa=0.5).effects("recipe"))
    assert row["B_ratio_q50"] == pytest.approx(1.5) == row["B_tail_ratio_q50"]
    row = only(posterior([[0.6, 0.6]], 2.0, [0.8, 1.6], curve="power").effects("recipe"))
    assert row["B_ratio_q50"] == pytest.approx(2.0) == row["B_tail_ratio_q50"]


def test_a_target_that_the_level_reaches_in_some_draws_only():
    A = np.tile([0.7, 0.7], (X, 1))
    A[:600, 1] = 0.5  # 30 % of the draws never reach .6
    row = only(posterior(A, [2.0, 1.0], 1.0).effects("recipe", target=0.6))
    assert (row["p_reach"], row["p_reach_reference"], row["p_uncompared"]) == (0.7, 1.0, 0.0)
    assert (row["p_dearer"], row["p_cheaper"], row["p_efficiency"]) == (0.3, 0.7, 1.0)
    assert row["compute_ratio_q05"] == pytest.approx(0.5)
    assert row["compute_ratio_q95"] == np.inf
    assert row["extrapolation"] == pytest.approx(2 * 4 / 8)  # median: j0's, at odds .4 / .1


def test_a_target_that_only_the_level_reaches():
    row = only(posterior([[0.5, 0.7]], 2.0, 1.0).effects("recipe", target=0.6))
    assert row["compute_ratio_q05"] == row["compute_ratio_q95"] == 0
    assert (row["p_cheaper"], row["p_reach"], row["p_reach_reference"]) == (1, 1, 0)
    assert row["extrapolation"] == np.inf


def test_a_target_that_nobody_reaches_decides_nothing():
    row = only(posterior([[0.5, 0.505]], [1.0, 9.0], 1.0).effects("recipe", target=0.9))
    assert (row["p_uncompared"], row["p_efficiency"], row["p_reach"]) == (1, 0, 0)
    assert np.isnan(row["compute_ratio_q50"])
    assert row["verdict"] == "undecided"  # not "neither": nothing was compared
    # a start above the target compares nothing either
    row = only(posterior([[0.5, 0.505]], [1.0, 9.0], 1.0).effects("recipe", target=0.1))
    assert row["p_uncompared"] == 1 and row["p_reach"] == 1


def test_an_infinite_draw_is_not_averaged_away():
    A = np.tile([0.7, 0.5, 0.7, 0.8], (X, 1))
    axes = {"loss": ["a", "b", "a", "b"], "size": ["1", "1", "2", "2"]}
    fit = posterior(A, [1.0, 1.0, 1.0, 0.5], 1.0, axes=axes | {"recipe": ["r"] * 4})
    row = only(fit.effects("loss", target=0.6))
    assert row["compute_ratio_q50"] == np.inf and row["p_reach"] == 0.5
    # at .72 the first pair compares nothing, the second has 0 / ... no: only b reaches, ratio 0
    row = only(fit.effects("loss", target=0.72))
    assert row["compute_ratio_q50"] == 0 and row["p_uncompared"] == 0


GRID = {"loss": ["a", "b", "a", "b", "b"], "size": ["10", "10", "9", "9", "8"], "recipe": ["r"] * 5}
GRID_A = [[0.5, 0.6, 0.55, 0.75, 0.3]]


def test_pairs_are_matched_on_the_other_axes():
    fit = posterior(GRID_A, [2.0, 4.0, 2.0, 2.0, 9.0], 1.0, axes=GRID)
    row = only(fit.effects("loss"))
    assert row["matched"] == 2  # the last recipe has no partner
    assert row["dA_q50"] == pytest.approx((0.1 + 0.2) / 2)
    assert row["dlogC_mid_q50"] == pytest.approx(np.log(2) / 2)
    assert row["pace_ratio_q50"] == pytest.approx(2**0.5)
    row = only(fit.effects("loss", reference="b"))
    assert (row["level"], row["reference"]) == ("a", "b")
    assert row["dA_q50"] == pytest.approx(-0.15)


def test_numeric_levels_are_ordered_by_value():
    fit = posterior(GRID_A, 2.0, 1.0, axes=GRID)
    table = fit.effects("size")
    assert table["reference"].tolist() == ["8", "8"] and table["level"].tolist() == ["9", "10"]
    assert table["matched"].tolist() == [1, 1]
    assert table["dA_q50"].tolist() == pytest.approx([0.75 - 0.3, 0.6 - 0.3])
    assert fit.effects("size", reference=9)["level"].tolist() == ["8", "10"]
    axes = GRID | {"size": ["10", "10", "9", "9", "none"]}
    named = posterior(GRID_A, 2.0, 1.0, axes=axes).effects("size")
    assert named["level"].tolist() == ["9", "none"]  # one is no number: as they come


def test_unmatched_cells_are_averaged_over():
    # recipe names that differ everywhere are set aside; without any partner all cells count
    names = {"recipe": ["p", "q", "r", "s"], "loss": ["a", "b", "a", "b"]}
    A = [[0.5, 0.6, 0.55, 0.75]]
    row = only(posterior(A, 2.0, 1.0, axes=names | {"size": ["1", "1", "2", "2"]}).effects("loss"))
    assert row["matched"] == 2 and row["dA_q50"] == pytest.approx(0.15)
    alone = names | {"size": ["1", "2", "3", "4"]}
    row = only(posterior(A, 2.0, 1.0, axes=alone).effects("loss"))
    assert row["matched"] == 0 and row["dA_q50"] == pytest.approx(
        (0.6 + 0.75) / 2 - (0.5 + 0.55) / 2
    )
    row = only(posterior(A, 2.0, 1.0, axes=names).effects("loss"))
    assert row["matched"] == 0 and row["dA_q50"] == pytest.approx(0.15)


def test_starts_of_different_pass_rates():
    # y = max R0 + .8 (min A - max R0) = .3 + .8 * .2; odds .26 / .04 and .16 / .14
    row = only(posterior([[0.5, 0.6]], 2.0, 1.0, R0_J=[0.2, 0.3]).effects("recipe"))
    assert row["compute_ratio_q50"] == pytest.approx((0.16 / 0.14) / (0.26 / 0.04))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"axis": "loss"}, "axis=loss: not in this fit; use one of recipe, size"),
        ({"axis": "size"}, "axis=size: has one level, 1; compare recipes that differ"),
        ({"axis": "recipe", "reference": "z"}, "reference=z: not a level of recipe; use one of j0"),
        ({"axis": "recipe", "target": 60}, "target=60: not a pass rate"),
        ({"axis": "recipe", "margin_A": -0.1}, "margin_A=-0.1: negative"),
        ({"axis": "recipe", "margin_compute": -0.1}, "margin_compute=-0.1: negative"),
        ({"axis": "recipe", "prob": 1.0}, "prob=1.0: not the mass"),
        ({"axis": "recipe", "decide": 0.5}, "decide=0.5: decides nothing"),
    ],
)
def test_effects_refuses(options, line):
    fit = posterior([[0.5, 0.6]], 2.0, 1.0, axes={"size": ["1", "1"]})
    with pytest.raises(sc.InputError, match=line):
        fit.effects(**options)


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
        assert decide.preposterior(Z, U) == pytest.approx(exact, abs=3e-4)


def test_data_that_say_nothing_are_worth_nothing():
    rng = np.random.default_rng(2)
    gains = []
    for _ in range(200):
        U, Z = 0.6 + 0.05 * rng.normal(size=(400, 6)), rng.normal(size=(400, 9))
        gains.append(decide.preposterior(Z, U) - U.mean(0).max())
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
    got = decide.preposterior(decide._blocks(y_XT), A) - A.mean(0).max()
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
    source = decide.Source(
        FAMILIES["burr"],
        p,
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
    Z = decide._blocks(y)
    want = np.stack([y[:, :3].mean(1), y[:, 3:5].mean(1), y[:, 5:].mean(1)], axis=1)
    np.testing.assert_allclose(Z, (want - want.mean(0)) / want.std(0), atol=1e-12)
    assert decide._blocks(y[:, :2]).shape == (50, 2)
    assert (decide._blocks(np.ones((5, 1))) == 0).all()


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
    offers = decide._run_offers(fit, np.array([True, False]), 8.0, 4.0, None)
    assert [(offer.index, offer.compute) for offer in offers] == [(0, [4.0, 8.0])]
    problem = decide.Problem(A, np.ones(2, bool), offers)
    for size, T in ((0, 4), (1, 8)):
        t = s**2 / np.hypot(s, v / T**0.5)
        exact = d * norm.cdf(d / t) + t * norm.pdf(d / t)
        assert problem.value({0: size}) == pytest.approx(exact, rel=0.15)


def test_what_is_within_the_error_is_not_bought():
    z, e = np.random.default_rng(1).normal(size=(2, X, 1))
    tiny = np.c_[0.6 + 1e-4 * z, np.full(X, 0.6)]
    problem = decide.Problem(tiny, np.ones(2, bool), [decide.Offer("run", 0, [1.0], [z])])
    assert 0 < problem.value({0: 0}) < 1e-4 and problem.greedy(1.0) == {}
    rare = np.c_[0.58 + 0.04 * z[:100], np.full(100, 0.6)]  # few draws: an error of .001
    for noise, plan in ((1.0, {0: 0}), (2.5, {})):
        offers = [decide.Offer("run", 0, [1.0], [z[:100] + noise * e[:100]])]
        problem = decide.Problem(rare, np.ones(2, bool), offers)
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
    # ceilings differ, but at C = 10 the quick one leads: .2 + .3 * 10 / 11 against .2 + .12
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
    # seeds of recipe 0 spread by .05 in A: buying one more gives the better of two, sd known
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
    assert table.attrs["perfect"] >= table.attrs["value"]


def test_the_plan_looks_at_more_than_one_chunk():
    # one chunk cannot change the choice, four can: what counts is the best value per compute
    compute = [1.0, 2.0, 4.0]
    U = np.stack([0.6 + 0.02 * np.sign(np.arange(X) % 4 - 0.5), np.full(X, 0.605)], axis=1)
    silent, loud = np.zeros((X, 1)), U[:, :1]
    offers = [decide.Offer("run", 0, compute, [silent, silent, loud])]
    problem = decide.Problem(U, np.ones(2, bool), offers)
    assert problem.greedy(4.0) == {0: 2} and problem.greedy(3.9) == {}
    assert problem.alone() == {("run", 0): (4.0, pytest.approx(problem.value({0: 2})))}


def test_the_plan_buys_by_value_per_compute_and_within_the_budget():
    rng = np.random.default_rng(0)
    U = np.c_[0.6 + 0.03 * rng.normal(size=(X, 2)), np.full(X, 0.61)]
    offers = [
        decide.Offer("run", 0, [1.0, 2.0], [U[:, :1] + 0.05 * rng.normal(size=(X, 1)), U[:, :1]]),
        decide.Offer("run", 1, [3.0], [U[:, 1:2]]),
    ]
    problem = decide.Problem(U, np.ones(3, bool), offers)
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
    grows = decide.Problem(
        U, np.ones(3, bool), [decide.Offer("run", 0, [1.0, 2.0], [rough[:, :1], seen])]
    )
    assert grows.value({0: 0}) > grows.value({0: 1}) / 2
    assert grows.greedy(2.0) == {0: 1} and grows.greedy(1.9) == {0: 0}
    # the second is worth less, and more per compute; only one of them can be had
    offers = [
        decide.Offer("run", 0, [10.0], [seen]),
        decide.Offer("run", 1, [2.0], [rough[:, 1:2]]),
    ]
    assert decide.Problem(U, np.ones(3, bool), offers).greedy(10.0) == {1: 0}


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"budget": 0.0}, "budget=0.0: buys nothing; give a compute above 0"),
        ({"budget": float("nan")}, "budget=nan: buys nothing"),
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
    """8 recipes of 2 runs on three axes: loss b gains .15 of ceiling, size 32 doubles C_mid."""
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
    assert lr["level"].tolist() == ["2"] and (lr["p_ceiling"] < 0.5).all()
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
