"""Questions to posteriors written by hand, and a fit from end to end."""

import json
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import rlx.scaling as sc
from rlx.scaling.curve import compute_to, sigmoid
from rlx.scaling.kalman import Kalman
from tests.scaling.hand import R0, hand_fit

LOW = [(0.5, 2.0, 1.0), (0.6, 2.0, 1.0), (0.7, 2.0, 1.0), (0.8, 2.0, 1.0)]
HIGH = [(0.65, 1.0, 2.0), (0.65, 1.0, 2.0), (0.65, 1.0, 2.0), (0.65, 1.0, 2.0)]


@pytest.fixture(scope="module")
def fit():
    return hand_fit({"low": LOW, "high": HIGH})


def test_param_keeps_draws_and_names(fit):
    A = fit.param("A")
    assert A.dims == ("chain", "draw", "recipe") and A.shape == (2, 2, 2)
    assert A.sel(recipe="low").values.ravel() == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert fit.param("C_mid", by="run").sel(run="high-s0").values.ravel() == pytest.approx(
        [1.0] * 4
    )
    assert fit.param("B_tail").sel(recipe="high").values.ravel() == pytest.approx([2.0] * 4)


def test_curve_is_the_sigmoid_of_each_draw(fit):
    x = fit.curve([0.0, 3.0, 16.0])
    for d, (A, C_mid, B) in enumerate(LOW):
        want = sigmoid([0.0, 3.0, 16.0], A=A, B=B, C_mid=C_mid, R0=R0)
        assert x.sel(recipe="low").values.reshape(4, 3)[d] == pytest.approx(want)
    assert x["extrapolation"].sel(recipe="low").values == pytest.approx([0.0, 0.75, 4.0])


def test_probabilities_by_counting(fit):
    higher = fit.prob("A", "low", ">", "high")
    assert higher["prob"] == 0.5
    assert fit.prob("A", "low", ">", "high", margin=0.1)["prob"] == 0.25
    assert fit.prob("A", "low", "<", "high", margin=0.1)["prob"] == 0.25
    assert fit.prob("C_mid", "low", ">", "high")["prob"] == 1.0
    at_4 = [sigmoid(4.0, A=A, B=B, C_mid=C, R0=R0) for A, C, B in LOW]
    want = np.mean(np.array(at_4) > sigmoid(4.0, A=0.65, B=2.0, C_mid=1.0, R0=R0))
    assert fit.prob("curve", "low", ">", "high", at=4.0)["prob"] == want
    assert fit.prob("curve", "low", ">", "high", at=4.0)["extrapolation"] == 1.0
    best = fit.prob_best()
    assert best.sel(recipe="low").item() == 0.5 and float(best.sum()) == 1.0


def test_compute_to_counts_curves_that_never_arrive(fit):
    table = fit.compute_to(0.65).set_index("name")
    assert table.loc["low", "prob_reachable"] == 0.5
    assert table.loc["high", "prob_reachable"] == 0.0
    assert np.isinf(table.loc["low", "budget"])
    reach = [compute_to(0.45, A=A, B=B, C_mid=C, R0=R0) for A, C, B in LOW]
    row = fit.compute_to(0.45, prob=0.75).set_index("name").loc["low"]
    assert row["budget"] == pytest.approx(sorted(reach)[2])  # 3 of 4 draws have arrived
    assert row["extrapolation"] == pytest.approx(sorted(reach)[1] / 4.0)


def test_gain_is_the_difference_of_the_curve(fit):
    table = fit.gain(4.0).set_index("name")
    more = [
        sigmoid(8.0, A=A, B=B, C_mid=C, R0=R0) - sigmoid(4.0, A=A, B=B, C_mid=C, R0=R0)
        for A, C, B in LOW
    ]
    assert table.loc["low-s0", "mean"] == pytest.approx(np.mean(more))
    assert table.loc["low-s0", "per_compute"] == pytest.approx(np.mean(more) / 4)
    assert table.loc["low-s0", "extrapolation"] == 2.0


