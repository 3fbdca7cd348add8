"""Scores of past forecasts: formulas by hand, and the verdicts on right and wrong curves."""

import numpy as np
import pandas as pd
import pytest

import rlx.scaling as sc
from rlx.errors import InputError
from rlx.scaling.backtest import BANDS, Backtest, crps, score, usable_origins
from rlx.scaling.data import Evals
from tests.scaling.hand import hand_fit


def test_crps_is_the_double_sum_over_draws():
    rng = np.random.default_rng(0)
    drawn, observed = rng.normal(size=(40, 3)), np.array([0.3, -1.0, 2.5])
    for p in range(3):
        x = drawn[:, p]
        want = np.mean(np.abs(x - observed[p])) - np.abs(x[:, None] - x).mean() / 2
        assert crps(drawn, observed)[p] == pytest.approx(want)


def points(*bands, curve="burr"):
    """A backtest of bands (horizon, origin, [evaluations inside of each run, of 10])."""
    rows = [
        {"curve": curve, "origin": origin, "run": f"r{r}", "band": band, "horizon": band}
        | {"inside": i < inside, "mean": 0.5, "observed": 0.4, "log_score": 1.0, "crps": 0.1}
        for band, origin, of_run in bands
        for r, inside in enumerate(of_run)
        for i in range(10)
    ]
    return Backtest(pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("bands", "trusted", "verdicts"),
    [
        ([(1.5, 0.5, [9, 9, 9]), (2.0, 0.5, [8, 8, 8])], 2.0, ["trusted"] * 2),
        ([(1.5, 0.5, [9, 9, 9]), (2.0, 0.5, [8, 8, 7])], 1.5, ["trusted", "not trusted"]),
        ([(1.5, 0.5, [7, 9, 7]), (2.0, 0.5, [8, 8, 8])], 1.0, ["not trusted", "trusted"]),
        ([(1.5, 0.5, [10, 10])], 1.0, ["too little evidence"]),  # two runs, however good
        ([(1.5, 0.25, [10]), (1.5, 0.5, [10]), (1.5, 0.75, [10])], 1.0, ["too little evidence"]),
        ([(1.5, 0.25, [6, 6, 6]), (1.5, 0.5, [10, 10, 10])], 1.5, ["trusted"]),  # origins pooled
    ],
)
def test_forecasts_are_trusted_while_enough_runs_hold_four_fifths(bands, trusted, verdicts):
    past = points(*bands)
    assert past.evidence()["verdict"].tolist() == verdicts
    assert past.trust() == trusted and type(past.trust()) is float
    assert past.evidence("sigmoid").empty and past.trust("sigmoid") == 1.0  # was not tested


def test_each_run_from_each_origin_weighs_the_same():
    past = points((2.0, 0.5, [10, 10, 10]), (2.0, 0.25, [4]))
    twice = pd.concat([past.points, past.points[past.points["origin"] == 0.5]])
    (row,) = Backtest(twice).evidence().itertuples()
    assert row.coverage == pytest.approx((1 + 1 + 1 + 0.4) / 4)
    assert row.runs == 3 and row.forecasts == 4
    near = Backtest(twice).scores.iloc[0]  # of the earlier origin
    assert near["origin"] == 0.25 and near["coverage"] == pytest.approx(0.4) and near["n"] == 10
    assert near["bias"] == pytest.approx(0.1) and near["rmse"] == pytest.approx(0.1)


def test_it_says_whether_it_distrusts_or_does_not_know():
    assert points((1.5, 0.5, [9, 9, 9])).says() == "burr: trusted up to 1.5 times the compute seen"
    assert points((1.5, 0.5, [5, 5, 5])).says().startswith("burr: not trusted up to 1.5 times: 50%")
    assert "too little evidence up to 2 times" in points((2.0, 0.5, [9, 9])).says()
    assert points((2.0, 0.5, [9, 9])).says("power").startswith("power: too little evidence")


