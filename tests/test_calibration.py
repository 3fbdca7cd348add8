"""Simulated studies against their formulas, and the numbers made of recorded fits, by hand."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

import rlx.scaling as sc
from analysis.calibration import draw
from experiments import calibration, verdicts
from experiments.calibration import (
    HORIZONS,
    R0,
    TRIALS,
    VARIANTS,
    Task,
    clustered,
    gained,
    log_score,
    main,
    parse,
    read_records,
    simulate,
    summarise,
    work,
)
from rlx.errors import InputError
from rlx.scaling.data import Evals

SMALL = ["variants=[well]", "curves=[sigmoid]", "method=laplace", "size=small"]


@pytest.fixture(scope="module")
def studies():
    return [simulate("well", seed) for seed in range(80)]


def residuals(evals, truth):
    """Evaluations at C > 0 minus the true curve, [R, M]."""
    table = evals.frame.pivot(index="run", columns="compute", values="value").loc[truth.runs]
    table = table.drop(columns=0.0)
    return table.to_numpy() - truth.curve(table.columns.to_numpy())


# ---------------------------------------------------------------- the simulator


@pytest.mark.parametrize(
    ("variant", "x", "B", "want"),
    [
        ("well", 2.0, 2.0, 4 / 5),
        ("one_seed", 2.0, 1.0, 2 / 3),
        ("short", 1.0, 1.7, 1 / 2),
        ("late_collapse", 3.0, 1.0, 3 / 4),
        ("slow_tail", 1.0, 1.3, 1 / 2),
        ("slow_tail", 2.0, 5 / 3, (1 + (2 ** (1 / 3) - 1) / 2) ** -3),
        ("switch", 1.0, 2.0, (0.5 - 1 / (1 + math.e**2)) / (1 - 1 / (1 + math.e**2))),
        ("switch", 3.0, 1.5, (1 / (1 + math.exp(-3)) - 0.18242552) / (1 - 0.18242552)),
        ("weibull", 1.0, 1.9, 1 / 2),
        ("weibull", 2.0, 2.0, 1 - 2**-4),
    ],
)
def test_the_share_gained(variant, x, B, want):
    assert gained(variant, np.array(x), np.array(B)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_curve_rises_from_R0_to_its_ceiling(variant):
    _, truth = simulate(variant, 3)
    straight = replace(truth, turn_R=np.full(len(truth.runs), np.inf))
    curve = straight.curve(np.array([0.0, *np.geomspace(1e-3, 1e9, 40)]))
    assert (curve[:, 0] == R0).all() and (np.diff(curve) >= 0).all()
    assert curve[:, -1] == pytest.approx(straight.A_R, abs=1e-4)
    assert straight.A_R == pytest.approx(R0 + (1 - R0) * expit(truth.theta_RQ[:, 0]))
    assert truth.A_J == pytest.approx(R0 + (1 - R0) * expit(truth.theta_JQ[:, 0]))


def test_the_slow_tail_has_two_exponents():
    def exponent(y, x):
        return np.diff(np.log(y))[0] / np.diff(np.log(x))[0]

    early, late = np.array([1e-8, 1e-7]), np.array([1e7, 1e8])
    assert exponent(gained("slow_tail", early, 1.5), early) == pytest.approx(2.7, abs=1e-2)
    assert exponent(1 - gained("slow_tail", late, 1.5), late) == pytest.approx(-0.9, abs=1e-2)


def test_the_curve_of_a_run_by_hand():
    _, truth = simulate("well", 0)
    a, c, b = truth.theta_RQ[4]
    A, C_mid, B = R0 + 0.75 / (1 + math.exp(-a)), math.exp(c), math.exp(b)
    want = [R0 + (A - R0) / (1 + (C_mid / C) ** B) for C in (0.5, 7.0)]
    assert truth.curve([0.5, 7.0])[4] == pytest.approx(want)


def test_the_population(studies):
    """80 studies of 8 recipes x 3 seeds: means within 4 standard errors, sds within 4 of theirs."""
    recipe = np.array([truth.theta_JQ for _, truth in studies])
    run = np.array([truth.theta_RQ for _, truth in studies]).reshape(80, 8, 3, 3)
    mean, sd = np.array([-0.1, math.log(3), math.log(1.5)]), np.array([0.3, 0.35, 0.1])
    recipe_sd, seed_sd = np.array([0.35, 0.40, 0.15]), np.array([0.10, 0.12, 0.06])
    study_sd = np.sqrt(sd**2 + recipe_sd**2 / 8)
    assert (np.abs(recipe.mean((0, 1)) - mean) < 4 * study_sd / math.sqrt(80)).all()
    assert recipe.mean(1).std(0, ddof=1) == pytest.approx(study_sd, rel=4 / math.sqrt(160))
    spread = np.sqrt(recipe.var(1, ddof=1).mean(0))
    assert spread == pytest.approx(recipe_sd, rel=4 / math.sqrt(2 * 560))
    deviation = np.sqrt(((run - recipe[:, :, None]) ** 2).mean((0, 1, 2)))
    assert deviation == pytest.approx(seed_sd, rel=4 / math.sqrt(2 * 1920))


def test_the_noise(studies):
    """Variance p (1 - p) / n + sd^2, autocovariance sd^2 phi^lag, over 80 x 24 x 20 evaluations."""
    residual = np.concatenate([residuals(*study) for study in studies])
    C_M = np.linspace(0.2, 4.0, 20)
    p = np.concatenate([truth.curve(C_M) for _, truth in studies])
    assert abs(residual.mean()) < 5e-4
    assert (residual**2).mean() == pytest.approx((p * (1 - p) / TRIALS).mean() + 0.008**2, rel=0.03)
    assert (residual[:, 0] ** 2).mean() == pytest.approx(
        (p[:, 0] * (1 - p[:, 0]) / TRIALS).mean() + 0.008**2, rel=0.13
    )  # the wander starts in its stationary state
    for lag in (1, 3):
        products = residual[:, lag:] * residual[:, :-lag]
        assert products.mean() == pytest.approx(0.008**2 * 0.7**lag, rel=0.12)


def test_a_fresh_evaluation(studies):
    """The wander goes on at C_max and is forgotten at 2 C_max; the mean is the true curve."""
    last = np.concatenate([residuals(*study)[:, -1] for study in studies])
    fresh = np.concatenate(
        [truth.fresh_RH - truth.curve(HORIZONS * truth.C_max) for _, truth in studies]
    )
    p = np.concatenate([truth.curve(HORIZONS * truth.C_max) for _, truth in studies])
    assert (fresh[:, 0] * last).mean() == pytest.approx(0.008**2, rel=0.2)
    assert abs((fresh[:, 1] * last).mean()) < 0.2 * 0.008**2
    want = (p * (1 - p) / TRIALS).mean(0) + 0.008**2
    assert (fresh**2).mean(0) == pytest.approx(want, rel=0.13)
    assert np.abs(fresh.mean(0)).max() < 4 * 0.011 / math.sqrt(80 * 24)


def test_the_wander_fades_between_evaluations(monkeypatch):
    """phi is per evaluation: two evaluations after the last one, the covariance is sd^2 phi^2."""
    monkeypatch.setattr(calibration, "HORIZONS", np.array([1 + 2 / 20]))
    studies = [simulate("well", seed) for seed in range(60)]
    last = np.concatenate([residuals(*study)[:, -1] for study in studies])
    fresh = np.concatenate([t.fresh_RH - t.curve(np.array([4.4])) for _, t in studies])
    assert (fresh[:, 0] * last).mean() == pytest.approx(0.008**2 * 0.49, rel=0.3)


def test_all_runs_share_one_evaluation_of_R0(studies):
    starts = []
    for evals, _ in studies:
        rows = evals.frame[evals.frame["compute"] == 0]
        assert len(rows) == 24 and rows["value"].nunique() == 1 and rows["start"].nunique() == 1
        starts.append(rows["value"].iloc[0])
    sd = math.sqrt(R0 * (1 - R0) / TRIALS)
    assert np.mean(starts) == pytest.approx(R0, abs=4 * sd / math.sqrt(80))
    assert np.std(starts) == pytest.approx(sd, rel=4 / math.sqrt(160))


def test_evals_are_as_the_reader_makes_them():
    evals, truth = simulate("well", 5)
    read = Evals.from_frame(
        evals.frame.drop(columns=["stderr", "value", "axes", "truth"]),
        **{
            name: name for name in ("run", "recipe", "seed", "compute", "passes", "trials", "start")
        },
    )
    columns = ["run", "recipe", "seed", "compute", "value", "stderr", "passes", "trials", "start"]
    pd.testing.assert_frame_equal(evals.frame[columns], read.frame[columns])
    assert evals.runs == truth.runs and len(evals.frame) == 24 * 21
    recipe = evals.frame.drop_duplicates("run")["recipe"].tolist()
    assert recipe == [truth.recipes[j] for j in truth.recipe_R]
    assert recipe == [run.partition("-s")[0] for run in truth.runs]


@pytest.mark.parametrize(
    ("variant", "size", "runs", "points", "C_max"),
    [
        ("well", "full", 24, 20, 4.0),
        ("one_seed", "full", 8, 20, 4.0),
        ("short", "full", 24, 20, 1.5),
        ("weibull", "small", 6, 10, 4.0),
    ],
)
def test_the_size_of_a_study(variant, size, runs, points, C_max):
    evals, truth = simulate(variant, 1, size)
    assert len(truth.runs) == runs and truth.C_max == C_max
    for _, rows in evals.frame.groupby("run"):
        assert rows["compute"].to_numpy() == pytest.approx(np.linspace(0, C_max, points + 1))


def test_a_study_is_a_function_of_its_seed():
    first, again, other = (simulate("late_collapse", seed)[0].sha256() for seed in (7, 7, 8))
    assert first == again != other


def test_a_third_of_the_runs_declines():
    turns, slopes = [], []
    for seed in range(40):
        _, truth = simulate("late_collapse", seed)
        gone = np.isfinite(truth.turn_R)
        assert gone.sum() == 8 and (truth.A_R[gone] == R0).all() and (truth.A_R[~gone] > R0).all()
        straight = replace(truth, turn_R=np.full(24, np.inf))
        C = np.linspace(0, 40, 161)
        curve, rising = truth.curve(C), straight.curve(C)
        assert (curve[~gone] == rising[~gone]).all()
        for r in np.flatnonzero(gone):
            turn, slope = truth.turn_R[r], truth.slope_R[r]
            top = float(straight.curve(np.array([turn]))[r, 0])
            want = np.maximum(R0, top - slope * (C - turn))
            assert curve[r] == pytest.approx(np.where(C < turn, rising[r], want))
        turns.extend(truth.turn_R[gone] / 4)
        slopes.extend(truth.slope_R[gone] * 4)
    assert 0.6 <= min(turns) < 0.61 and 0.99 < max(turns) <= 1
    low, high = calibration.DECLINE
    assert low <= min(slopes) < low + 0.005 and high - 0.005 < max(slopes) <= high
    assert np.mean(turns) == pytest.approx(0.8, abs=4 * 0.4 / math.sqrt(12 * 320))
    assert np.isinf(simulate("well", 0)[1].turn_R).all()


# ---------------------------------------------------------------- one fit


def test_the_log_score():
    def log_pmf(k, p):
        choose = math.lgamma(TRIALS + 1) - math.lgamma(k + 1) - math.lgamma(TRIALS - k + 1)
        return choose + k * math.log(p) + (TRIALS - k) * math.log(1 - p)

    mixture = (math.exp(log_pmf(2000, 0.49)) + math.exp(log_pmf(2000, 0.51))) / 2
    got = log_score(np.array([0.5]), np.array([[0.49], [0.51]]))
    assert got == pytest.approx([math.log(TRIALS * mixture)])
    sd = math.sqrt(0.6 * 0.4 / TRIALS)
    got = log_score(np.array([0.61]), np.array([[0.6]]))
    assert got == pytest.approx([norm.logpdf(0.61, 0.6, sd)], abs=0.02)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A whole small run from the command line."""
    out = tmp_path_factory.mktemp("calibration") / "new"
    assert main([*SMALL, "studies=2", f"out={out}"]) == 0
    return out