def test_efficiency_at_one_target(fit):
    row = fit.efficiency("low", "high", target=0.45)
    ratio = [
        float(compute_to(0.45, A=A, B=B, C_mid=C, R0=R0))
        / float(compute_to(0.45, A=0.65, B=2.0, C_mid=1.0, R0=R0))
        for A, C, B in LOW
    ]
    assert row["q50"] == pytest.approx(sorted(ratio)[1]) and row["prob_both"] == 1.0
    assert row["prob_cheaper"] == np.mean(np.array(ratio) < 1)
    far = fit.efficiency("low", "high", target=0.65)  # the second never arrives
    assert far["prob_both"] == 0.0 and far["prob_cheaper"] == 0.5


def test_summary_has_every_parameter_and_its_interval(fit):
    table = fit.summary("recipe")
    assert table["param"].tolist() == ["A", "asymptote", "C_mid", "B", "B_tail", "R0"] * 2
    A = table[(table["name"] == "low") & (table["param"] == "A")].iloc[0]
    assert A["mean"] == pytest.approx(0.65) and A["q05"] == 0.5 and A["q95"] == pytest.approx(0.8)
    assert A["phase"] == pytest.approx(2.0)
    gained = [sigmoid(4.0, A=a, B=b, C_mid=c, R0=R0) for a, c, b in LOW]
    share = np.median([(g - R0) / (a - R0) for g, (a, _, _) in zip(gained, LOW, strict=True)])
    assert A["gained"] == pytest.approx(share)


@pytest.mark.parametrize(
    ("attrs", "word"),
    [({"rhat": 1.02}, "rhat=1.02"), ({"ess": 300.0}, "300"), ({"divergences": 1}, "1 divergences")],
)
def test_a_fit_that_did_not_converge_answers_only_unsafe(attrs, word):
    bad = hand_fit({"low": LOW, "high": HIGH}, **attrs)
    assert not bad.converged and not bad.check().ok
    for ask in (bad.summary, lambda: bad.curve(1.0), lambda: bad.prob("A", "low", ">", "high")):
        with pytest.raises(sc.NotConverged, match=word):
            ask()
    assert bad.unsafe().prob("A", "low", ">", "high")["prob"] == 0.5


def test_errors_name_key_value_and_remedy(fit):
    known = "A, asymptote, C_mid, B, B_tail, R0"
    with pytest.raises(sc.InputError, match=f"param=Z: unknown; use {known}"):
        fit.param("Z")
    with pytest.raises(
        sc.InputError, match='recipe=none: not in this fit; use one of "low", "high"'
    ):
        fit.prob("A", "none", ">", "low")
    with pytest.raises(sc.InputError, match="by=seed: unknown level"):
        fit.summary("seed")


def test_an_update_needs_the_earlier_evaluations_too(fit):
    """The rows of a log that are new would be fitted as if the run had begun with them."""
    frame = fit.evals.frame.query("run == 'low-s0'")
    later = replace(fit.evals, frame=frame.assign(compute=frame["compute"] + 4))
    with pytest.raises(sc.InputError, match="run=low-s0: only evaluations after those of the fit"):
        fit.update(later)
    overlap = replace(fit.evals, frame=fit.evals.frame.query("compute > 3"))
    with pytest.raises(
        sc.InputError, match="run=low-s0: lacks the fitted evaluation at C = 1; give"
    ):
        fit.update(overlap)
    with pytest.raises(
        sc.InputError, match="run=high-s0: not among the evaluations; give all runs"
    ):
        fit.update(fit.evals.select(["low-s0"]))
    with pytest.raises(sc.InputError, match="data=FLOPs: not the compute of the fit, compute C;"):
        fit.update(replace(fit.evals, compute_label="FLOPs"))
    with pytest.raises(sc.InputError, match="data=DataFrame: not Evals; read it with Evals.read"):
        fit.update(frame)
    with pytest.raises(sc.InputError, match=r'axes=T: one name, .* write axes=\("T",\)'):
        fit.update(fit.evals, axes="T")


