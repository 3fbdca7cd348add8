"""Runs that fall off their curve: found, cut there, named; others left alone."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import rlx.scaling as sc
from rlx.scaling import departure
from rlx.scaling.curve import sigmoid
from rlx.scaling.doubt import Doubt
from rlx.scaling.fate import FALLEN_SD
from tests.scaling.hand import COMPUTE, hand_fit


def study(fall=0.0, turn=3.0, rise=0.0, seed=0):
    """Three recipes x two seeds, wander of sd 0.006; run b-s1 falls (or rises) after `turn`."""
    rng = np.random.default_rng(seed)
    rows = []
    for j, name in enumerate("abc"):
        for s in range(2):
            w = 0.0
            for C in np.linspace(0, 4, 21):
                w = 0.7 * w + 0.006 * np.sqrt(0.51) * rng.normal()
                p = float(sigmoid(C, A=0.55 + 0.06 * j, B=1.5, C_mid=1.3, R0=0.2)) + (C > 0) * w
                if (name, s) == ("b", 1):
                    p += (rise - fall) * max(C - turn, 0)
                rows.append({"run": f"{name}-s{s}", "recipe": name, "seed": s, "compute": C})
                rows[-1] |= {"passes": rng.binomial(4000, p), "trials": 4000}
    return sc.Evals.from_frame(pd.DataFrame(rows))


@pytest.fixture(scope="module")
def fallen():
    return sc.fit(study(fall=0.1), curve="sigmoid", method="laplace")


def test_a_fall_is_found_and_cut(fallen):
    assert list(fallen.departed) == ["b-s1"] and fallen.departed["b-s1"] < -4.5
    last = dict(zip(fallen.runs, fallen.last_compute("run"), strict=True))
    assert 2.6 <= last["b-s1"] <= 3.4 and last["b-s0"] == 4.0
    assert fallen.status("run")[fallen.runs.index("b-s1")] == "departed"
    assert fallen.status("recipe")[fallen.recipes.index("b")] == "departed"
    assert any("b-s1" in problem for problem in fallen.check().problems)


def test_the_others_are_fitted_as_if_it_had_not_happened(fallen):
    calm = sc.fit(study(), curve="sigmoid", method="laplace")
    assert calm.departed == {}
    for name in ("a", "c"):
        A, B = (f.param("A").sel(recipe=name) for f in (fallen, calm))
        assert float(A.median()) == pytest.approx(float(B.median()), abs=0.01)
    wander = [float(np.exp(f.tree["posterior"]["log_wander_sd"].median())) for f in (fallen, calm)]
    assert wander[0] == pytest.approx(wander[1], rel=0.3)


def test_a_late_surge_is_named_but_not_cut():
    surge = sc.fit(study(rise=0.15), curve="sigmoid", method="laplace")
    assert surge.departed["b-s1"] > 4.5
    assert surge.last_compute("run").tolist() == [4.0] * 6


def flat(run, p_C, n=1000, seed=0):
    """Evaluations of one run at C = 0, 1, 2, ..."""
    rng = np.random.default_rng(seed)
    return [
        {"run": run, "compute": float(C), "passes": rng.binomial(n, p) if p else 0, "trials": n}
        for C, p in enumerate(p_C)
    ]


@pytest.fixture(scope="module")
def no_curves():
    """A run that falls from its start, and one that has not passed once."""
    rows = flat("falls", np.linspace(0.5, 0.3, 11)) + flat("zeros", np.zeros(11))
    return sc.fit(sc.Evals.from_frame(pd.DataFrame(rows)), method="laplace")


def test_a_fall_from_the_start_is_named_and_no_recovery_is_promised(no_curves):
    assert no_curves.departed["falls"] < -4.5
    (line,) = [p for p in no_curves.check().problems if p.startswith("run=falls")]
    assert "fell from 0.4" in line and "to 0.3" in line
    ahead = no_curves.predict([12.0, 20.0]).sel(run="falls").values.reshape(-1, 2)
    low, middle, high = np.quantile(ahead, [0.05, 0.5, 0.95], axis=0)
    assert (np.abs(middle - 0.32) < 0.02).all() and (high < 0.5).all() and (low < 0.26).all()
    assert no_curves.gain(5.0).set_index("name").loc["falls", "q95"] < 0.03


def test_zeros_have_not_begun_to_rise(no_curves):
    assert "zeros" not in no_curves.departed
    assert any("zeros has not begun to rise" in p for p in no_curves.check().problems)
    assert no_curves.check().runs.set_index("run")["risen"].to_dict() == {
        "falls": False,
        "zeros": False,
    }


def test_levels_by_hand():
    ones = np.full(9, 0.01**2)
    value = np.array([0.5, 0.5, 0.5, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3])
    se = np.sqrt(2 * (0.01**2 / 3 + 0.01**2))
    assert departure.sinking(value, ones) == pytest.approx(-0.2 / se)
    assert departure.sinking(value[:4], ones[:4]) == 0
    assert departure.below(value, ones, 3) and not departure.below(value[::-1], ones, 3)
    assert not departure.below(np.zeros(9), np.zeros(9), 4)
    assert not departure.below(value * 0 + 0.5, ones, 4)


def test_calm_studies_raise_no_alarm():
    for seed in range(1, 9):
        assert sc.fit(study(seed=seed), curve="sigmoid", method="laplace").departed == {}


def test_a_recipe_is_one_of_its_runs_fallen_or_not(fallen):
    there = fallen.param("A").sel(recipe="b").values.ravel()
    level = fallen.evals.frame.query("run == 'b-s1'")["value"].iloc[-3:].mean()
    stays = fallen.param("A", "run").sel(run="b-s1").values.ravel()
    assert np.median(stays) == pytest.approx(level, abs=0.02)
    follows = fallen.param("A", "run").sel(run="b-s0").values.ravel()
    expected = (np.mean(stays < 0.5) + np.mean(follows < 0.5)) / 2
    assert np.mean(there < 0.5) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("high", "low"), [(0.35, 0.349), (0.45, 0.35)])
def test_of_two_recipes_that_fell_either_may_recover(high, low):
    """P(high > low) by the normal levels of both; and each level's interval by its own."""
    same = [(0.6, 2.0, 1.0)] * 4000
    fit = hand_fit({"high": same, "low": same}).with_doubt(Doubt())
    rows = fit.tree["evals"].to_dataset()
    rows["value"] = ("row", [0.5, high, high, high, 0.5, low, low, low])
    fit.tree["evals"] = rows
    fit.tree.attrs["departed"] = json.dumps({"high-s0": -8.0, "low-s0": -8.0})
    for by, names in (("run", ("high-s0", "low-s0")), ("recipe", ("high", "low"))):
        for C in (8.0, 40.0):
            sd = FALLEN_SD * (1 + math.log(C / COMPUTE[-1])) ** 0.5
            want = norm.cdf((high - low) / (sd * 2**0.5))
            found = fit.prob("curve", names[0], ">", names[1], at=C, by=by)
            assert found["prob"] == pytest.approx(want, abs=0.03)
            ends = np.quantile(fit.curve(C, by=by).values, [0.25, 0.75], axis=(0, 1))[..., 0]
            assert ends[:, 0] == pytest.approx(high + sd * norm.ppf([0.25, 0.75]), abs=0.01)
            assert ends[:, 1] == pytest.approx(ends[:, 0] - high + low, abs=1e-12)


