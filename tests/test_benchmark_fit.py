"""The posterior's benchmark: one model in every system, and the numbers of its lines, by hand."""

import io
import json
import os
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pandas as pd
import pytest
from arviz_stats.base import array_stats
from scipy.special import expit
from scipy.stats import multivariate_normal, norm

from experiments import benchmark
from rlx.scaling import Priors
from rlx.scaling.model import Options, Study

ROOT = Path(__file__).parents[1]
RIVALS = ROOT / "experiments" / "rivals"
NUTPIE = ROOT / ".rivals" / "nutpie" / "bin" / "python"
J, G, M = 3, 2, 10


@pytest.fixture
def drivers(monkeypatch):
    """The drivers that this environment can import, as modules."""
    monkeypatch.syspath_prepend(RIVALS)
    import numpyro_driver
    import protocol
    import rlx_driver

    return SimpleNamespace(rlx=rlx_driver, numpyro=numpyro_driver, protocol=protocol)


@pytest.fixture(scope="module", params=["burr", "sigmoid"])
def written(request, tmp_path_factory):
    """(set-up, points, folder) of a small study."""
    folder = tmp_path_factory.mktemp("study")
    options = benchmark.FitOptions(size=f"{J}x{G}x{M}", curve=request.param, warmup=7, draws=8)
    set_up = benchmark.write_study(options, folder)
    return set_up, dict(np.load(folder / "points.npz")), folder