NAN = float("nan")


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda f: f.predict(-5), "compute=-5: not computes; give numbers from 0 on"),
        (lambda f: f.curve([1.0, NAN]), r"compute=\[1.0, nan\]: not computes"),
        (lambda f: f.predict([]), r"compute=\[\]: not computes"),
        (lambda f: f.curve("late"), "compute=late: not computes"),
        (lambda f: f.predict(2.0, trials=0), "trials=0: no graded samples"),
        (lambda f: f.gain(-1), "extra=-1: not a positive compute"),
        (lambda f: f.gain(NAN), "extra=nan: not a positive compute"),
        (lambda f: f.gain(1.0, prob=90), "prob=90: not the mass of an interval; give 0.9"),
        (lambda f: f.summary(prob=1.0), "prob=1.0: not the mass of an interval"),
        (lambda f: f.compute_to(60), "target=60: not a pass rate; give a fraction"),
        (lambda f: f.compute_to(NAN), "target=nan: not a pass rate"),
        (lambda f: f.compute_to([0.5, 0.6]), "not a pass rate"),
        (lambda f: f.efficiency("low", "high", target=-0.1), "target=-0.1: not a pass rate"),
        (lambda f: f.prob("A", "low", ">", "high", margin=2), "margin=2: not a difference of A"),
        (lambda f: f.prob("B", "low", ">", "high", margin=NAN), "margin=nan: not a difference"),
        (lambda f: f.prob("A", "low", ">", "high", at=2.0), "at=2.0: not read with param A"),
        (lambda f: f.prob("curve", "low", ">", "high", at=[1, 2]), "at=.*: several computes"),
        (lambda f: f.prob_best(NAN), "at=nan: not computes"),
        (lambda f: f.prob_best("end"), "at=end: not computes"),
    ],
)
def test_a_question_that_has_no_answer_is_refused(fit, ask, words):
    with pytest.raises(sc.InputError, match=words):
        ask(fit)


