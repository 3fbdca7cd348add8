"""Simulated studies against their formulas."""

import numpy as np
import pytest

import rlx.scaling as sc
from rlx.errors import InputError
from rlx.scaling.doubt import Doubt

CURVE = {"A": 0.6, "B": 1.5, "C_mid": 2.0, "R0": 0.2}
QUIET = {"seed_sd": (0.0, 0.0, 0.0), "wander_sd": 0.0}


def formula(C):
    return 0.2 + 0.4 / (1 + (np.asarray(C) / 2.0) ** -1.5)


def values(evals):
    """[R, M], C = 0 left out."""
    later = evals.frame[evals.frame["compute"] > 0]
    return later.pivot(index="run", columns="compute", values="value").to_numpy()


def test_a_study_is_a_function_of_its_arguments():
    first, again, other = (sc.simulate({"a": CURVE}, compute=4.0, seed=s)[0] for s in (7, 7, 8))
    assert first.sha256() == again.sha256() != other.sha256()


def test_its_size_and_names():
    evals, truth = sc.simulate({"a": CURVE, "b": CURVE}, seeds=2, points=5, compute=3.0)
    assert truth.runs == evals.runs == ["a-s0", "a-s1", "b-s0", "b-s1"]
    assert truth.recipe_R.tolist() == [0, 0, 1, 1]
    for run, rows in evals.frame.groupby("run"):
        assert rows["compute"].to_numpy() == pytest.approx(np.linspace(0, 3, 6))
        assert set(rows["recipe"]) == {run[0]} and set(rows["seed"]) == {int(run[-1])}


def test_without_seeds_and_wander_evaluations_are_binomial_about_the_curve():
    evals, truth = sc.simulate({"a": CURVE}, seeds=400, points=4, compute=8.0, trials=100, **QUIET)
    want = formula([2.0, 4.0, 6.0, 8.0])
    assert truth.at([2.0, 4.0, 6.0, 8.0]) == pytest.approx(want[None], rel=1e-12)
    assert truth.at([2.0], by="run") == pytest.approx(np.full((400, 1), want[0]), rel=1e-12)
    sd = np.sqrt(want * (1 - want) / 100)
    got = values(evals)
    assert got.mean(0) == pytest.approx(want, abs=4 * sd.max() / 20)
    assert got.std(0) == pytest.approx(sd, rel=4 / np.sqrt(800))
    assert got * 100 == pytest.approx(np.round(got * 100), abs=1e-9)


def test_the_wander_is_as_large_and_as_long_as_asked():
    options = {"seed_sd": (0.0, 0.0, 0.0), "wander_sd": 0.05, "wander_length": 2.0}
    evals, truth = sc.simulate(
        {"a": CURVE}, seeds=600, points=12, compute=12.0, trials=1_000_000, **options
    )
    w = values(evals) - truth.at(np.arange(1.0, 13.0), by="run")
    assert w.std() == pytest.approx(0.05, rel=0.05)
    rho = (w[:, 1:] * w[:, :-1]).mean() / (w**2).mean()
    assert rho == pytest.approx(np.exp(-0.5), abs=0.03)


def test_seeds_differ_by_the_stated_sds():
    sd = (0.3, 0.2, 0.1)
    _, truth = sc.simulate({"a": CURVE}, seeds=800, points=2, compute=1.0, seed_sd=sd)
    runs = truth.curves["run"]
    share = (runs["A"] - 0.2) / 0.8
    theta = np.stack([np.log(share / (1 - share)), np.log(runs["C_mid"]), np.log(runs["B"])])
    assert theta[:, 0].std(1) == pytest.approx(sd, rel=4 / np.sqrt(1600))
    assert theta[:, 0].mean(1) == pytest.approx([0.0, np.log(2.0), np.log(1.5)], abs=0.05)


def test_runs_of_one_R0_share_its_evaluation():
    evals, _ = sc.simulate({"a": CURVE, "b": CURVE | {"R0": 0.1}}, seeds=2, compute=1.0)
    first = evals.frame[evals.frame["compute"] == 0]
    by = first.groupby("recipe")
    assert by["value"].nunique().tolist() == by["start"].nunique().tolist() == [1, 1]
    assert first["start"].nunique() == 2
    assert first["value"].to_numpy() == pytest.approx([0.2, 0.2, 0.1, 0.1], abs=0.03)


def test_a_tail_of_another_family():
    _, truth = sc.simulate({"a": CURVE | {"kappa": 1.0}}, family="burr", compute=1.0)
    assert truth.at([0.5, 3.0]) == pytest.approx(formula([0.5, 3.0])[None], rel=1e-9)


def test_beyond_the_data_the_truth_has_the_doubt():
    doubt = Doubt(drift=(0.0, 0.0), walk=0.02, walk_pace=0.0, shared=0.36)
    two, C = {"a": CURVE, "b": CURVE}, np.array([1.0, 4.0, 40.0])
    at = np.array([sc.simulate(two, compute=4.0, doubt=doubt, seed=s)[1].at(C) for s in range(900)])
    assert at[..., :2] == pytest.approx(np.broadcast_to(formula(C[:2]), (900, 2, 2)), rel=1e-12)
    off = at[:, :, 2] - formula(40.0)
    assert off.std() == pytest.approx(0.02 * np.log(10) ** 0.5, rel=0.06)
    assert np.corrcoef(off.T)[0, 1] == pytest.approx(0.36, abs=4 / 30)
    same = [sc.simulate(two, compute=4.0, doubt=d, seed=3)[0].sha256() for d in (None, doubt)]
    assert same[0] == same[1]  # the data end where it begins


@pytest.mark.parametrize(
    ("recipes", "options", "message"),
    [
        ({}, {}, "recipes=: none; give one or more"),
        ({"a": {"A": 0.6}}, {}, "recipes=A: recipe a: not the parameters of sigmoid; give A, B"),
        ({"a": CURVE | {"A": 0.1}}, {}, "A=0.1: recipe a: not above R0 = 0.2 and below 1"),
        ({"a": CURVE | {"B": -1.0}}, {}, "B=-1: recipe a: not positive"),
        ({"a": CURVE}, {"family": "line"}, "family=line: unknown; use burr, sigmoid, power"),
        ({"a": CURVE}, {"seeds": 0}, "seeds=0: not a count; give a whole number, at least 1"),
        ({"a": CURVE}, {"points": 1}, "points=1: not a count; give a whole number, at least 2"),
        ({"a": CURVE}, {"trials": 0.5}, "trials=0.5: not a count"),
        ({"a": CURVE}, {"compute": -1.0}, "compute=-1: not positive"),
        ({"a": CURVE}, {"wander_sd": -0.1}, "wander_sd=-0.1: negative; give 0 or more"),
        ({"a": CURVE}, {"wander_length": 0.0}, "wander_length=0: not positive"),
        ({"a": CURVE}, {"seed_sd": (0.1,)}, "seed_sd=0.1: not three sds"),
    ],
)
def test_bad_input_is_one_line(recipes, options, message):
    with pytest.raises(InputError) as error:
        sc.simulate(recipes, **{"compute": 1.0, **options})
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
