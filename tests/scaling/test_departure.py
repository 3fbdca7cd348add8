"""Runs that fall off their curve: found, cut there, named; others left alone."""

import numpy as np
import pandas as pd
import pytest

import rlx.scaling as sc
from rlx.scaling.curve import sigmoid


def study(fall=0.0, turn=3.0, rise=0.0, seed=0):
    """Three recipes x two seeds, wander of sd .006; run b-s1 falls (or rises) after `turn`."""
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


def test_calm_studies_raise_no_alarm():
    for seed in range(1, 9):
        assert sc.fit(study(seed=seed), curve="sigmoid", method="laplace").departed == {}