def test_saved_and_loaded_it_answers_the_same(fit, tmp_path):
    fit.save(tmp_path / "fit.nc")
    loaded = sc.load(tmp_path / "fit.nc")
    pd.testing.assert_frame_equal(loaded.summary(), fit.summary())
    assert (loaded.predict([5.0, 9.0]).values == fit.predict([5.0, 9.0]).values).all()
    assert loaded.evals.sha256() == fit.attrs["data_sha256"]
    with pytest.raises(sc.InputError, match="no such file"):
        sc.load(tmp_path / "none.nc")
    for path in (tmp_path / "nowhere" / "fit.nc", tmp_path):
        with pytest.raises(sc.InputError, match=f"posterior={path}: cannot be written, .*; give a"):
            fit.save(path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # h5netcdf closes
def test_a_posterior_file_that_is_none_is_named(fit, tmp_path):
    path = tmp_path / "posterior.nc"
    fit.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for bit in rng.integers(0, 8 * len(whole), 30):  # a flip is refused, or changes no variable
        bytes_ = bytearray(whole)
        bytes_[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(bytes(bytes_))
        try:
            again = sc.load(path)
        except sc.InputError as error:
            assert str(error).startswith(f"posterior={path}: ") and "\n" not in str(error)
            refused += 1
        else:
            assert again.summary().equals(fit.summary())
    assert refused > 10
    for text in (b"", b"not a file of netCDF", whole[:2000]):
        path.write_bytes(text)
        with pytest.raises(sc.InputError, match="cannot be read"):
            sc.load(path)
    fit.tree["evals"].to_dataset().to_netcdf(path, engine="h5netcdf")
    with pytest.raises(sc.InputError, match="not a fit: lacks posterior"):
        sc.load(path)
    less = fit.tree.copy()
    less["posterior"] = less["posterior"].to_dataset().drop_vars("theta_run")
    less.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(sc.InputError, match="not a fit: lacks posterior/theta_run"):
        sc.load(path)
    with pytest.raises(sc.InputError, match="no such file"):
        sc.load(tmp_path)


def test_kalman_agrees_with_conditioning_a_dense_normal():
    C = np.array([[1.0, 2.0, 2.5, 4.0]])
    residual, var = np.array([[[0.01, -0.02, 0.005, 0.03]]]), np.full((1, 1, 4), 1e-4)
    kalman = Kalman(C, np.array([0.02]), np.array([1.5]))
    z, mean, P = kalman.run(residual, var)
    time = C[0] / 1.0  # the median gap is 1
    K = 0.02**2 * np.exp(-np.abs(time[:, None] - time) / 1.5)
    S = K + np.diag(var[0, 0])
    want = K[-1] @ np.linalg.solve(S, residual[0, 0])
    assert mean[0, 0] == pytest.approx(want)
    assert P[0, 0] == pytest.approx(K[-1, -1] - K[-1] @ np.linalg.solve(S, K[-1]))
    dense = stats.multivariate_normal.logpdf(residual[0, 0], cov=S)
    sd = np.sqrt(np.linalg.det(S))  # product of the innovations' sds
    assert -0.5 * (z**2).sum() - np.log(sd) - 2 * np.log(2 * np.pi) == pytest.approx(dense)


def test_kalman_between_evaluations_agrees_with_conditioning_a_dense_normal():
    C = np.array([[1.0, 2.0, 2.5, 4.0], [1.0, 3.0, np.nan, np.nan]])
    asked = np.array([[0.0, 0.5, 1.0, 1.7, 3.9, 4.0, 6.0]] * 2)
    residual, var = np.array([[[0.01, -0.02, 0.005, 0.03]] * 2]), np.full((1, 2, 4), 1e-4)
    mean, P = Kalman(C, np.array([0.02]), np.array([1.5])).at(asked, residual, var)
    for r, (seen, gap) in enumerate([(4, 1.0), (2, 2.0)]):

        def covariance(a, b, gap=gap):
            return 0.02**2 * np.exp(-np.abs(a[:, None] - b) / gap / 1.5)

        there, K = C[r, :seen], covariance(asked[r], C[r, :seen])
        S = covariance(there, there) + 1e-4 * np.eye(seen)
        assert mean[0, r] == pytest.approx(K @ np.linalg.solve(S, residual[0, r, :seen]))
        assert P[0, r] == pytest.approx(0.02**2 - np.diag(K @ np.linalg.solve(S, K.T)))


def test_prediction_within_the_data_has_the_wander_of_the_evaluations_there():
    """Not that of the last: the curve rises to 0.47 above evaluations of 0.4."""
    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 4000})
    asked, there = np.array([0.0, 1.0, 2.5, 4.0]), np.array([1.0, 2.0, 3.0, 4.0])
    within = fit.predict(asked, trials=1e9) - fit.curve(asked, by="run")
    residual = 0.4 - sigmoid(there, A=0.6, B=1.0, C_mid=2.0, R0=R0)

    def covariance(a, b):
        return 0.01**2 * np.exp(-np.abs(a[:, None] - b) / 2.0)

    K, S = covariance(asked, there), covariance(there, there) + 0.005**2 * np.eye(4)
    want = K @ np.linalg.solve(S, residual)
    assert within.mean(("chain", "draw")).values[0] == pytest.approx(want, abs=1e-3)
    sd = np.sqrt(0.01**2 - np.diag(K @ np.linalg.solve(S, K.T)))
    assert within.std(("chain", "draw")).values[0] == pytest.approx(sd, rel=0.05)


def test_prediction_has_the_noise_of_its_own_run():
    """Run b has no counts and scatters by 0.03; runs a and c have 20,000 samples each."""
    rng, C = np.random.default_rng(0), np.arange(1.0, 21.0)
    value = sigmoid(C, A=0.7, B=1.5, C_mid=3.0, R0=0.2)
    runs = [("a", 2e4), ("b", np.nan), ("c", 2e4)]
    noisy = {run: value + (0.03 * rng.normal(size=20) if run == "b" else 0) for run, _ in runs}
    frame = pd.concat(
        pd.DataFrame({"run": run, "compute": C, "value": noisy[run], "trials": trials})
        for run, trials in runs
    )
    fit = sc.fit(sc.Evals.from_frame(frame), r0=0.2, method="laplace").unsafe()
    own, stated = (
        fit.predict(21.0, **more).std(("chain", "draw")) for more in ({}, {"trials": 2e4})
    )
    assert own.values[[0, 2]] == pytest.approx(stated.values[[0, 2]], rel=0.01)
    assert own.sel(run="b") > 0.025 > stated.sel(run="b")
    own, stated = (
        fit.predict(21.0, "recipe", **m).std(("chain", "draw")) for m in ({}, {"trials": 2e4})
    )
    assert own.values[[0, 2]] == pytest.approx(stated.values[[0, 2]], rel=0.01)