def log_density_by_hand(set_up: dict, point: dict) -> float:
    """The model's docstring from the table of evaluations: loops and dense covariances."""
    priors = Priors()
    table = pd.read_csv(set_up["evals"])
    zero = table[table["compute"] == 0].iloc[0]
    later = table[table["compute"] > 0]
    C_ref = later["compute"].median()
    total = 0.0
    for q, name in enumerate("acb"):
        total += norm.logpdf(point["mu"][q], *getattr(priors, f"mean_{name}"))
        for kind in ("recipe_sd", "seed_sd"):
            median, sd = getattr(priors, f"{kind}_{name}")
            total += norm.logpdf(point[f"log_{kind}"][q], np.log(median), sd)
    for kind in ("wander_sd", "wander_length"):
        median, sd = getattr(priors, kind)
        total += norm.logpdf(point[f"log_{kind}"], np.log(median), sd)
    R0 = zero["value"]
    sd = zero["stderr"] / (R0 * (1 - R0))
    total += norm.logpdf(point["logit_R0"][0], np.log(R0 / (1 - R0)), sd)
    kappa = 1.0
    if set_up["curve"] == "burr":
        total += norm.logpdf(point["log_kappa"], *priors.log_kappa)
        kappa = np.exp(point["log_kappa"])
    total += norm.logpdf(point["z_recipe"]).sum() + norm.logpdf(point["z_run"]).sum()
    start = expit(point["logit_R0"][0])
    sigma_w, length = np.exp(point["log_wander_sd"]), np.exp(point["log_wander_length"])
    for r, (_, rows) in enumerate(later.groupby("run", sort=False)):
        theta = point["mu"] + np.exp(point["log_recipe_sd"]) * point["z_recipe"][r // G]
        a, c, b = theta + np.exp(point["log_seed_sd"]) * point["z_run"][r]
        odds = (rows["compute"].to_numpy() / (C_ref * np.exp(c))) ** np.exp(b)
        share = 1 - (1 + (2 ** (1 / kappa) - 1) * odds) ** -kappa
        mean = start + (1 - start) * expit(a) * share
        t = np.arange(M)
        Sigma = sigma_w**2 * np.exp(-np.abs(t[:, None] - t) / length)
        Sigma += np.diag(rows["stderr"].to_numpy() ** 2)
        total += multivariate_normal.logpdf(rows["value"], mean, Sigma)
    return float(total)


def by_hand(written) -> list[float]:
    set_up, points, _ = written
    return [
        log_density_by_hand(set_up, {name: x[n] for name, x in points.items()})
        for n in range(benchmark.POINTS)
    ]


# ------------------------------------------------------------------ the same model everywhere


def test_the_study_is_of_the_size_asked_for(written):
    set_up, points, _ = written
    study = dict(np.load(set_up["study"]))
    assert sorted(study) == sorted(Study._fields)
    assert study["seen_RM"].sum(1).tolist() == [M] * (J * G)
    assert study["recipe_R"].tolist() == [0, 0, 1, 1, 2, 2]
    assert (set_up["warmup"], set_up["draws"], set_up["threads"]) == (7, 8, 2)
    assert points["z_recipe"].shape == (benchmark.POINTS, J, 3)
    assert points["z_run"].shape == (benchmark.POINTS, J * G, 3)
    assert ("log_kappa" in points) == (set_up["curve"] == "burr")


def test_seeds_are_other_studies(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "prior_points", lambda study, curve: {})
    values = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        options = benchmark.FitOptions(size="2x1x5", curve="sigmoid", seed=seed)
        values.append(pd.read_csv(benchmark.write_study(options, folder)["evals"])["value"])
    assert len(values[0]) == len(values[1]) == 2 * 6
    assert not np.allclose(values[0], values[1])


@pytest.mark.parametrize("system", ["rlx", "numpyro"])
def test_a_system_has_the_density_of_the_docstring(written, drivers, system):
    set_up, points, _ = written
    curve = set_up["curve"]
    log_density, last = {
        "rlx": (drivers.rlx.log_density_of_z, Options(curve)),
        "numpyro": (drivers.numpyro.log_density_of_z, curve),
    }[system]
    with jax.enable_x64(True):
        arrays = drivers.protocol.study_of(drivers.protocol.FitSetup(**set_up))
        study = Study(**{name: jax.numpy.asarray(x) for name, x in arrays.items()})
        found = [
            float(log_density(study, {name: x[n] for name, x in points.items()}, last))
            for n in range(benchmark.POINTS)
        ]
    np.testing.assert_allclose(found, by_hand(written), rtol=1e-9)


PYMC = """
import json, sys
import numpy as np
from pymc_driver import FitSetup, log_density_of_z, make_model

set_up, points = json.loads(sys.argv[1]), dict(np.load(sys.argv[2]))
model = make_model(FitSetup(**set_up))
N = len(points["mu"])
at = [log_density_of_z(model, {name: x[n] for name, x in points.items()}) for n in range(N)]
free = sorted(x.name for x in model.free_RVs + model.deterministics)
print(json.dumps([at, free]))
"""


@pytest.mark.skipif(not NUTPIE.exists(), reason="no .rivals/nutpie; `benchmark fit` makes it")
def test_pymc_has_the_density_of_the_docstring(written):
    set_up, points, folder = written
    command = [NUTPIE, "-c", PYMC, json.dumps(set_up), str(folder / "points.npz")]
    environment = os.environ | {"PYTHONPATH": str(RIVALS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found, names = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found, by_hand(written), rtol=1e-9)
    assert names == sorted([*points, "theta_recipe", "theta_run"])


# ------------------------------------------------------------------ drivers


def test_serving(drivers, monkeypatch, tmp_path):
    draws, points = tmp_path / "draws.npz", tmp_path / "points.npz"
    np.savez(points, mu=np.array([[1.0, 2.0], [3.0, 5.0]]), x=np.array([10.0, 20.0]))
    asks = [
        {"cmd": "fit", "seed": 4, "path": str(draws)},
        {"cmd": "log_density", "path": str(points)},
        {"cmd": "quit"},
        {"cmd": "fit", "seed": 5, "path": str(draws)},
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(map(json.dumps, asks))))
    answers = []

    def fit(seed):
        return {"mu": np.full((2, 3), seed)}, np.array([[0, 1], [1, 1]]), np.array([[7, 15]])

    drivers.protocol.serve_fits(
        lambda **fields: answers.append(fields),
        fit,
        lambda point: point["x"] + point["mu"].sum(),
    )
    assert answers == [
        {"ready": True},
        {"divergences": 3, "steps": 11.0},
        {"log_density": [13.0, 28.0]},
    ]
    assert np.load(draws)["mu"].tolist() == [[4, 4, 4]] * 2


ECHO = """
import json, sys
set_up = json.loads(sys.stdin.readline())
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    if ask["cmd"] == "quit":
        break
    if ask["cmd"] == "stop":
        sys.exit("no more")
    print(json.dumps(ask | set_up), flush=True)
"""


@pytest.fixture
def echo(tmp_path, monkeypatch):
    (tmp_path / "experiments" / "rivals").mkdir(parents=True)
    (tmp_path / "experiments" / "rivals" / "echo.py").write_text(ECHO)
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    driver = benchmark.Driver(Path(sys.executable), "echo.py", {"curve": "burr"})
    yield driver
    if driver.process.poll() is None:
        driver.close()


def test_a_driver_answers_and_ends(echo):
    assert echo.ask({"cmd": "x", "n": 1}) == {"cmd": "x", "n": 1, "curve": "burr"}
    echo.close()
    assert echo.process.returncode == 0


def test_a_driver_that_stopped_names_its_log(echo):
    with pytest.raises(
        ValueError, match=r"^rival=echo\.py: its driver stopped; see .*echo\.py\.log$"
    ):
        echo.ask({"cmd": "stop"})
    echo.process.wait()
    echo.process.stdin.close()
    echo.process.stdout.close()
    assert "no more" in Path(echo.log).read_text()


def test_environments(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "ROOT", tmp_path)
    assert benchmark.environment("rlx") == benchmark.environment("numpyro") == Path(sys.executable)
    python = tmp_path / ".rivals" / "nutpie" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert benchmark.environment("nutpie") == python


# ------------------------------------------------------------------ lines


class Fake:
    """A driver whose draws are independent normals."""

    def __init__(self, log_density=(1.0, 2.0, 3.0), names=("mu", "log_kappa")):
        self.log_density, self.names, self.seeds, self.is_closed = log_density, names, [], False

    def ask(self, line):
        if line["cmd"] == "log_density":
            return {"log_density": list(self.log_density)}
        self.seeds.append(line["seed"])
        rng = np.random.default_rng(line["seed"])
        shapes = {"mu": (4, 200, 3), "log_kappa": (4, 200)}
        np.savez(line["path"], **{name: rng.normal(size=shapes[name]) for name in self.names})
        return {"divergences": line["seed"], "steps": 9.0}

    def close(self):
        self.is_closed = True


def test_a_fit_is_judged_by_all_sites_and_timed_from_the_start(tmp_path):
    row = benchmark.timed_fit(Fake(), 5, tmp_path, time.perf_counter() - 100)
    draws = np.load(tmp_path / "draws.npz")
    sites = [draws["log_kappa"], *np.moveaxis(draws["mu"], -1, 0)]
    ess = [
        float(array_stats.ess(x, chain_axis=0, draw_axis=1, **how))
        for x in sites
        for how in ({"method": "bulk"}, {"method": "tail", "prob": (0.05, 0.95)})
    ]
    rhat = [float(array_stats.rhat(x, chain_axis=0, draw_axis=1)) for x in sites]
    assert row["ess"] == pytest.approx(min(ess))
    assert row["rhat"] == pytest.approx(max(rhat))
    assert (row["divergences"], row["steps"], row["sites"]) == (5, 9.0, ["log_kappa", "mu"])
    assert 100 < row["seconds"] < 110


def rows(*changes: dict) -> list[dict]:
    row = {"seconds": 2.0, "rhat": 1.004, "ess": 500.0, "divergences": 0, "steps": 15.0}
    return [row | change for change in changes]


def test_a_line_by_hand():
    line = benchmark.fit_line(
        rows(
            {"seconds": 30.0, "ess": 600.0, "steps": 31.0},
            {"seconds": 2.0, "ess": 500.0},  # 250 a second
            {"seconds": 4.0, "ess": 440.0, "rhat": 1.006},  # 110
            {"seconds": 5.0, "ess": 600.0, "steps": 7.0},  # 120
        )
    )
    assert line == {
        "seconds_cold": 30.0,
        "seconds_warm": 4.0,
        "ess_min": 440,
        "ess_per_s": 120.0,
        "rhat_max": 1.006,
        "divergences": 0,
        "converged": True,
        "steps": 17.0,
    }


@pytest.mark.parametrize(
    "change", [{"rhat": 1.0101}, {"ess": 399.9}, {"divergences": 1}], ids=lambda x: str(x)
)
def test_one_bad_fit_is_not_converged(change):
    assert benchmark.fit_line(rows({}, {}))["converged"]
    assert not benchmark.fit_line(rows(change, {}))["converged"]
    assert not benchmark.fit_line(rows({}, change))["converged"]


def compare(monkeypatch, theirs: Fake, **options):
    """Lines of two fake systems, what was started in which order, and the first system."""
    ours, order = Fake(), []
    fakes = {"rlx_driver.py": ours, "numpyro_driver.py": theirs}

    def start(python, file, set_up):
        order.append((file, set_up["curve"], set_up["draws"]))
        return fakes[file]

    def write_study(options, folder):
        return {"curve": options.curve, "draws": options.draws}

    monkeypatch.setattr(benchmark, "Driver", start)
    monkeypatch.setattr(benchmark, "write_study", write_study)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.14159, 0, 0))
    lines = benchmark.compare_fits(benchmark.FitOptions(rival="numpyro", **options))
    return lines, order, ours


