"""Numbers behind analysis/forecasts.py: by hand, on toys, and against published fits."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from analysis import forecasts
from experiments import external
from rlx.errors import InputError
from rlx.scaling import Evals
from rlx.scaling.curve import sigmoid

RETU = forecasts.ROOT.parent / "shared" / "data" / "retu"  # other people's, not part of the project
DISAGREE = ["pure_rl-0", "s1K-62", "s1K-186", "s1K-248", "s1K-310"]  # A printed, and P_sft + PL


@pytest.fixture(scope="module")
def retu() -> tuple[pd.DataFrame, pd.DataFrame]:
    if not RETU.exists():
        pytest.skip("the curves of arXiv 2512.11470 are not beside the checkout")
    return forecasts.read_retu(RETU)


# ---------------------------------------------------------------- by hand


def test_simple_forecasts_by_hand():
    C, value = np.array([0.0, 1, 2, 3, 4]), np.array([0.2, 0.3, 0.36, 0.39, 0.42])
    said = forecasts.baselines(C, value, np.array([5.0, 9.0]))
    assert list(said) == [name for name in forecasts.METHODS if name != "posterior"]
    assert said["last"].tolist() == [0.42, 0.42]
    assert said["last3"] == pytest.approx([0.39, 0.39], abs=1e-12)


def test_fits_continue_a_curve_of_their_own_family():
    C = np.linspace(0, 8, 21)
    C_mid = forecasts.GRID_C_MID[50] * 8  # on the grid, as are A and, from the first value, R0
    truth = {"A": 0.71, "B": 1.6, "C_mid": C_mid, "R0": 0.233}
    later = np.array([10.0, 20.0, 80.0])
    said = forecasts.baselines(C, sigmoid(C, **truth), later)
    np.testing.assert_allclose(said["grid"], sigmoid(later, **truth), atol=1e-5)
    np.testing.assert_allclose(said["point"], sigmoid(later, **truth), atol=1e-5)


def test_the_grid_is_the_papers_in_units_of_the_fitted_compute():
    assert forecasts.GRID_C_MID * 8000 == pytest.approx(np.linspace(100, 40000, 100), rel=1e-12)
    # nothing but the ceiling 1 is above this start, and the grid ends there
    said = forecasts.baselines(np.arange(6.0), np.full(6, 0.996), np.array([9.0]))
    assert 0.996 <= said["grid"][0] <= 1


def test_a_fall_starts_below_the_best_median_of_five():
    value = [0.50, 0.60, 0.60, 0.60, 0.60, 0.575, 0.569, 0.60, 0.60]
    #        no median of five before the first five; then 0.60 - 0.03 = 0.57
    assert forecasts.fallen(np.array(value)).tolist() == [False] * 6 + [True] * 3
    assert not forecasts.fallen(np.linspace(0.2, 0.6, 30)).any()
    assert not forecasts.fallen(np.array([0.6, 0.1, 0.1, 0.1])).any()
    slow = [0.60] * 5 + [0.58] * 5 + [0.56]  # the best median counts, not the latest
    assert forecasts.fallen(np.array(slow)).tolist() == [False] * 10 + [True]
    assert not forecasts.fallen(np.array([0.6] * 4 + [0.5])).any()  # of the five before


def later_evaluations() -> pd.DataFrame:
    """Three runs; the posterior is off by 0.01 in a, by 0.03 and 0.04 in b, by 0.02 in c."""
    frame = pd.DataFrame(
        {
            "run": ["a", "a", "b", "b", "c"],
            "observed": [0.5, 0.6, 0.5, 0.2, 0.4],
            "horizon": [1.5, 2.0, 2.0, 4.0, 2.0],
            "inside": [True, True, True, False, True],
            "width": [0.1, 0.2, 0.3, 0.3, 0.1],
            "crps": [0.005, 0.007, 0.01, 0.03, 0.01],
            "log_score": [2.0, 1.0, 1.0, -4.0, 0.0],
            "fallen": [False, False, False, True, False],
        }
    )
    off = {"posterior": [0.01, -0.01, 0.03, 0.04, 0.02], "grid": [0.02, 0.02, 0.03, 0.04, 0.16]}
    off |= {"point": [0.0, 0.01, 0.1, 0.1, 0.03], "last": [0.04, 0.02, 0.01, 0.05, 0.02]}
    off |= {"last3": [0.02, 0.02, 0.01, 0.01, 0.01]}
    return frame.assign(**{name: frame["observed"] + np.array(x) for name, x in off.items()})


def test_errors_by_hand():
    table = forecasts.errors(later_evaluations()).set_index(["scope", "run", "method"])
    assert len(table) == 2 * 3 * 5
    row = table.loc["all", "b", "posterior"]
    assert row["rmse"] == pytest.approx(np.sqrt((0.03**2 + 0.04**2) / 2))
    assert row["mae"] == pytest.approx(0.035) and row["crps"] == pytest.approx(0.02)
    assert row["coverage"] == 0.5 and row["log_score"] == -1.5 and row["width"] == 0.3
    assert row["n"] == 2 and row["horizon"] == 4.0
    row = table.loc["all", "a", "last"]
    assert row["rmse"] == pytest.approx(np.sqrt((0.04**2 + 0.02**2) / 2))
    assert row["crps"] == row["mae"] == pytest.approx(0.03) and np.isnan(row["coverage"])
    row = table.loc["before a fall", "b", "posterior"]
    assert row["n"] == 1 and row["rmse"] == pytest.approx(0.03) and row["coverage"] == 1


def test_scores_by_hand():
    table = forecasts.errors(later_evaluations()).assign(study="toy", origin=0.25)
    rows = forecasts.scores(table).set_index(["scope", "method"])
    a, b = 0.01, np.sqrt((0.03**2 + 0.04**2) / 2)  # rmse of the posterior
    mine = rows.loc["all", "posterior"]
    assert mine["rmse"] == pytest.approx((a + b + 0.02) / 3) and mine["runs"] == 3
    assert mine["coverage"] == pytest.approx((1 + 0.5 + 1) / 3) and np.isnan(mine["wins"])
    assert mine["crps"] == pytest.approx((0.006 + 0.02 + 0.01) / 3)
    grid = rows.loc["all", "grid"]  # twice the error in a, the same in b, eight times in c
    assert (grid["wins"], grid["losses"]) == (2, 0)
    assert grid["ratio"] == pytest.approx((2 * 1 * 8) ** (1 / 3))
    point = rows.loc["all", "point"]  # better in a, worse in b and c
    assert (point["wins"], point["losses"]) == (2, 1) and point["rmse_median"] == pytest.approx(
        0.03
    )
    last3 = rows.loc["before a fall", "last3"]
    assert (last3["wins"], last3["losses"]) == (1, 2)
    assert last3["rmse"] == pytest.approx((0.02 + 0.01 + 0.01) / 3)


def test_exports_are_pooled_and_start_at_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "POOLED", 2)
    table = pd.DataFrame({"Step": [3, 4, 5, 6, 7], "my-x - acc": [0.2, 0.3, 0.5, 0.6, 0.8]})
    table["my-y - acc"] = 0.5
    for name in ("my-x - acc", "my-y - acc"):
        table[f"{name}__MIN"] = table[f"{name}__MAX"] = table[name]
    table.to_csv(tmp_path / "export.csv", index=False)
    evals = external.export(tmp_path / "export.csv", known=["my-y"])
    assert evals.runs == ["my-x"] and evals.frame["compute"].tolist() == [0, 1, 2, 3, 4]
    pooled = external.pooled(evals).frame
    assert pooled["compute"].tolist() == [0, 1.5, 3.5]
    assert pooled["value"].tolist() == pytest.approx([0.2, 0.4, 0.7])


# ---------------------------------------------------------------- forecasts of made curves


@pytest.fixture(scope="module")
def made() -> tuple[Evals, pd.DataFrame]:
    """Three runs of 24 evaluations with noise 0.004, one of which falls at the end."""
    rng, parts = np.random.default_rng(0), []
    for i, run in enumerate("abc"):
        C = np.linspace(0, 24 + i, 25)
        value = sigmoid(C, A=0.7, B=1.5, C_mid=4.0 + i, R0=0.3) + 0.004 * rng.standard_normal(25)
        value[22:] -= 0.1 * (run == "c")
        parts.append(pd.DataFrame({"run": run, "compute": C, "value": value}))
    evals = Evals.from_frame(pd.concat(parts), compute="compute", value="value")
    table, posterior = forecasts.forecast(evals, curve="sigmoid", method="laplace", origin=0.5)
    assert posterior.attrs["curve"] == "sigmoid" and posterior.attrs["method"] == "laplace"
    return evals, table


def test_a_forecast_sees_the_first_part_and_is_scored_on_the_rest(made):
    evals, table = made
    assert {*forecasts.METHODS, "inside", "width", "crps", "log_score"} <= set(table)
    for i, run in enumerate("abc"):
        whole = evals.frame[evals.frame["run"] == run]
        mine = table[table["run"] == run]
        assert mine["observed"].tolist() == whole["value"].tolist()[13:]
        assert (mine["last"] == whole["value"].iloc[12]).all()
        assert mine["horizon"].iloc[-1] == pytest.approx(2.0)
        assert mine["fallen"].tolist() == [False] * 9 + [run == "c"] * 3
        truth = sigmoid(mine["compute"], A=0.7, B=1.5, C_mid=4.0 + i, R0=0.3)
        assert np.abs(mine["posterior"] - truth).max() < 0.02
        assert np.abs(mine["last"] - truth).max() > 0.04
    assert table.loc[~table["fallen"], "inside"].mean() > 0.7
    assert not table.loc[table["fallen"], "inside"].any()
    assert (table["width"] == table["q95"] - table["q05"]).all()


def test_the_figure_shows_every_run_and_marks_those_that_fell(made, tmp_path):
    table = forecasts.errors(made[1])
    both = pd.concat([table.assign(study="toy", origin=origin) for origin in forecasts.ORIGINS])
    figure = forecasts.draw(both, "sigmoid", "laplace")
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["a", "b", "c *"]
    at = both.query("scope == 'all' and origin == 0.25 and method == 'posterior'")["rmse"].tolist()
    (line,) = (x for x in figure.axes[0].lines if x.get_label() == forecasts.NAMES["posterior"])
    assert line.get_xdata().tolist() == at
    figure.savefig(tmp_path / "figure.png")
    assert imread(tmp_path / "figure.png").std() > 0.05


# ---------------------------------------------------------------- the published fits


def test_the_published_runs_are_read(retu):
    points, published = retu
    assert points["run"].nunique() == 17 and len(published) == 16
    assert set(points["run"]) - set(published.index) == {"easy102K-6120"}
    assert set(points["recipe"]) == {"pure_rl", "s1K", "easy102K", "uniform102K"}
    row = published.loc["uniform102K-360"]
    assert row[["R0", "B", "C_mid"]].tolist() == [0.722, 1.8, 32]
    assert row["A"] == pytest.approx(0.770) and row["A_printed"] == 0.769
    row = published.loc["s1K-310"]  # eps 1.5, trimmed after tau = 3
    assert row["R0"] == pytest.approx(0.746) and row["alpha"] == 0.75 and row["tau"] == 3
    assert np.isnan(published.loc["s1K-62", "alpha"])
    gap = (published["A"] - published["A_printed"]).abs()
    assert sorted(gap[gap > 0.0015].index) == sorted(DISAGREE)
    windows = points[points["window"]].groupby("run")["compute"].agg(["size", "min", "max"])
    assert windows.loc["uniform102K-360", "size"] == 69  # points 1 to 69 of "fit_points_num" 70
    assert windows.loc["s1K-310", "size"] == 62  # points 8 to 69
    assert windows.loc["pure_rl-0"].tolist() == [33, 0.53, 19.49]
    assert "easy102K-6120" not in windows.index


@pytest.fixture(scope="module")
def agreed(retu) -> pd.DataFrame:
    points, published = retu
    few = ["pure_rl-0", "easy102K-360", "easy102K-1800", "uniform102K-360"]
    return forecasts.agreement(points, published.loc[few], "laplace")[0].set_index("run")


def test_fits_of_published_windows(agreed):
    row = agreed.loc["uniform102K-360"]
    for name in ("point", "robust"):
        assert row[f"A_{name}"] == pytest.approx(0.769, abs=0.0011)
        assert row[f"B_{name}"] == pytest.approx(1.8, abs=0.051)
        assert row[f"C_mid_{name}"] == pytest.approx(32, abs=0.51)
        assert row[f"status_{name}"] == "ok"
    assert row["A_lo"] < 0.769 < row["A_hi"] < 0.8
    assert row["A_q05"] < row["A"] < row["A_q95"] and row["verdict"] == "agrees"
    assert row["A_q95"] - row["A_q05"] < 0.05
    assert row["n"] == 69 and row["n_after"] == 5
    assert row["rmse_published"] == pytest.approx(row["rmse_point"], abs=3e-4)


def test_a_window_that_does_not_bound_its_ceiling_says_so(agreed):
    row = agreed.loc["easy102K-1800"]  # the published ceiling is a bound of its optimiser
    assert row["A_hi"] == np.inf and row["status_robust"] != "ok"
    assert row["verdict"] == "not identified" and "not identified" in row["status"]
    row = agreed.loc["easy102K-360"]  # identified by its standard error, not by its profile
    assert row["status_point"] == "ok" and row["A_hi"] == np.inf
    assert agreed.loc["pure_rl-0", "verdict"] == "agrees"
    assert 0.71 < agreed.loc["pure_rl-0", "A_lo"] < 0.72 < agreed.loc["pure_rl-0", "A_hi"] < 0.73


# ---------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fig=1", "fig=1: unknown option; write KEY=VALUE with one of data, out, curve, method"),
        ("method=mle", r"method=mle: not available; use method=nuts\|laplace"),
        ("curve=power", r"curve=power: not available; use curve=burr\|sigmoid"),
        ("laplace", "laplace=: unknown option"),
    ],
)
def test_options_are_checked(word, message):
    with pytest.raises(InputError, match=message):
        forecasts.main([word])


def test_the_command_refuses_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "analysis.forecasts", f"data={tmp_path}"],
        cwd=forecasts.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: data={tmp_path / 'curves.csv'}: no such file; give the")