def test_prediction_carries_the_last_residual_over_and_forgets_it():
    fit = hand_fit({"one": [(0.6, 2.0, 1.0)] * 4000})
    ahead = fit.predict([4.0001, 5.0, 400.0], trials=1e9)
    latent = fit.curve([4.0001, 5.0, 400.0], by="run")
    wander = (ahead - latent).mean(("chain", "draw")).values[0]
    residual = 0.4 - sigmoid(np.array([1.0, 2, 3, 4]), A=0.6, B=1.0, C_mid=2.0, R0=R0)
    K = 0.01**2 * np.exp(-np.abs(np.subtract.outer(np.arange(4), np.arange(4))) / 2.0)
    now = K[-1] @ np.linalg.solve(K + 0.005**2 * np.eye(4), residual)
    assert wander == pytest.approx([now, now * np.exp(-0.5), 0.0], abs=1e-3)
    sd = (ahead - latent).std(("chain", "draw")).values[0]
    assert sd[2] == pytest.approx(0.01, rel=0.05) and sd[0] < 0.006


def test_a_pooled_log_predicts_single_evaluations():
    """700 evaluations of sd 0.03 become 128 of sd 0.013; a new one still has 0.03."""
    rng = np.random.default_rng(0)
    C = np.arange(1.0, 701.0)
    value = sigmoid(C, A=0.7, B=1.5, C_mid=60.0, R0=0.2) + 0.03 * rng.normal(size=C.size)
    frame = pd.DataFrame({"run": "a", "compute": C, "value": value})
    fit = sc.fit(sc.Evals.from_frame(frame, scale="fraction"), r0=0.2, method="laplace").unsafe()
    assert fit.tree["constant_data"]["compute"].shape == (1, 128)
    assert float(fit.predict([800.0]).std()) == pytest.approx(0.03, rel=0.15)
    assert float(fit.predict([800.0], trials=np.inf).std()) < 0.012