def test_two_systems_take_turns_on_equal_terms(monkeypatch):
    theirs = Fake(log_density=(1.0, 2.0 + 1e-10, 3.0))
    lines, order, ours = compare(monkeypatch, theirs, rounds=2, seed=3, draws=50, threads=1)
    assert order == [("rlx_driver.py", "burr", 50), ("numpyro_driver.py", "burr", 50)]
    assert ours.seeds == theirs.seeds == [3, 4, 5]
    assert ours.is_closed and theirs.is_closed
    us, them = lines
    assert (us["what"], us["system"], us["size"], us["curve"]) == ("fit", "rlx", "8x3x20", "burr")
    assert (us["threads"], us["load"], us["divergences"]) == (1, 3.14, 12)
    assert (us["log_density_error"], us["ratio"]) == (0.0, 1.0)
    assert them["system"] == "numpyro"
    assert them["log_density_error"] == pytest.approx(1e-10, rel=0.01)
    assert them["ratio"] == round(us["ess_per_s"] / them["ess_per_s"], 2)
    assert us["ess_min"] == them["ess_min"]  # equal seeds, equal draws
    assert sorted(us) == sorted(them)


@pytest.mark.parametrize(
    "theirs",
    [Fake(log_density=(1.0, 2.0001, 3.0)), Fake(names=("mu",))],
    ids=["density", "sites"],
)
def test_another_model_is_refused(monkeypatch, theirs):
    with pytest.raises(ValueError, match="^rival=numpyro: another model than rlx's.*numpyro_driv"):
        compare(monkeypatch, theirs)