def test_a_recorded_fit_is_the_fit(done):
    row = read_records(done)[Task("well", 1, "sigmoid", "fit")]
    evals, truth = simulate("well", 1, "small")
    fit = sc.fit(evals, curve="sigmoid", method="laplace")
    A = fit.param("A", "recipe").sel(recipe="recipe2").values
    assert row["A_recipe"]["low"][2] == pytest.approx(np.quantile(A, 0.05), abs=1e-5)
    assert row["A_recipe"]["median"][2] == pytest.approx(np.median(A), abs=1e-5)
    assert row["A_recipe"]["high"][2] == pytest.approx(np.quantile(A, 0.95), abs=1e-5)
    assert row["A_recipe"]["truth"][2] == pytest.approx(truth.A_J[2], abs=1e-5)
    A = fit.param("A", "run").sel(run="recipe1-s1").values
    assert row["A_run"]["median"][3] == pytest.approx(np.median(A), abs=1e-5)
    assert row["A_run"]["truth"][3] == pytest.approx(truth.A_R[3], abs=1e-5)
    pairs = [("recipe0", "recipe1"), ("recipe0", "recipe2"), ("recipe1", "recipe2")]
    above = [fit.prob("A", i, ">", j)["prob"] for i, j in pairs]
    assert row["prob_above"] == pytest.approx(above, abs=1e-5)
    curve = fit.curve([8.0], by="run").sel(run="recipe2-s0").values
    answer = {name: x[4][1] for name, x in row["curve_run"].items()}
    assert answer["mean"] == pytest.approx(curve.mean(), abs=1e-5)
    assert answer["high"] == pytest.approx(np.quantile(curve, 0.95), abs=1e-5)
    assert answer["truth"] == pytest.approx(truth.curve(np.array([8.0]))[4, 0], abs=1e-5)
    fresh = {name: np.array(x) for name, x in row["fresh_run"].items()}
    assert fresh["truth"] == pytest.approx(truth.fresh_RH, abs=1e-5)
    wider = fresh["high"] - fresh["low"] > np.array(row["curve_run"]["high"]) - answer["high"]
    assert wider.all()
    assert row["recipe_of_run"] == [0, 0, 1, 1, 2, 2] and row["converged"]
    assert row["departed"] == [status == "departed" for status in fit.status(by="run")]