def test_plain_falls_by_hand():
    var = np.full(20, 0.01**2)
    rises = np.linspace(0.2, 0.6, 20)
    assert departure.largest_drop(rises, var) is None
    falls = np.r_[rises[:10], np.full(10, 0.25)]
    k, z = departure.largest_drop(falls, var)
    assert k == 9 and z < -6
    dips = np.r_[rises[:10], 0.25, 0.25, rises[12:]]
    assert departure.largest_drop(dips, var) is None
    assert departure.largest_drop(np.full(20, 0.5), np.zeros(20)) is None
    assert departure.largest_drop(falls[:5], var[:5]) is None


def test_the_falls_of_hard_mix_are_named():
    """Committed evaluations: of 18 runs that ended at blind guessing 17 are named, and none of the
    27 at the lower learning rate; two more at the higher one fell from 0.6 to 0.45."""
    results = Path(__file__).parents[2] / "analysis" / "results" / "hard_mix"
    table = pd.read_csv(results / "evals.csv").query("compute > 0")
    named = {}
    for (rate, run), rows in table.groupby(["learning_rate", "run"]):
        drop = departure.largest_drop(rows["value"].to_numpy(), rows["stderr"].to_numpy() ** 2)
        named[rate, run] = drop is not None, rows["value"].iloc[-3:].mean()
    low = [found for (rate, _), (found, _) in named.items() if rate < 5e-4]
    guess = [found for (rate, _), (found, end) in named.items() if rate > 5e-4 and end < 0.3]
    other = [found for (rate, _), (found, end) in named.items() if rate > 5e-4 and end >= 0.3]
    assert (len(low), sum(low)) == (27, 0)
    assert (len(guess), sum(guess)) == (18, 17)
    assert (len(other), sum(other)) == (9, 2)