def test_a_fit_with_too_few_evaluations_says_so_instead_of_trust(capsys):
    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 40})
    assert fit.trust(origins=(0.25, 0.5)) == 1.0  # of four evaluations, two at most
    assert capsys.readouterr().out.startswith("sigmoid: too little evidence")
    assert usable_origins(fit.evals, (0.25, 0.5, 0.75)) == [0.75]


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
    weights = Backtest(points).weights()
    assert weights["burr"] == pytest.approx(grid[np.argmax(total)], abs=2e-3)
    assert weights.sum() == pytest.approx(1.0)


def test_scores_of_a_known_forecast():
    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 2000})
    frame = fit.evals.frame.iloc[[0]].assign(compute=40.0, value=[0.5], stderr=0.01)
    table = fit.score(Evals(frame))
    latent = 0.2 + 0.4 * 40 / 42  # sigmoid with B = 1
    sd = np.hypot(0.01, 0.01)  # wander forgotten, plus the noise of this evaluation
    row = table.iloc[0]
    assert row["horizon"] == 10.0 and row["band"] == 10.0
    assert row["mean"] == pytest.approx(latent, abs=4 * sd / np.sqrt(2000))
    assert row["q95"] == pytest.approx(latent + 1.645 * sd, abs=0.002)
    want = -0.5 * ((0.5 - latent) / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))
    assert row["log_score"] == pytest.approx(want, abs=0.05)
    assert not row["inside"]


def test_runs_that_had_left_their_curve_are_not_scored():
    fit = hand_fit(
        {"one": [(0.6, 2.0, 1.0)] * 40, "two": [(0.6, 2.0, 1.0)] * 40}, departed='{"one-s0": -6.0}'
    )
    frame = fit.evals.frame.drop_duplicates("run").assign(compute=12.0, value=0.5)
    assert score(fit, Evals(frame))["run"].tolist() == ["two-s0"]
    none = score(fit, Evals(frame[frame["run"] == "one-s0"]))
    assert none.empty and Backtest(none.assign(curve="burr", origin=0.5)).trust() == 1.0


def test_other_runs_are_not_scored():
    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 40})
    other = fit.evals.rename({"one-s0": "other"})
    with pytest.raises(InputError, match="later=other: not in this fit; use runs among one-s0"):
        fit.score(other)


def test_what_was_fitted_is_not_scored():
    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 40})
    last = fit.evals.frame["compute"].max()
    later = pd.concat([fit.evals.frame, fit.evals.frame.tail(1).assign(compute=2 * last)])
    assert score(fit, Evals(later.reset_index(drop=True)))["horizon"].tolist() == [2.0]


def test_a_fit_is_backtested_with_its_own_options(monkeypatch):
    given = []

    def posterior_of(seen, **options):
        given.append(options)
        return hand_fit({"one": [(0.6, 2.0, 1.0)] * 40}).tree

    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 40}, axes='["rate"]', doubt="null", curve="sigmoid")
    monkeypatch.setitem(sc.backtest.__globals__, "posterior_of", posterior_of)
    monkeypatch.setitem(sc.backtest.__globals__, "usable_origins", lambda *_: [0.5])
    fit.backtest()
    assert given and all(x["curve"] == "sigmoid" and x["axes"] == ("rate",) for x in given)
    assert all(x["doubt"] is None and x["noise"] == fit.attrs["noise"] for x in given)


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
    assert right.trust("sigmoid") == right.trust() >= 3.5
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


@pytest.mark.parametrize(("asked", "padded"), [(0, 24), (40, 40)])
def test_it_can_share_the_program_of_a_wider_fit(asked, padded, monkeypatch):
    data, widths = study(lambda x: x / (1 + x)), []

    def posterior_of(seen, *, pad_to, **_):
        widths.append(pad_to)
        return hand_fit({"r0": [(0.6, 2.0, 1.0)] * 40}).tree

    monkeypatch.setitem(sc.backtest.__globals__, "posterior_of", posterior_of)
    sc.backtest(data, curves=("burr",), pad_to=asked)
    assert widths == [padded] * 3