def test_log_scores_are_those_of_the_predictive_density(done):
    """Against a normal kernel estimate of the density of the fit's own simulated evaluations."""
    row = read_records(done)[Task("well", 0, "sigmoid", "fit")]
    evals, truth = simulate("well", 0, "small")
    fit = sc.fit(evals, curve="sigmoid", method="laplace")
    drawn = fit.predict(HORIZONS * 4.0, trials=TRIALS).values.reshape(-1, 6, 4)
    width = 0.3 * drawn.std(0)
    kernel = norm.logpdf(truth.fresh_RH, drawn, width)
    want = np.log(np.exp(kernel).mean(0))
    got = np.array(row["fresh_run"]["log_score"])
    near = want > 1  # not in a tail, where the kernel tells little
    assert near.sum() > 8 and np.abs(got - want)[near].max() < 0.3
    assert abs((got - want)[near].mean()) < 0.06
    assert abs((got - want)[:, 0].mean()) < 0.08  # where sampling noise is most of it


def test_point_estimates_are_those_of_the_point_fits(done):
    row = read_records(done)[Task("well", 0, "sigmoid", "fit")]
    evals, _ = simulate("well", 0, "small")
    rows = evals.frame[evals.frame["run"] == "recipe1-s0"]
    C, y = rows["compute"].to_numpy(), rows["value"].to_numpy()
    A_grid, C_mid_grid = np.linspace(0.3, 1.0, 141), np.linspace(0.1, 40.0, 100)
    grid = sc.fit_paper(C, y, r0=y[0], A_grid=A_grid, C_mid_grid=C_mid_grid)
    point = sc.fit_point(C, y, r0=y[0])
    assert row["grid_A"][2] == pytest.approx(grid.A) and row["point_A"][2] == pytest.approx(
        point.A, abs=1e-5
    )
    assert row["grid"][2] == pytest.approx(grid.at([4.0, 8.0, 16.0, 40.0]), abs=1e-5)
    assert row["point"][2] == pytest.approx(point.at([4.0, 8.0, 16.0, 40.0]), abs=1e-5)
    assert row["last"][2] == pytest.approx([y[-1]] * 4, abs=1e-5)