def test_importing_scaling_loads_no_trainer_and_no_jax():
    code = (
        "import sys, rlx.scaling\n"
        "bad = {'jax', 'flax', 'optax', 'orbax', 'hydra', 'matplotlib'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------ from end to end


def simulated(runs=6, seed=0):
    """Two recipes x three seeds: ceilings 0.55 and 0.75."""
    rng = np.random.default_rng(seed)
    rows = [
        {"run": f"{recipe}-s{s}", "recipe": recipe, "seed": s, "compute": C, "trials": 4000}
        | {"passes": rng.binomial(4000, sigmoid(C, A=A, B=1.5, C_mid=1.5, R0=0.25))}
        for recipe, A in (("low", 0.55), ("high", 0.75))
        for s in range(3)
        for C in np.linspace(0, 6, 11)
    ]
    return sc.Evals.from_frame(pd.DataFrame(rows), recipe="recipe", seed="seed")


@pytest.fixture(scope="module")
def nuts():
    return sc.fit(simulated(), curve="sigmoid")


def test_nuts_converges_and_recovers_the_truth(nuts):
    assert nuts.converged, nuts
    table = nuts.summary().set_index(["param", "name"])
    for name, truth in (("low", 0.55), ("high", 0.75)):
        asymptote, A = table.loc[("asymptote", name)], table.loc[("A", name)]
        assert asymptote["q05"] < truth < asymptote["q95"] and A["q05"] < truth < A["q95"]
        assert asymptote["q95"] - asymptote["q05"] < 0.12 < A["q95"] - A["q05"] < 0.3
        assert A["status"] == "ok"
    assert nuts.prob("asymptote", "high", ">", "low", margin=0.1)["prob"] > 0.95
    assert nuts.prob("A", "high", ">", "low", margin=0.1)["prob"] > 0.85
    assert not jax.config.jax_enable_x64  # the process's setting is its own


def test_plain_numpyro_nuts_agrees(nuts, optimised):
    """The same density sampled by numpyro.infer.MCMC in the model's own coordinates."""
    from numpyro.infer import MCMC, NUTS, init_to_value

    from rlx.scaling.arrays import assemble, make_options
    from rlx.scaling.bayes import first_sites
    from rlx.scaling.model import scaling_model

    evals = simulated()
    with jax.enable_x64(True):
        study, _, _ = assemble(evals, priors=sc.Priors())
        study = jax.tree.map(jax.numpy.asarray, study)
        options = make_options(evals, "sigmoid", "normal", sc.Priors())
        start = init_to_value(values=first_sites(study, options))
        kernel = NUTS(scaling_model, init_strategy=start, target_accept_prob=0.9, dense_mass=True)
        chains = {"num_chains": 2, "chain_method": "vectorized", "progress_bar": False}
        mcmc = MCMC(kernel, num_warmup=800, num_samples=1500, **chains)
        mcmc.run(jax.random.key(0), study, options)
        plain = mcmc.get_samples()["theta_recipe"]
    ours = nuts.tree["posterior"]["theta_recipe"].values.reshape(-1, 2, 3)
    plain = np.asarray(plain)
    sd = ours.std(0)
    assert np.abs(ours.mean(0) - plain.mean(0)) == pytest.approx(0, abs=0.25 * sd.max())
    assert (np.abs(ours.mean(0) - plain.mean(0)) < 0.25 * sd).all()
    assert plain.std(0) == pytest.approx(sd, rel=0.25)


def test_laplace_is_a_labelled_preview_near_nuts(nuts):
    quick = sc.fit(simulated(), curve="sigmoid", method="laplace")
    assert "laplace" in repr(quick) and not quick.check().ok
    for param in ("A", "C_mid"):
        a, b = (f.param(param).values.reshape(-1, 2) for f in (quick, nuts))
        assert (np.abs(np.median(a, 0) - np.median(b, 0)) < b.std(0)).all()


def test_where_no_error_is_known_the_start_is_as_noisy_as_the_rest():
    """90 % intervals of R0 over the 12 runs of four studies, of values alone: as if each value at
    C = 0 were known to 0.01, 3 would hold the truth."""
    C, rng, hits = np.arange(21.0), np.random.default_rng(0), []
    for _ in range(4):
        value = sigmoid(C, A=0.6, B=1.5, C_mid=6.0, R0=R0)
        runs = [pd.DataFrame({"run": run, "compute": C, "value": value}) for run in "abc"]
        frame = pd.concat(runs, ignore_index=True)
        frame["value"] += rng.normal(0, 0.06, len(frame))
        table = sc.fit(sc.Evals.from_frame(frame), method="laplace").summary("run")
        found = table[table["param"] == "R0"]
        hits += ((found["q05"] <= R0) & (R0 <= found["q95"])).tolist()
        assert found["contraction"].between(0, 0.8).all()  # beside a prior as wide as the noise
    assert np.mean(hits) >= 0.6


def test_a_fit_is_a_function_of_data_and_seed(nuts):
    again = sc.fit(simulated(), curve="sigmoid")
    assert again.attrs["data_sha256"] == nuts.attrs["data_sha256"]
    same = again.tree["posterior"]["theta_run"].values == nuts.tree["posterior"]["theta_run"].values
    assert same.all()
    assert set(json.loads(nuts.attrs["versions"])) == {
        "python",
        "jax",
        "numpyro",
        "numpy",
        "xarray",
    }


def test_update_refits_with_the_same_choices(nuts):
    quick = sc.fit(simulated(), curve="sigmoid", method="laplace", seed=3)
    more = quick.update(simulated(seed=1))
    assert {k: more.attrs[k] for k in ("curve", "method", "seed")} == {
        "curve": "sigmoid",
        "method": "laplace",
        "seed": 3,
    }
    assert more.attrs["data_sha256"] != quick.attrs["data_sha256"]