# ------------------------------------------------------------------ options


def test_options():
    what, options = benchmark.parse(["fit", "rival=nutpie", "size=34x3x50", "curve=sigmoid"])
    assert what == "fit"
    assert options == benchmark.FitOptions("nutpie", "34x3x50", "sigmoid", 500, 500, 2, 1, 0)
    assert benchmark.parse(["fit", "draws=50"])[1].draws == 50
    assert benchmark.parse(["step", "rival=trl"]) == ("step", benchmark.Options(rival="trl"))
    assert {field.name for field in fields(benchmark.FitOptions)}.isdisjoint({"model", "repeats"})


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["fit", "rival=trl"], "rival=trl: not available; use rival=none|numpyro|nutpie"),
        (["step", "rival=nutpie"], "rival=nutpie: not available; use rival=none|trl|tunix"),
        (["fit", "curve=power"], "curve=power: not available; use curve=burr|sigmoid"),
        (["fit", "size=24x20"], "size=24x20: not RECIPESxSEEDSxEVALUATIONS; write size=8x3x20"),
        (["fit", "size=0x3x20"], "size=0x3x20: not RECIPESxSEEDSxEVALUATIONS; write size=8x3x20"),
        (["fit", "rounds=0"], "rounds=0: too small; give 1 or more"),
        (["fit", "seed=-1"], "seed=-1: too small; give 0 or more"),
        (["fit", "draws=many"], "draws=many: Value 'many' of type 'str' could not be converted"),
        (["step", "model=big"], "model=big: not available; use model=tiny|small"),
        (
            ["sampler", "size=8x3x20"],
            "size=8x3x20: unknown option; write KEY=VALUE with one of rival, model, ",
        ),
        (["posterior"], "WHAT=['posterior']: nothing to time; use one of sampler, learner, step,"),
    ],
)
def test_bad_options_are_one_line(words, text, capsys):
    assert benchmark.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {text}") and error.count("\n") == 1