def test_the_files_of_a_run(done, capsys):
    names = {path.name for path in done.iterdir()}
    assert names == {"records.jsonl", "calibration.csv", "pairs.csv"}
    table = pd.read_csv(done / "calibration.csv")
    assert (table["studies"] == 2).all() and set(table["runs"]) <= {"all", "unflagged"}
    assert len(table[table["runs"] == "all"]) == 2 + 4 + 4
    assert len(pd.read_csv(done / "pairs.csv")) == 6 + 2
    assert len(draw(table, pd.read_csv(done / "pairs.csv")).axes) == 8 + 2
    before = (done / "records.jsonl").read_bytes()
    assert main([*SMALL, "studies=2", f"out={done}"]) == 0  # nothing is left to do
    assert (done / "records.jsonl").read_bytes() == before
    assert "wrote calibration.csv" in capsys.readouterr().out


# ---------------------------------------------------------------- many fits


@pytest.fixture
def asked(monkeypatch):
    """The tasks that are carried out, each recorded with made-up answers."""
    tasks = []

    def record(task, *, size, method):
        tasks.append(task)
        return task._asdict() | {"size": size, "method": method, "answer": len(tasks)}

    monkeypatch.setattr(calibration, "record", record)
    return tasks


def config(out, *words):
    return parse([f"out={out}", "variants=[well,short]", "curves=[burr]", *words])


