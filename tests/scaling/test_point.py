"""Fits against known curves, brute force and published numbers."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit

from rlx.scaling.curve import sigmoid
from rlx.scaling.data import DataError, read
from rlx.scaling.point import best_levels, fit_paper, fit_point, fit_study

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
LOGS = ROOT.parent / "shared" / "data"  # other people's logs, not part of the project
TRUE = {"A": 0.645, "B": 1.7, "C_mid": 10909.0, "R0": 0.4}


def logs(name: str) -> Path:
    if not (LOGS / name).exists():
        pytest.skip(f"{name} is not beside the checkout")
    return LOGS / name


def assert_close(fit, *, rel=1e-5, **want):
    got = {name: getattr(fit, name) for name in want}
    assert got == pytest.approx(want, rel=rel)


# ---------------------------------------------------------------- recovery


@pytest.mark.parametrize("B", [0.5, 1.1, 4.6])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e15])
def test_recovers_a_noiseless_curve_in_any_unit(B, unit):
    C = np.linspace(500, 60000, 25) * unit
    truth = {"A": 0.7, "B": B, "C_mid": 9000.0 * unit, "R0": 0.15}
    y = sigmoid(C, **truth)
    fit = fit_point(C, y, r0=0.15)
    assert_close(fit, **truth)
    assert fit.status == "ok" and fit.identified and fit.rmse < 1e-8 and fit.n == 25
    assert_close(fit_point(C, y, r0="fit"), rel=1e-3, **truth)


def test_r0_comes_from_the_points_at_zero():
    C = np.array([0.0, *np.linspace(500, 60000, 25)])
    y = sigmoid(C, **TRUE)
    fit = fit_point(C, y, r0="first")
    assert_close(fit, **TRUE)
    assert fit.n == 25  # the point at C = 0 is R0, not a residual
    assert_close(fit_point(C[1:], y[1:], r0="first"), rel=1e-6, R0=y[1])
    assert_close(fit_point(C, y, r0="fit"), rel=1e-4, **TRUE)


def test_noisy_estimates_scatter_around_the_truth():
    rng = np.random.default_rng(0)
    C = np.linspace(1500, 60000, 40)
    fits = [
        fit_point(C, sigmoid(C, **TRUE) + 0.004 * rng.standard_normal(40), r0=0.4)
        for _ in range(40)
    ]
    A, B = (np.array([getattr(fit, name) for fit in fits]) for name in "AB")
    for values, truth in ((A, 0.645), (B, 1.7)):
        assert abs(values.mean() - truth) < 4 * values.std() / np.sqrt(len(values))
    assert A.std() < 0.006
    assert np.mean([fit.rmse for fit in fits]) == pytest.approx(0.004, rel=0.1)


def test_equal_inputs_give_equal_fits():
    C, y = np.linspace(1, 9, 9), sigmoid(np.linspace(1, 9, 9), A=0.5, B=2, C_mid=3, R0=0.1)
    assert fit_point(C, y + 0.01 * np.sin(C * 9), r0=0.1) == fit_point(
        C, y + 0.01 * np.sin(C * 9), r0=0.1
    )


def test_a_point_of_no_weight_does_not_count():
    C = np.linspace(500, 60000, 25)
    y = sigmoid(C, **TRUE)
    weights = np.ones(25)
    y[7], weights[7] = 0.99, 1e-12
    assert_close(fit_point(C, y, r0=0.4, weights=weights), rel=1e-4, **TRUE)
    assert fit_point(C, y, r0=0.4).rmse > 0.01


# ---------------------------------------------------------------- against brute force


def test_closed_form_levels_equal_lstsq():
    rng = np.random.default_rng(1)
    f, y, w = rng.uniform(0.1, 0.9, (6, 12)), rng.uniform(0.3, 0.5, 12), rng.uniform(1, 2, 12)
    w /= w.sum()
    A_K, _ = best_levels(f, y, w, 0.2)
    both_A_K, both_R0_K = best_levels(f, y, w, None)
    root = np.sqrt(w)
    for k in range(6):
        gain = np.linalg.lstsq((root * f[k])[:, None], root * (y - 0.2), rcond=None)[0][0]
        assert A_K[k] == pytest.approx(0.2 + gain)
        design = root[:, None] * np.stack([1 - f[k], f[k]], axis=1)
        R0, A = np.linalg.lstsq(design, root * y, rcond=None)[0]
        if A > R0:  # otherwise the gain is clipped at 0
            assert (both_A_K[k], both_R0_K[k]) == pytest.approx((A, R0))
        assert 0 <= both_R0_K[k] <= both_A_K[k] <= 1


@pytest.mark.parametrize("seed", range(4))
def test_no_cell_of_a_dense_grid_is_better(seed):
    rng = np.random.default_rng(seed)
    truth = {"A": rng.uniform(0.4, 0.9), "B": rng.uniform(0.7, 3), "C_mid": 20.0, "R0": 0.2}
    C = np.linspace(2, 60, 12)
    y = np.clip(sigmoid(C, **truth) + 0.02 * rng.standard_normal(12), 0, 1)
    fit = fit_point(C, y, r0=0.2)
    A, B, C_mid = np.meshgrid(
        np.linspace(0.21, 1, 60), np.geomspace(0.2, 15, 60), np.geomspace(1, 600, 60)
    )
    grid = sigmoid(C, A=A[..., None], B=B[..., None], C_mid=C_mid[..., None], R0=0.2)
    best = np.sqrt(np.mean((grid - y) ** 2, axis=-1).min())
    assert fit.rmse <= best + 1e-12
    assert fit.rmse > 0.5 * best  # the two measure the same thing


def test_paper_grid_equals_curve_fit_in_every_cell():
    rng = np.random.default_rng(2)
    C = np.linspace(1500, 50000, 20)
    y = sigmoid(C, **TRUE) + 0.004 * rng.standard_normal(20)
    A_grid, C_mid_grid = np.arange(0.60, 0.70, 0.01), np.linspace(6000, 16000, 11)
    best = (np.inf, 0.0, 0.0, 0.0)
    for A in A_grid:
        for C_mid in C_mid_grid:
            (B,), _ = curve_fit(
                lambda C, B, A=A, C_mid=C_mid: 0.4 + (A - 0.4) / (1 + (C_mid / C) ** B),
                C,
                y,
                p0=[1.0],  # the default start, given so that A and C_mid are not fitted
            )
            sse = np.sum((sigmoid(C, A=A, B=B, C_mid=C_mid, R0=0.4) - y) ** 2)
            best = min(best, (float(sse), A, B, C_mid))
    fit = fit_paper(C, y, r0=0.4, A_grid=A_grid, C_mid_grid=C_mid_grid)
    assert (fit.A, fit.C_mid) == (best[1], best[3])
    assert fit.B == pytest.approx(best[2], rel=1e-5)
    assert fit.rmse == pytest.approx(np.sqrt(best[0] / 20), rel=1e-8)
    assert fit.rmse >= fit_point(C, y, r0=0.4).rmse


def test_paper_grid_names_a_censoring_edge():
    C = np.linspace(1500, 50000, 20)
    fit = fit_paper(C, sigmoid(C, **(TRUE | {"A": 0.9})), r0=0.4)
    assert fit.status == "A at the edge of its grid" and fit.A == pytest.approx(0.8)


# ---------------------------------------------------------------- what a window determines


@pytest.mark.parametrize(
    ("last_C", "noise", "status"),
    [
        (40000, 0.002, "ok"),
        (3500, 0.002, "C_mid beyond the data|A at its bound 1|A loose: standard error .*"),
        (5000, 0.0, "C_mid beyond the data"),
    ],
)
def test_status_of_a_window(last_C, noise, status):
    C = np.linspace(500, last_C, 20)
    y = sigmoid(C, **TRUE) + noise * np.random.default_rng(3).standard_normal(20)
    assert re.fullmatch(status, fit_point(C, y, r0=0.4).status)


def test_status_of_degenerate_data():
    C = np.arange(1.0, 11.0)
    assert fit_point(C, np.linspace(0.5, 0.3, 10), r0="first").status == "no gain over R0"
    falling = fit_point(C, np.linspace(0.5, 0.3, 10), r0="fit")
    assert not falling.identified and 0 <= falling.R0 <= falling.A
    assert fit_point(C, 0.1 + 0.01 * C**1.5, r0=0.1).status == "A at its bound 1"
    step = np.where(C > 5, 0.6, 0.2)
    assert fit_point(C, step, r0=0.2).status == "B at its bound 20"
    three = fit_point([1.0, 2.0, 4.0], [0.2, 0.4, 0.5], r0=0.1)
    assert three.status == "as many points as parameters" and three.rmse < 1e-6
    assert not three.identified


@pytest.mark.parametrize(
    ("compute", "value", "r0", "message"),
    [
        ([0, 1, 2], [0.1, 0.2, 0.3], "first", "2 points with C > 0 for 3 parameters"),
        ([0, 1, 2, 3], [0.1, 0.2, 0.3, 0.3], "fit", "3 points with C > 0 for 4 parameters"),
        ([1, 2], [0.1, 0.2, 0.3], 0.1, "not one length"),
        ([1, 2, np.nan], [0.1, 0.2, 0.3], 0.1, "not finite"),
        ([-1, 2, 3], [0.1, 0.2, 0.3], 0.1, "compute -1 is negative"),
        ([1, 2, 3], [0.1, 0.2, 0.3], 1.5, r"R0 = 1.5 is not in \[0, 1\)"),
    ],
)
def test_fit_point_refuses(compute, value, r0, message):
    with pytest.raises(ValueError, match=message):
        fit_point(compute, value, r0=r0)


def test_fit_paper_has_no_r0_to_fit():
    with pytest.raises(ValueError, match="give a number or 'first'"):
        fit_paper([1, 2, 3], [0.1, 0.2, 0.3], r0="fit")


# ---------------------------------------------------------------- published curves


def test_figure_1a_of_the_paper(record_property):
    # arXiv 2510.13786 prints A = 0.645, B = 1.70 for the window (0, 50k)
    table = pd.read_csv(DATA / "digitized_fig1a.csv").query("run == '8B_dense'")
    seen, later = table[table["split"] == "fit"], table[table["split"] == "extended"]
    fit = fit_point(seen["gpu_hours"], seen["pass_rate"], r0=0.40)
    assert fit.A == pytest.approx(0.645, abs=0.02)
    assert fit.B == pytest.approx(1.7, abs=0.25)
    assert fit.status == "ok" and fit.rmse < 0.005
    paper = fit_paper(seen["gpu_hours"], seen["pass_rate"], r0=0.40)
    assert paper.A == pytest.approx(fit.A, abs=0.005)
    assert paper.B == pytest.approx(fit.B, abs=0.1)
    rmse = np.sqrt(np.mean((fit.at(later["gpu_hours"]) - later["pass_rate"]) ** 2))
    persistence = np.sqrt(np.mean((seen["pass_rate"].iloc[-1] - later["pass_rate"]) ** 2))
    record_property("rmse_extended", float(rmse))
    print(f"extended points: RMSE {rmse:.4f}; last seen value carried on {persistence:.4f}")
    assert rmse < min(0.015, persistence)


def test_table_1_of_the_paper():
    table = pd.read_csv(DATA / "table1.csv")
    assert len(table) == 10
    for row in table.itertuples():
        C = np.linspace(0.2, 8, 24) * row.C_mid_gpu_hours
        want = {"A": row.A, "B": row.B, "C_mid": float(row.C_mid_gpu_hours)}
        y = sigmoid(C, R0=0.4, **want)
        assert_close(fit_point(C, y, r0=0.4), **want)
        rounded = fit_paper(C, y, r0=0.4)  # quantised: 0.005 in A, 403 GPU-hours in C_mid
        assert rounded.A == pytest.approx(row.A, abs=0.0051)
        assert rounded.C_mid == pytest.approx(row.C_mid_gpu_hours, abs=404)


WANDB = {  # run: A, B, C_mid in seconds, by plain least squares with R0 = first evaluation
    "p2b4": (0.659, 0.96, 6.5e3),
    "p1b4": (0.651, 0.78, 4.6e3),
    "p1b8-gamma2.0-lam1.0-expandall": (0.656, 0.97, 7.9e3),
    "p1-b8": (0.668, 0.99, 7.1e3),
}


def test_a_wandb_export_of_four_gsm8k_runs():
    frame = read(logs("deep_grpo/scale_budget.csv"))
    assert frame["run"].value_counts().tolist() == [781, 592, 577, 365]
    whole, half = fit_study(frame, holdout=0), fit_study(frame, holdout=0.5)
    assert len(whole) == 4
    for key, (A, B, C_mid) in WANDB.items():
        fit = next(f.fit for f in whole if f"sp-{key}-" in f.run)
        assert fit is not None and fit.identified
        assert fit.A == pytest.approx(A, abs=0.001)
        assert fit.B == pytest.approx(B, abs=0.01)
        assert fit.C_mid == pytest.approx(C_mid, rel=0.02)
        assert fit.rmse == pytest.approx(0.0083, abs=0.0004)
    assert all(0.0085 < f.rmse_heldout < 0.0125 for f in half)


def test_windows_that_do_not_show_their_ceiling_say_so():
    curves = read(
        logs("retu/curves.csv"),
        axes=["scene", "sft_ckpt"],
        value="overall_weighted",
        scale="percent",
    )
    settings = pd.read_csv(logs("retu/fit_settings.csv"))
    n_points = {f"{s.scene}-{s.sft_ckpt}": s.fit_points_num for s in settings.itertuples()}

    def window(run, r0):
        rows = curves[curves["run"] == run].head(n_points[run])
        return fit_point(rows["compute"], rows["value"], r0=r0)

    for run in ("easy102K-720", "uniform102K-1080", "s1K-310"):
        assert not window(run, "first").identified
    for run in ("easy102K-720", "easy102K-1080", "easy102K-1800"):
        published = {"720": 0.733, "1080": 0.742, "1800": 0.744}[run.split("-")[1]]
        assert not window(run, published).identified
    fit = window("uniform102K-360", 0.722)  # published: A 76.9, B 1.8, C_mid 32
    assert fit.identified
    assert_close(fit, rel=0.03, A=0.769, B=1.8, C_mid=32.0)


# ---------------------------------------------------------------- studies


def study(last: float = 40000.0, n: int = 21, **columns) -> pd.DataFrame:
    C = np.linspace(0, last, n)
    frame = pd.DataFrame({"run": "a", "compute": C, "value": sigmoid(C, **TRUE)})
    return frame.assign(recipe="r", seed=0, axes="", trials=np.nan, truth=0.645, **columns)


def test_study_is_split_by_compute():
    frame = study()
    frame.loc[frame["compute"] > 20000, "value"] += 0.03
    [fit] = fit_study(frame, holdout=0.5)
    assert fit.C_fit == 20000 and fit.fit is not None and fit.fit.n == 10
    assert fit.rmse_heldout == pytest.approx(0.03, rel=1e-4)
    assert_close(fit.fit, **TRUE)
    [tail] = fit_study(frame, holdout=0.25)
    assert tail.C_fit == 30000
    [whole] = fit_study(frame, holdout=0)
    assert whole.C_fit == 40000 and np.isnan(whole.rmse_heldout)


def test_study_takes_r0_from_a_column():
    [fit] = fit_study(study(start=0.4)[1:], r0="start")
    assert fit.fit is not None and fit.fit.R0 == 0.4
    assert_close(fit.fit, **TRUE)


def test_a_run_too_short_to_fit_is_reported():
    [fit] = fit_study(study(n=5), holdout=0.5)
    assert fit.fit is None and np.isnan(fit.rmse_heldout)
    assert fit.status == "too short: 2 points with C > 0 for 3 parameters"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 1.0}, r"holdout=1.0: not in \[0, 1\); 0.5 holds out the second half"),
        ({"r0": "eps"}, "r0=eps: unknown; use first, fit, a number or a column's name"),
        ({"r0": 46.7}, r"r0=46.7: run a: not a pass rate in \[0, 1\); give it in the unit of"),
    ],
)
def test_study_options_are_checked(options, message):
    with pytest.raises(DataError, match=message):
        fit_study(study(), **options)
