"""What a study would find: true differences, verdicts and their chances against oracles."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import rlx.scaling as sc
from experiments.power import cheapest, main
from rlx.errors import InputError
from rlx.scaling import plot
from rlx.scaling.doubt import Doubt
from rlx.scaling.power import (
    BASE,
    Difference,
    Pull,
    _number,
    chance,
    contrast,
    factors,
    ratio,
    rival_of,
    spread,
    verdicts,
)

TINY = {"seeds": [1], "points": [10], "shares": [0.5], "studies": 2}


def formula(C, p):
    return p["R0"] + (p["A"] - p["R0"]) / (1 + (C / p["C_mid"]) ** -p["B"])


def cost(y, p):
    gained = (y - p["R0"]) / (p["A"] - p["R0"])
    return p["C_mid"] * (gained / (1 - gained)) ** (1 / p["B"])


# ---------------------------------------------------------------- the truth


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_without_doubt_the_rivals_curve_differs_as_asked(share):
    given = (share, 10.0, "sigmoid", None, (0, 0))
    rival, y = rival_of(BASE, Difference("ceiling", 0.05), *given)
    assert formula(10.0, rival) - formula(10.0, BASE) == pytest.approx(0.05, abs=1e-5)
    assert y == pytest.approx(0.25 + 0.8 * (formula(10.0, BASE) - 0.25))
    assert {k: rival[k] for k in ("B", "C_mid", "R0")} == {k: BASE[k] for k in ("B", "C_mid", "R0")}
    rival, y = rival_of(BASE, Difference("compute", 1.5), *given)
    near = 1e-5 if share == 1 else 0.01  # a path is looked at in steps of compute
    assert cost(y, BASE) / cost(y, rival) == pytest.approx(1.5, rel=near)
    assert rival["C_mid"] == pytest.approx(1 / 1.5, rel=near)


@pytest.mark.parametrize("k", range(4))
def test_with_the_doubt_the_true_ceilings_differ_as_asked(k):
    """Against the truth of `simulate`, which draws the doubt from the same seed."""
    doubt = Doubt()
    rival, _ = rival_of(BASE, Difference("ceiling", 0.05), 0.1, 10.0, "sigmoid", doubt, (0, k))
    two = {"base": BASE, "rival": rival}
    _, truth = sc.simulate(two, compute=1.0, doubt=doubt, seed=_number(0, k, 0))
    base, other = truth.at([10.0])[:, 0]
    assert other - base == pytest.approx(0.05, abs=1e-4)
    assert abs(formula(10.0, rival) - formula(10.0, BASE) - 0.05) > 1e-3


def test_a_difference_that_no_curve_has():
    with pytest.raises(InputError, match=r"^ceilings=0.5: no curve differs so much from A = 0.65"):
        rival_of(BASE, Difference("ceiling", 0.5), 0.5, 10.0, "sigmoid", None, (0, 0))


# ---------------------------------------------------------------- the verdict


def test_verdicts_by_hand():
    sure, doubtful = np.full(100, 0.1), np.r_[np.full(89, 0.1), np.zeros(11)]
    answers = [x + 1e-9 * np.arange(100) for x in (sure, -sure, doubtful, doubtful)]
    row = verdicts(answers, Difference("ceiling", 0.05), 0.02, 0.9, Pull(1.0, 1.0))
    assert (row["right"], row["wrong"], row["undecided"]) == (0.25, 0.25, 0.5)
    p = 1.5 / 5
    assert row["mcse"] == pytest.approx((p * (1 - p) / 5) ** 0.5)
    row = verdicts(
        answers, Difference("compute", 1 / 1.2), 0.02, 0.9, Pull(1.0, 1.0)
    )  # the rival is dearer
    assert (row["right"], row["wrong"]) == (0.25, 0.25)
    row = verdicts(answers, Difference("compute", 1.0), 0.02, 0.9, Pull(1.0, 1.0))
    assert np.isnan(row["right"]) and (row["wrong"], row["undecided"]) == (0.5, 0.5)


def posteriors(y, noise, weights, sds):
    """Median, 10 % quantile and sd of x given y ~ N(x, noise^2); x is one of normals about 0."""
    x = np.linspace(-0.5, 0.5, 4001)
    prior = sum(w * norm.pdf(x, 0, sd) for w, sd in zip(weights, sds, strict=True))
    below = np.cumsum(prior * norm.pdf(y[:, None], x, noise), axis=1)
    at = lambda q: x[np.argmax(below >= q * below[:, -1:], axis=1)]  # noqa: E731
    return at(0.5), at(0.1), (at(norm.cdf(1)) - at(norm.cdf(-1))) / 2


@pytest.mark.parametrize("studies", [2, 20])
@pytest.mark.parametrize("truth", [0.03, 0.05, 0.08])
@pytest.mark.parametrize(
    "prior", [((1.0,), (0.1,)), ((0.5, 0.5), (0.03, 0.2))], ids=["normal", "pooled"]
)
def test_the_chance_is_that_of_a_verdict(truth, prior, studies):
    """Plans of few studies against many verdicts; pooling pulls small differences further."""
    rng, plans, noise = np.random.default_rng(0), 50, 0.03
    error = noise * rng.normal(size=(plans, studies))
    got = []
    for error_K in error:
        m_K, low_K, s_K = posteriors(truth + error_K, noise, *prior)
        none_K, _, _ = posteriors(error_K, noise, *prior)
        apart, none = Difference("ceiling", truth), Difference("ceiling", 0.0)
        b = factors({none: none_K[:, None], apart: m_K[:, None]})
        assert b[none] == b[apart]
        got.append(chance(m_K - low_K, s_K, truth, Pull(b[apart], 1.0), 0.02))
    _, low, _ = posteriors(truth + noise * rng.normal(size=4000), noise, *prior)
    far = 0.02 if len(prior[0]) == 1 else 0.09
    assert np.mean(got) == pytest.approx(np.mean(low > 0.02), abs=far)
    assert np.std(got) < 0.09


def test_posteriors_that_are_too_wide_are_seen():
    """Prior N(0, 0.1^2) and noise 0.03, but a posterior that takes the noise for 0.06."""
    rng, before, noise, assumed = np.random.default_rng(0), 0.1, 0.03, 0.06
    b, s = before**2 / (before**2 + assumed**2), (before**-2 + assumed**-2) ** -0.5
    z_X, truth = np.linspace(-2, 2, 401), 0.08
    error_K = noise * rng.normal(size=400)
    none, apart = Difference("ceiling", 0.0), Difference("ceiling", truth)
    draws = {d: [b * (d.truth + error) + s * z_X for error in error_K] for d in (none, apart)}
    found = factors(draws)
    sd = spread(draws[none][0])
    r = ratio([(draws, found)])
    assert found[apart] == pytest.approx(b, rel=0.01)
    assert r == pytest.approx(b * noise / (sd * b**0.5), rel=0.1)
    row = verdicts(draws[apart], apart, 0.02, 0.9, Pull(found[apart], r))
    assert row["expected"] == pytest.approx(row["right"], abs=0.03)


def test_the_narrower_the_posterior_the_likelier_the_right_verdict():
    def of(s, truth):
        return chance(
            np.full(2, 1.28 * s), np.full(2, s), truth, Pull(1 - (s / 0.2) ** 2, 1.0), 0.02
        )

    chances = [of(s, 0.05) for s in (0.1, 0.05, 0.02)]
    none = [of(s, 0.0) for s in (0.1, 0.05, 0.02)]
    assert chances == sorted(chances) and none == sorted(none, reverse=True) and max(none) < 0.1


def test_nothing_is_decided_where_curves_never_arrive():
    x_KX = [np.r_[np.full(50, np.inf), np.full(50, -np.inf)]] * 3
    row = verdicts(x_KX, Difference("compute", 1.5), 0.1, 0.9, Pull(1.0, 1.0))
    assert row["expected"] == row["right"] == 0
    assert factors({Difference("compute", 1.0): x_KX, Difference("compute", 1.5): x_KX}) == {
        Difference("compute", 1.0): 1.0,
        Difference("compute", 1.5): 1.0,
    }
    found = chance(np.array([0.1, np.inf]), np.array([0.1, 0.1]), 0.9, Pull(1.0, 1.0), 0.1)
    assert found == pytest.approx(1 / 2)


def test_at_ten_times_the_compute_the_question_is_that_of_effects():
    two = {"base": BASE, "rival": BASE | {"A": 0.7, "C_mid": 0.8}}
    evals, _ = sc.simulate(two, seeds=1, points=10, compute=2.0)
    fit = sc.fit(evals, method="laplace", pad_to=16)
    row = fit.effects("recipe", target=0.5).iloc[0]
    ceiling = contrast(fit, "ceiling", 20.0, 0.5)
    assert np.mean(ceiling > 0.02) == pytest.approx(row["p_raises"], abs=1e-12)
    assert np.mean(ceiling < -0.02) == pytest.approx(row["p_lowers"], abs=1e-12)
    compute = contrast(fit, "compute", 20.0, 0.5)
    assert np.mean(compute > np.log(1.1)) == pytest.approx(row["p_cheaper"], abs=1e-12)


# ---------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def table():
    return sc.power(ceilings=[0.2], ratios=[4.0], **TINY)


def test_a_plan_is_a_function_of_its_seed(table):
    again = sc.power(ceilings=[0.2], ratios=[4.0], **TINY)
    pd.testing.assert_frame_equal(table, again)


def test_a_question_that_is_left_out_changes_nothing_of_the_other(table):
    alone = sc.power(ceilings=None, ratios=[4.0], **TINY)
    both = table[table["quantity"] == "compute"].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, both)


def test_a_large_difference_is_found_and_none_is_not(table):
    said = table.set_index(["quantity", "difference"])
    assert list(said.index) == [
        ("ceiling", 0.0),
        ("ceiling", 0.2),
        ("compute", 1.0),
        ("compute", 4.0),
    ]
    for large in (("ceiling", 0.2), ("compute", 4.0)):
        assert said.loc[large, "right"] == 1 and said.loc[large, "expected"] > 0.8
        assert said.loc[large, "wrong"] == 0
    for none in (("ceiling", 0.0), ("compute", 1.0)):
        assert said.loc[none, "expected"] < 0.1 and np.isnan(said.loc[none, "right"])
    assert (table["compute"] == 2 * 0.5 * 10).all() and (table["evaluations"] == 20).all()


def test_the_committed_plan():
    """Counts against `expected`, over all designs: one has few studies.

    It promises more than was counted, because posteriors are not normal, by a third at most. The
    designs of a question share their studies' seeds.
    """
    folder = Path(__file__).parents[2] / "analysis" / "results" / "power"
    table = pd.read_csv(folder / "power.csv")
    null = table["right"].isna()
    assert table["wrong"].mean() <= 0.05 and (table.loc[null, "expected"] <= 0.2).all()
    found = table[~null]
    count, promised = (found[column] * found["studies"] for column in ("right", "expected"))
    assert 0.85 * count.sum() <= promised.sum() <= 1.35 * count.sum()
    alone = np.sqrt(promised * (1 - found["expected"]))
    together = alone.groupby([found["quantity"], found["difference"]]).sum()
    assert abs(count.sum() - promised.sum()) <= 2 * np.sqrt((together**2).sum())
    by = ["share", "quantity", "difference"]
    expected = found.pivot(index=by, columns="seeds", values="expected")
    assert (expected[3] >= expected[1] - 0.02).all()


@pytest.mark.slow
def test_more_seeds_never_hurt_and_equal_recipes_get_few_verdicts():
    options = {"shares": [0.5, 1.0], "ceilings": [0.1], "ratios": [1.5]}
    table = sc.power(seeds=[1, 3], points=[10], studies=6, **options)
    null = table["right"].isna()
    wrong = table["wrong"] * table["studies"]
    assert wrong.sum() <= 0.1 * table["studies"].sum()
    assert (table.loc[null, "expected"] <= 0.2).all()  # what the rule allows
    for _, rows in table[~null].groupby(["share", "quantity"]):
        few, many = (rows[rows["seeds"] == seeds].iloc[0] for seeds in (1, 3))
        assert many["expected"] >= few["expected"] - 0.05
        assert many["right"] >= few["right"] - 3 * np.hypot(few["mcse"], many["mcse"])
        assert many["sd"] < few["sd"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": {"A": 0.6}}, "recipes=A: recipe base: not the parameters of sigmoid"),
        ({"shares": []}, "shares=: empty; give one or more numbers"),
        ({"shares": [0.0]}, "shares=0: not positive"),
        ({"seeds": [0]}, "seeds=0: not a count"),
        ({"points": [1]}, "points=1: not a count"),
        ({"horizon": -1.0}, "horizon=-1: not positive"),
        ({"ceilings": [2.0]}, "ceilings=2: not a difference of pass rates"),
        ({"ceilings": [0.5]}, "ceilings=0.5: no curve differs so much from A = 0.65 at C = 10"),
        ({"ratios": [-1.0]}, "ratios=-1: not positive"),
        ({"ceilings": None, "ratios": None}, "ceilings=None: no question with ratios=None"),
        ({"margin_A": -0.1}, "margin_A=-0.1: negative"),
        ({"decide": 0.5}, "decide=0.5: decides nothing"),
        ({"studies": 0}, "studies=0: not a count"),
    ],
)
def test_bad_input_is_one_line(options, message):
    with pytest.raises(InputError) as error:
        sc.power(**options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_the_figure_has_a_panel_per_difference(table):
    figure = plot.power(table)
    titles = [ax.get_title(loc="left") for ax in figure.axes if ax.get_visible()]
    assert titles == ["ceiling: equal", "ceiling: 0.2 apart", "compute: equal", "compute: 4x apart"]
    with pytest.raises(InputError, match=r"^table=: no design to draw"):
        plot.power(table.iloc[:0])


def test_every_design_has_its_line(table):
    rows = table[table["quantity"] == "ceiling"]
    nine = [rows.assign(seeds=s, points=p) for s in (1, 2, 3) for p in (5, 10, 20)]
    ax = plot.power(pd.concat(nine)).axes[0]
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines if len(line.get_xdata())}
    assert len({x for x in looks if x[1] != "None"}) == 9


def test_the_cheapest_design_by_hand():
    rows = [
        (1, 20, 0.5, 10.0, 40, "ceiling", 0.05, 0.5, 0.6),
        (3, 20, 0.5, 30.0, 120, "ceiling", 0.05, 0.9, 0.85),
        (5, 20, 0.5, 50.0, 200, "ceiling", 0.05, 1.0, 0.9),
        (5, 20, 0.5, 50.0, 200, "ceiling", 0.0, np.nan, 0.9),
        (5, 20, 0.5, 50.0, 200, "compute", 1.2, 0.9, 0.3),
    ]
    names = ["seeds", "points", "share", "compute", "evaluations", "quantity", "difference"]
    said = cheapest(pd.DataFrame(rows, columns=[*names, "right", "expected"]))
    assert said == [
        "ceiling 0.05: 3 seeds x 20 evaluations, 0.5 of the horizon, compute 30 of all runs",
        "compute 1.2: no design here finds it with probability 0.8",
    ]


def test_the_command(tmp_path, capsys):
    words = ["seeds=[1]", "points=[10]", "shares=[0.5]", "studies=1", "ceilings=[]", "ratios=[]"]
    main([*words, f"out={tmp_path}"])
    assert len(pd.read_csv(tmp_path / "power.csv")) == 2
    assert (tmp_path / "power.png").stat().st_size > 10_000
    assert "quantity" in capsys.readouterr().out