def test_an_interrupted_run_goes_on(asked, tmp_path):
    work(config(tmp_path, "studies=2"))
    everything = [Task(v, s, "burr", "fit") for v in ("well", "short") for s in (0, 1)]
    assert asked == everything
    path = tmp_path / "records.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:17])  # killed while it wrote
    assert list(read_records(tmp_path)) == everything[:2]
    asked.clear()
    work(config(tmp_path, "studies=2"))
    assert asked == everything[2:]
    assert [
        Task(*list(json.loads(x).values())[:4]) for x in path.read_text().splitlines()
    ] == everything
    asked.clear()
    work(config(tmp_path, "studies=2", "backtest=true"))
    assert asked == [task._replace(kind="trust") for task in everything]
    asked.clear()
    work(config(tmp_path, "studies=3", "curves=[burr,sigmoid]"))
    assert len(asked) == len(set(asked)) == 12 - 4 and not set(asked) & set(everything)


def test_workers_share_the_studies(asked, tmp_path):
    work(config(tmp_path, "studies=1"))
    shares = []
    for worker in range(3):
        asked.clear()
        work(config(tmp_path, "studies=5", "workers=3"), worker)
        shares.append(sorted({task.seed for task in asked if task.variant == "short"}))
        assert (tmp_path / f"records-{worker}.jsonl").exists()
    assert shares == [[3], [1, 4], [2]]
    assert len(read_records(tmp_path)) == 10


class Inline:
    """A process that runs when it is started, in this process."""

    def __init__(self, target, args, daemon):
        self.work, self.exitcode = (lambda: target(*args)), None

    def start(self):
        try:
            self.work()
            self.exitcode = 0
        except SystemExit as stop:
            self.exitcode = stop.code

    def join(self):
        assert self.exitcode is not None


def test_one_process_per_worker(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration.os, "environ", {"OMP_NUM_THREADS": "2"})
    monkeypatch.setattr(calibration, "get_context", lambda kind: SimpleNamespace(Process=Inline))
    assert calibration.run(config(tmp_path, "studies=3", "workers=2")) == 0
    assert [task.seed for task in asked] == [0, 2, 0, 2, 1, 1]
    assert calibration.os.environ["OMP_NUM_THREADS"] == "2"  # as the user has it
    assert calibration.os.environ["OPENBLAS_NUM_THREADS"] == "1"

    def stop(task, **options):
        if task.seed == 3:  # of the second worker
            raise KeyboardInterrupt
        return task._asdict() | options

    monkeypatch.setattr(calibration, "record", stop)
    assert calibration.run(config(tmp_path, "studies=4", "workers=2")) == 75


def test_a_folder_of_other_fits_is_refused(asked, tmp_path, capsys):
    work(config(tmp_path, "studies=1"))
    for word in ("size=small", "method=laplace"):
        key, value = word.split("=")
        assert main([f"out={tmp_path}", word, "studies=1"]) == 2
        assert f"error: out={tmp_path}: holds records of {key}=" in capsys.readouterr().err
    assert len(asked) == 2


def test_an_interruption_is_not_an_error(monkeypatch, tmp_path, capsys):
    def stop(task, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "record", stop)
    assert main([f"out={tmp_path}", "studies=1"]) == 75
    assert "the same command continues" in capsys.readouterr().err


def test_nothing_recorded(tmp_path, capsys):
    assert main([f"out={tmp_path}", "studies=0"]) == 2
    assert capsys.readouterr().err.endswith("holds no records; give studies=1 or more\n")


