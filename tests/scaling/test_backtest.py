"""Scores of past forecasts: formulas by hand, and the verdicts on right and wrong curves."""

import numpy as np
import pandas as pd
import pytest

import rlx.scaling as sc
from rlx.scaling.backtest import BANDS, Backtest, _band, crps, score
from rlx.scaling.data import Evals
from tests.scaling.hand import hand_fit


def test_crps_is_the_double_sum_over_draws():
    rng = np.random.default_rng(0)
    drawn, observed = rng.normal(size=(40, 3)), np.array([0.3, -1.0, 2.5])
    for p in range(3):
        x = drawn[:, p]
        want = np.mean(np.abs(x - observed[p])) - np.abs(x[:, None] - x).mean() / 2
        assert crps(drawn, observed)[p] == pytest.approx(want)


def test_a_band_weighs_runs_alike_and_asks_the_posterior_predictive():
    part = pd.DataFrame({"run": ["a", "a", "b"], "inside": [True, False, True]})
    part["horizon"] = [2.0, 2.5, 2.2]
    inside_XP = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]], bool)
    row = _band(2.0, part, inside_XP)
    assert row["coverage"] == 0.75 and row["n"] == 3 and row["reach"] == 2.5
    assert row["p_value"] == 0.75  # coverages 1, .75, .5, 0 of which three are at most .75


def bands(p_values, curve="burr"):
    rows = [
        {
            "curve": curve,
            "origin": o,
            "horizon": h,
            "n": 9,
            "coverage": 0.9,
            "p_value": p,
            "reach": h,
        }
        for (o, h), p in p_values.items()
    ]
    return Backtest(pd.DataFrame(), pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("p_values", "trusted"),
    [
        ({(0.25, 1.5): 0.5, (0.25, 2.0): 0.4, (0.25, 4.0): 0.3}, 4.0),
        ({(0.25, 1.5): 0.5, (0.25, 2.0): 0.4, (0.25, 4.0): 0.04}, 2.0),
        ({(0.25, 1.5): 0.01, (0.25, 2.0): 0.4, (0.25, 4.0): 0.3}, 1.0),
        ({(0.25, 1.5): 0.03, (0.5, 1.5): 0.9, (0.25, 2.0): 0.6}, 2.0),  # one of two at .03
        ({(0.25, 1.5): 0.02, (0.5, 1.5): 0.9, (0.25, 2.0): 0.6}, 1.0),
    ],
)
def test_trust_stops_at_the_first_band_that_was_covered_too_rarely(p_values, trusted):
    assert bands(p_values).trust("burr") == trusted
    assert bands(p_values).trust("sigmoid") == 1.0  # was not tested


def test_trust_has_a_floor_where_runs_are_too_few_to_reject_anything():
    few = bands({(0.25, 1.5): 0.5, (0.25, 2.0): 0.3})
    few.bands.loc[1, "coverage"] = 0.6
    assert few.trust("burr") == 1.5


def test_weights_maximise_the_stacked_log_score():
    rng = np.random.default_rng(1)
    log_p = rng.normal(size=(60, 2)) + np.array([0.4, 0.0])
    points = pd.DataFrame(
        [
            {"curve": c, "origin": 0.5, "run": f"r{i}", "compute": 1.0, "log_score": log_p[i, k]}
            for k, c in enumerate(("burr", "sigmoid"))
            for i in range(60)
        ]
    )
    grid = np.linspace(0, 1, 2001)
    total = [np.log(w * np.exp(log_p[:, 0]) + (1 - w) * np.exp(log_p[:, 1])).sum() for w in grid]
    weights = Backtest(points, pd.DataFrame()).weights()
    assert weights["burr"] == pytest.approx(grid[np.argmax(total)], abs=2e-3)
    assert weights.sum() == pytest.approx(1.0)


def test_scores_of_a_known_forecast():
    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 2000})
    frame = fit.evals.frame.iloc[[0]].assign(compute=40.0, value=[0.5], stderr=0.01)
    table, banded = score(fit, Evals(frame))
    latent = 0.2 + 0.4 * 40 / 42  # sigmoid with B = 1
    sd = np.hypot(0.01, 0.01)  # wander forgotten, plus the noise of this evaluation
    row = table.iloc[0]
    assert row["horizon"] == 10.0 and row["band"] == 10.0
    assert row["mean"] == pytest.approx(latent, abs=4 * sd / np.sqrt(2000))
    assert row["q95"] == pytest.approx(latent + 1.645 * sd, abs=0.002)
    want = -0.5 * ((0.5 - latent) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
    assert row["log_score"] == pytest.approx(want, abs=0.05)
    assert not row["inside"] and banded.iloc[0]["coverage"] == 0.0


def test_runs_that_had_left_their_curve_are_not_scored():
    fit = hand_fit(
        {"one": [(0.6, 2.0, 1.0)] * 40, "two": [(0.6, 2.0, 1.0)] * 40}, departed='{"one-s0": -6.0}'
    )
    frame = fit.evals.frame.drop_duplicates("run").assign(compute=12.0, value=0.5)
    assert score(fit, Evals(frame))[0]["run"].tolist() == ["two-s0"]


def test_bands_cover_every_horizon():
    edges = list(BANDS.values())
    assert all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False)) and edges[0][0] == 1.0


def study(shape, seed=0, n=20):
    """8 runs of 4 recipes; `shape(C)` is the share of the gain made."""
    rng = np.random.default_rng(seed)
    rows = []
    for j in range(4):
        for s in range(2):
            A, mid = 0.5 + 0.07 * j, 1.5 * np.exp(rng.normal(0, 0.05))
            for C in np.linspace(0, 4, n + 1):
                p = 0.2 + (A - 0.2) * shape(C / mid)
                rows.append({"run": f"r{j}-s{s}", "recipe": f"r{j}", "seed": s, "compute": C})
                rows[-1] |= {"passes": rng.binomial(4000, p), "trials": 4000}
    return Evals.from_frame(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def right():
    return sc.backtest(study(lambda x: x**1.5 / (1 + x**1.5)), curves=("sigmoid",))


def test_a_right_curve_is_vouched_for(right):
    assert right.trust("sigmoid") >= 3.5
    assert set(right.points["origin"]) == {0.25, 0.5, 0.75}  # 2 points at 10 % are too few
    last = right.scores[lambda t: t["origin"] == 0.75].iloc[0]
    assert last["rmse"] < 0.02 and abs(last["bias"]) < 0.01 and last["coverage"] > 0.75


def test_a_wrong_curve_is_not():
    """A curve that stands still and then jumps, which no early part can tell."""
    jump = sc.backtest(study(lambda x: 0.3 * min(x, 1) + 0.7 * (x > 2)), curves=("sigmoid",))
    assert jump.trust("sigmoid") < 4.0


def test_too_few_evaluations_to_backtest():
    with pytest.raises(sc.InputError, match="fewer than 3 evaluations seen"):
        sc.backtest(study(lambda x: x / (1 + x), n=5), origins=(0.25,))