def test_scores_of_all_sets_read_no_option_of_simulations():
    assert parse(["sets=all", "method=laplace", "studies=3"]).studies == 3
    with pytest.raises(InputError, match="workers=2: not read with sets=all"):
        parse(["sets=all", "workers=2"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("study=3", "study=3: unknown option; write KEY=VALUE with one of sets, data, studies,"),
        ("studies", "studies=: unknown option"),
        ("studies=many", "studies=many: Value 'many' of type 'str' could not be converted"),
        ("studies=-1", "studies=-1: negative"),
        ("workers=0", "workers=0: not positive"),
        ("variants=[well,bad]", "variants=bad: unknown; use well, one_seed,"),
        ("curves=[power]", "curves=power: unknown; use burr, sigmoid"),
        ("method=map", "method=map: unknown; use nuts, laplace"),
        ("size=big", "size=big: unknown; use full, small"),
        ("sets=some", "sets=some: unknown; use simulated, all"),
    ],
)
def test_options_that_cannot_be_used(word, message, capsys):
    with pytest.raises(InputError) as error:
        parse([word])
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert main([word]) == 2 and capsys.readouterr().err.startswith(f"error: {message}")


def test_the_default_options():
    got = parse([])
    assert got.studies == 50 and tuple(got.variants) == VARIANTS
    assert got.curves == ["burr", "sigmoid"] and got.method == "nuts" and got.size == "full"


# ---------------------------------------------------------------- summaries, by hand


def fit_row(seed, *, converged=True, inside=1, departed=(False, False, False), **changes):
    """Recipes 0 (two runs) and 1 (one run) with A = 0.5 and 0.7; intervals of width 0.1 or a miss.

    `inside` of the three runs hold A and the curve at every horizon; recipe 0 is held, 1 is not.
    """
    low_R = [0.45 if r < inside else 0.55 for r in range(3)]
    A_R = [0.5, 0.5, 0.5]
    four = [[x] * 4 for x in low_R]
    curve = {
        "truth": [[0.5] * 4] * 3,
        "low": four,
        "high": [[x + 0.1 for x in row] for row in four],
        "mean": [[0.5, 0.51, 0.52, 0.54]] * 3,
    }
    return {
        "variant": "well", "seed": seed, "curve": "burr", "kind": "fit", "converged": converged,
        "recipe_of_run": [0, 0, 1], "departed": list(departed), "declines": [False] * 3,
        "A_recipe": {
            "truth": [0.5, 0.7], "low": [0.4, 0.75], "high": [0.6, 0.85], "median": [0.53, 0.74],
        },
        "A_run": {
            "truth": A_R, "low": low_R, "high": [x + 0.1 for x in low_R], "median": [0.5, 0.6, 0.7],
        },
        "curve_run": curve,
        "fresh_run": curve | {"log_score": [[3.0, 2.0, 1.0, 0.5]] * 3},
        "prob_above": [0.05],
        "grid_A": [0.6, 0.5, 0.58], "point_A": [0.5, 0.5, 0.9],
        "grid": [[0.51, 0.52, 0.54, 0.58]] * 3, "point": [[0.5] * 4, [0.53] * 4, [0.5] * 4],
        "last": [[0.47] * 4] * 3,
    } | changes  # fmt: skip


def trust_row(seed, trust):
    keys = {"variant": "well", "seed": seed, "curve": "burr", "kind": "trust"}
    return keys | {"trust": trust}


def at(table, quantity, horizon=None, runs="all"):
    rows = table[(table["quantity"] == quantity) & (table["runs"] == runs)]
    rows = rows[rows["horizon"].isna()] if horizon is None else rows[rows["horizon"] == horizon]
    (row,) = rows.to_dict("records")
    return row


def test_coverage_and_errors_by_hand():
    second = fit_row(1, inside=1)
    second["A_recipe"]["high"] = [1.0, 0.85]
    table, _ = summarise([fit_row(0, inside=3), second])
    run = at(table, "A_run")
    assert run["studies"] == 2 and run["share"] == 1 and run["unconverged"] == 0
    assert run["coverage"] == pytest.approx(4 / 6)
    assert run["coverage_se"] == pytest.approx(math.sqrt(2 * (1 + 1)) / 6)  # k - p n = 1, -1
    assert run["width"] == pytest.approx(0.1)
    assert run["rmse"] == pytest.approx(math.sqrt((0 + 0.01 + 0.04) / 3))
    assert run["rmse_grid"] == pytest.approx(math.sqrt((0.01 + 0 + 0.0064) / 3))
    assert run["rmse_point"] == pytest.approx(math.sqrt(0.16 / 3))
    assert run["ratio"] == pytest.approx(run["rmse"] / run["rmse_grid"])
    assert run["grid_within"] == pytest.approx(1 / 3) and math.isnan(run["rmse_last"])
    recipe = at(table, "A_recipe")
    assert recipe["coverage"] == 0.5 and recipe["coverage_se"] == 0
    assert recipe["width"] == pytest.approx(0.15)  # of 0.2, 0.1, 0.6 and 0.1
    assert recipe["grid_within"] == 0
    assert recipe["rmse"] == pytest.approx(math.sqrt((0.0009 + 0.0016) / 2))
    assert recipe["rmse_grid"] == pytest.approx(math.sqrt((0.05**2 + 0.12**2) / 2))  # 0.55 and 0.58
    curve = at(table, "curve_run", 4.0)
    assert curve["coverage"] == pytest.approx(4 / 6) and curve["rmse"] == pytest.approx(0.02)
    assert curve["rmse_grid"] == pytest.approx(0.04) and curve["ratio"] == pytest.approx(0.5)
    assert curve["rmse_point"] == pytest.approx(0.03 / math.sqrt(3))
    assert curve["rmse_last"] == pytest.approx(0.03) and math.isnan(curve["log_score"])
    assert at(table, "curve_run", 10.0)["rmse"] == pytest.approx(0.04)
    assert at(table, "fresh_run", 2.0)["log_score"] == pytest.approx(2.0)
    assert len(table) == 2 * (1 + 1 + 4 + 4)  # all and unflagged


def test_a_fit_that_did_not_converge_holds_nothing():
    table, pairs = summarise([fit_row(0, inside=3), fit_row(1, inside=3, converged=False)])
    row = at(table, "A_run")
    assert row["unconverged"] == 0.5 and row["coverage"] == 0.5 and row["rmse"] > 0
    ranked = pairs.set_index("rule").loc["P > 0.9"]
    assert ranked["pairs"] == 1 and ranked["share"] == 0.5


def test_departed_runs_are_left_out_of_the_unflagged():
    rows = [fit_row(0, inside=1, departed=(False, True, False)), fit_row(1, inside=3)]
    table, _ = summarise(rows)
    run = at(table, "A_run", runs="unflagged")
    assert run["share"] == pytest.approx(5 / 6) and run["coverage"] == pytest.approx(4 / 5)
    recipe = at(table, "A_recipe", runs="unflagged")  # recipe 0 of study 0 has a departed run
    assert recipe["share"] == 0.75 and recipe["coverage"] == pytest.approx(1 / 3)
    assert at(table, "A_run")["coverage"] == pytest.approx(4 / 6)


def test_trusted_studies():
    rows = [fit_row(seed, inside=seed) for seed in (1, 2, 3)]
    table, _ = summarise([*rows, trust_row(1, 4.0), trust_row(2, 2.0)])
    far = at(table, "curve_run", 4.0, "trusted")
    assert far["studies"] == 1 and far["coverage"] == pytest.approx(1 / 3) and far["share"] == 0.5
    near = at(table, "curve_run", 2.0, "trusted")
    assert near["studies"] == 2 and near["coverage"] == pytest.approx(3 / 6) and near["share"] == 1
    rows = table[table["runs"] == "trusted"]
    assert set(rows["quantity"]) == {"curve_run", "fresh_run"} and rows["horizon"].max() == 4


def test_pairs_by_hand():
    above = [0.05, 0.55, 0.65, 0.95, 0.02]  # of recipe 0, which is the lower one
    rows = [fit_row(seed, prob_above=[p]) for seed, p in enumerate(above)]
    rows[1]["grid_A"] = [0.6, 0.6, 0.615]  # too close to call
    rows[2]["grid_A"] = [0.7, 0.8, 0.6]  # called wrongly
    _, pairs = summarise(rows)
    pairs = pairs.set_index("rule")
    want = {
        "0.5 to 0.6": (1, 0.55, 0.0),
        "0.6 to 0.7": (1, 0.65, 0.0),
        "0.7 to 0.8": (0, None, None),
        "0.9 to 0.97": (2, 0.95, 0.5),
        "0.97 to 1": (1, 0.98, 1.0),
        "P > 0.9": (3, 2.88 / 3, 2 / 3),
    }
    for rule, (n, P, right) in want.items():
        row = pairs.loc[rule]
        assert row["pairs"] == n and row["share"] == pytest.approx(n / 5)
        assert n == 0 or (row["P"], row["right"]) == pytest.approx((P, right))
    grid = pairs.loc["grid, |dA| > 0.02"]
    assert grid["pairs"] == 4 and grid["share"] == pytest.approx(0.8)
    assert grid["right"] == pytest.approx(0.75) and math.isnan(grid["P"])
    assert pairs.loc["P > 0.9", "right_se"] == pytest.approx(math.sqrt(3 / 2 * 6 / 9) / 3)


def test_curves_and_variants_are_kept_apart():
    rows = [fit_row(0, inside=3), fit_row(0, inside=0, curve="sigmoid")]
    rows += [fit_row(0, inside=1, variant="short")]
    table, pairs = summarise(rows)
    got = table[(table["quantity"] == "A_run") & (table["runs"] == "all")]
    got = got.set_index(["variant", "curve"])["coverage"].to_dict()
    want = {("well", "burr"): 1.0, ("well", "sigmoid"): 0.0, ("short", "burr"): 1 / 3}
    assert got == pytest.approx(want)
    assert table["coverage_se"].isna().all()  # of one study
    assert len(pairs) == 3 * 8


def test_the_error_over_clusters_is_the_spread_of_their_means():
    rng = np.random.default_rng(0)
    hit = rng.random((2000, 6)) < expit(logit(0.8) + 2 * rng.normal(size=(2000, 1)))
    cluster = np.repeat(np.arange(2000), 6)
    p, se = clustered(hit.ravel(), cluster)
    assert p == pytest.approx(hit.mean())
    assert se == pytest.approx(hit.mean(1).std(ddof=1) / math.sqrt(2000))
    assert se > 1.5 * math.sqrt(p * (1 - p) / hit.size)
    assert math.isnan(clustered([1, 0], [0, 0])[1])


# ---------------------------------------------------------------- verdicts on equal recipes


def test_equal_recipes_differ_in_their_seeds_only():
    size = calibration.Size(3, 2, 6)
    evals, truth = calibration.simulate_size("well", 4, size, 1.5, equal=True)
    assert (truth.theta_JQ == truth.theta_JQ[0]).all() and truth.C_max == 1.5
    assert len({tuple(theta) for theta in truth.theta_RQ}) == 6
    assert len(evals.runs) == 6 and evals.frame["compute"].max() == 1.5


def test_the_share_of_wrong_verdicts_by_hand():
    columns = [*verdicts.DESIGN, "study", "verdict", "p_ceiling", "p_efficiency", "p_pace"]
    columns += ["p_above", "p_curve_above"]
    rows = [
        (1, 6, 1.5, 0, "undecided", 0.95, 0.0, 0.0, 0.05, 0.5),  # wide: by magnitude a verdict
        (1, 6, 1.5, 0, "ceiling mover", 0.97, 0.0, 0.0, 0.95, 0.02),
        (1, 6, 1.5, 1, "neither", 0.01, 0.01, 0.01, 0.5, 0.5),
        (3, 6, 1.5, 0, "efficiency shaper", 0.1, 0.92, 0.93, 0.9, 0.1),
    ]
    table = verdicts.summarise(pd.DataFrame(rows, columns=columns))
    assert table["sure"].tolist() == pytest.approx([2 / 3, 0, 0.5])
    assert table["curve_sure"].tolist() == pytest.approx([1 / 3, 0, 0.25])
    first, other, whole = (row for _, row in table.iterrows())
    assert first["comparisons"] == 3 and first["wrong"] == pytest.approx(1 / 3)
    assert first["neither"] == first["undecided"] == pytest.approx(1 / 3)
    assert first["magnitude"] == pytest.approx(2 / 3) and other["wrong"] == other["magnitude"] == 1
    want, se = clustered([0, 1, 0, 1], [0, 0, 1, 2])
    assert (whole["wrong"], whole["wrong_se"]) == pytest.approx((want, se)) and want == 0.5


def test_the_committed_share_of_wrong_verdicts():
    path = verdicts.Path(__file__).parents[1] / "analysis" / "results" / "verdicts" / "verdicts.csv"
    table = pd.read_csv(path)
    whole = table[table["seeds"].astype(str) == "all"]
    assert len(whole) and (whole["wrong"] <= 0.05).all() and (whole["comparisons"] >= 100).all()


@pytest.mark.slow
def test_at_most_one_verdict_in_twenty_on_equal_recipes_is_wrong():
    """20 studies of two designs with much to see, and one with nothing; 180 comparisons."""
    designs = [((5, 20), 4.0), ((3, 20), 4.0), ((1, 6), 0.3)]
    parts = [
        verdicts.comparisons(calibration.Size(4, *size), C_max, 900 + seed, "laplace")
        for size, C_max in designs
        for seed in range(20)
    ]
    table = verdicts.summarise(pd.concat(parts, ignore_index=True)).iloc[-1]
    assert table["comparisons"] == 180 and table["wrong"] <= 0.05
