"""The numbers of a page against the questions that they answer, and that nothing breaks out of it.

How it looks and works in a browser is in test_page_browser.py.
"""

import base64
import hashlib
import json
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import rlx.scaling as sc
from rlx.errors import InputError
from rlx.scaling import page
from rlx.scaling.backtest import Backtest
from rlx.scaling.point_page import point_page
from rlx.scaling.recorded import configurations, other_axes
from rlx.scaling.run_fits import fit_study
from rlx.scaling.style import COLORS
from tests.scaling.drawn import posterior
from tests.scaling.paged import NASTY, study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shown():
    """(fit, evaluations, windows, what the page holds)."""
    fit, data, windows = study()
    return fit, data, windows, page.page_data(fit, data, windows)


def close(got, want):
    """As pages round: 6 digits, 4 places of curves."""
    np.testing.assert_allclose(np.array(got, float), np.asarray(want, float), rtol=1e-5, atol=6e-5)


def test_bands_are_quantiles_of_curve_and_predict(shown):
    _, _, windows, blob = shown
    for window, said in zip(windows, blob["windows"], strict=True):
        for by in ("run", "recipe"):
            for name, ask, points in (
                ("curve", window.fit.curve, (0.05, 0.5, 0.95)),
                ("new", window.fit.predict, (0.05, 0.95)),
            ):
                want = ask(blob["grid"], by).quantile(points, ("chain", "draw"))
                close(said[by][name], want.values)
            close(said[by]["last"], window.fit.last_compute(by))
    assert blob["grid"][0] == 1.0 and blob["grid"][-1] == 4 * 16.0
    assert [w["share"] for w in blob["windows"]] == [0.25, 0.5] and blob["own"] == 1


def test_forecasts_are_scored_on_what_came_later(shown):
    _, data, windows, blob = shown
    for window, said in zip(windows, blob["windows"], strict=True):
        last = 16 * window.share
        later = data.frame[data.frame["compute"] > last]
        assert said["later"] == len(later) > 0
        inside = 0
        for run, rows in later.groupby("run"):
            drawn = window.fit.predict(rows["compute"]).sel(run=run)
            lo, hi = drawn.quantile([0.05, 0.95], ("chain", "draw")).values
            inside += int(((lo <= rows["value"]) & (rows["value"] <= hi)).sum())
        assert abs(said["inside"] - inside) <= 2  # other draws of the noise
    past = Backtest(pd.concat([w.points.assign(curve="burr", origin=w.share) for w in windows]))
    assert blob["trust"]["trust"] == pytest.approx(past.trust(), rel=1e-5)
    assert blob["trust"]["says"] == past.says()
    close([x["coverage"] for x in blob["trust"]["evidence"]], past.evidence()["coverage"])


def test_ceilings_costs_and_effects_are_answers_of_the_fit(shown):
    fit, _, _, blob = shown
    A_XJ = fit.param("A").values.reshape(-1, 2)
    A = np.quantile(A_XJ, [0.05, 0.5, 0.95], axis=0, method="inverted_cdf")  # as in summary
    close([[row[q] for row in blob["ceilings"]] for q in ("q05", "q50", "q95")], A)
    close([row["p_best"] for row in blob["ceilings"]], fit.prob_best().values)
    for target, rows in zip(blob["costs"]["targets"], blob["costs"]["rows"], strict=True):
        want = fit.compute_to(target)
        close([row["q50"] for row in rows], want["q50"])  # inf is written "inf"
        close([row["prob_reachable"] for row in rows], want["prob_reachable"])
    assert len(blob["costs"]["targets"]) >= 5
    (effects,) = blob["effects"]
    want = fit.effects("recipe").iloc[0]
    assert effects["rows"][0]["verdict"] == want["verdict"]
    close([effects["rows"][0]["dA_q50"]], [want["dA_q50"]])


def test_budgets_and_check_are_answers_of_the_fit(shown):
    fit, _, _, blob = shown
    for said in blob["budgets"]:
        want = fit.allocate(said["budget"])
        assert [row["action"] for row in said["rows"]] == want["action"].tolist()
        close([row["gain_mean"] for row in said["rows"]], want["gain_mean"])
        close([said["value"], said["perfect"]], [want.attrs["value"], want.attrs["perfect"]])
    assert [b["factor"] for b in blob["budgets"]] == [0.5, 1.0, 2.0]
    assert blob["check"]["problems"] == list(fit.check().problems)


def test_runs_hold_their_evaluations(shown):
    fit, data, _, blob = shown
    for run, said in zip(fit.runs, blob["runs"], strict=True):
        rows = data.frame[data.frame["run"] == run]
        close(said["x"][0], rows["compute"])
        close(said["y"], rows["value"])
    assert blob["axes"] == ["training compute C (10^18 FLOPs)"]
    table = pd.DataFrame(blob["table"]["rows"], columns=blob["table"]["columns"])
    assert table["run"].tolist() == fit.runs and table["evaluations"].tolist() == [12] * 3
    assert table["fitted"].tolist() == [8] * 3 and table["last compute"].tolist() == [16.0] * 3
    colors = {recipe["color"] for recipe in blob["recipes"]}
    assert len(colors) == 2 and [r["runs"] for r in blob["recipes"]] == [fit.runs[:2], fit.runs[2:]]


def test_numbers_that_JSON_lacks():
    x = {"a": [np.inf, -np.inf, np.nan, np.float64(1 / 3)], 5: np.int64(2), "b": np.True_}
    assert page.clean(x) == {"a": ["inf", "-inf", None, 0.333333], "5": 2, "b": True}
    assert page.plain(r"C (10$^{18}$ FLOPs)") == "C (10^18 FLOPs)"


def test_text_from_outside_stays_text(tmp_path):
    """Names, titles and options may hold anything."""
    fit, data, windows = study(NASTY, title=NASTY)
    configs = {NASTY: {"optim.name": NASTY, "lr": 0.1}, "j0-1": {"optim.name": "b", "lr": 0.1}}
    page.write_page(page.page_data(fit, data, windows, configs=configs), tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    assert text.count("</script>") == text.count("<script") == 3
    assert "<script>window.pwned" not in text and "\u2028" not in text.partition('id="data"')[2]
    blob = page.read_page(tmp_path / "p.html")
    assert blob["runs"][0]["name"] == blob["title"] == NASTY
    assert blob["configs"]["apart"]["optim.name"] == [NASTY, "b", ""]


def test_a_page_asks_for_nothing_and_runs_its_own_scripts_alone(shown, tmp_path):
    page.write_page(shown[3], tmp_path / "p.html")
    text = (tmp_path / "p.html").read_text()
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(scripts) == 2 and not re.search(
        r"<(script|link|img|iframe)[^>]*(src|href)=.http", text
    )
    assert "Permission is hereby granted, free of charge" in scripts[0]  # the library's licence
    assert "uPlot 1.6.32" in text and "(v1.6.32)" in scripts[0]


def test_the_template_is_part_of_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    kinds = {pattern.rpartition(".")[2] for pattern in data["rlx.scaling"]}
    files = list(page.TEMPLATE.iterdir())
    assert len(files) == 10 and {file.suffix[1:] for file in files} == kinds


def test_options_out_of_range(shown, tmp_path):
    fit = shown[0]
    with pytest.raises(InputError, match="horizon=1: not beyond"):
        sc.report_page(fit, tmp_path / "p.html", horizon=1)
    with pytest.raises(InputError, match=r"shares=0: not in \(0, 1\]"):
        sc.report_page(fit, tmp_path / "p.html", shares=[0])
    with pytest.raises(InputError, match="holds no data"):
        (tmp_path / "other.html").write_text("<html>")
        page.read_page(tmp_path / "other.html")


def test_a_fit_alone_has_one_window(shown, tmp_path):
    sc.report_page(shown[0], tmp_path / "p.html", shares=())
    (window,) = page.read_page(tmp_path / "p.html")["windows"]
    assert (window["share"], window["later"]) == (1.0, 0)


def write_runs(root):
    """Two runs of five evaluations with tokens, steps and clocks, and their configurations."""
    for seed, pace in ((0, 2.0), (1, 3.0)):
        folder = root / "runs" / f"a-s{seed}"
        folder.mkdir(parents=True)
        config = {"lr": 0.1, "env": {"kwargs": {"hi": 4 + seed}, "none": {}}}
        manifest = {"run_id": f"a-s{seed}", "recipe": "a", "seed": seed, "status": "done"}
        manifest |= {"axes": {}, "ceiling": 1.0}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        evals, clock = [], []
        for i in range(5):
            row = {"step": 10 * i, "mean": 0.2 + 0.1 * i, "trials": 100, "compute": 1e9 * i}
            evals.append(row | {"tokens_generated": 500 * i})
            clock.append({"step": 10 * i, "wall_s": pace * i, "modelled_device_s": 0.0})
        for name, rows in (("evals", evals), ("clock", clock)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield folder / "manifest.json", manifest | {"config": config}


def test_other_axes_and_configurations_of_a_study(tmp_path, capsys):
    manifests = list(write_runs(tmp_path))
    data = sc.Evals.read(tmp_path)
    capsys.readouterr()
    axes = other_axes(tmp_path, data)
    assert capsys.readouterr().out == ""
    assert axes["training step"] == [0.0, 10.0, 20.0, 30.0, 40.0] * 2
    assert axes["tokens_generated"] == [0.0, 500.0, 1000.0, 1500.0, 2000.0] * 2
    assert axes["wall-clock time (s)"] == [0, 2.0, 4.0, 6.0, 8.0, 0, 3.0, 6.0, 9.0, 12.0]
    assert len(axes) == 3  # compute is that of data; device time stands still
    for file, manifest in manifests:
        file.write_text(json.dumps(manifest))
    found = configurations(tmp_path)
    assert found["a-s1"] == {"lr": 0.1, "env.kwargs.hi": 5, "env.none": {}}
    said = page.configs_of(["a-s0", "a-s1"], {}, found)
    assert said["apart"] == {"env.kwargs.hi": ["4", "5"]} and said["shared"]["lr"] == "0.1"


def test_other_axes_of_a_table(tmp_path, capsys):
    rows = {
        "step": range(1, 6),
        "gpu_hours": np.arange(1, 6) * 2.5,
        "tokens_per_s": [9, 8, 9, 8, 9],
    }
    pd.DataFrame(rows | {"acc": np.linspace(0.1, 0.5, 5)}).to_csv(tmp_path / "t.csv", index=False)
    data = sc.Evals.read(tmp_path / "t.csv", compute="gpu_hours")
    assert other_axes(tmp_path / "t.csv", data) == {"step": [1.0, 2.0, 3.0, 4.0, 5.0]}
    assert configurations(tmp_path / "t.csv") == {}


def test_a_page_of_point_fits(tmp_path):
    """Curves, ceilings with their profile, and how far the rest lay from them; no probabilities."""
    data = sc.Evals.read(ROOT / "tests/data/digitized_fig1a.csv", r0=0.40)
    windows = {share: fit_study(data.frame, holdout=1 - share, r0="r0") for share in (0.5, 1.0)}
    point_page(windows, 0.5, tmp_path / "p.html", data=data)
    blob = page.read_page(tmp_path / "p.html")
    assert blob["own"] == 0 and "costs" not in blob and "trust" not in blob
    for share, said in zip((0.5, 1.0), blob["windows"], strict=True):
        for n, fit in enumerate(windows[share]):
            for q in said["run"]["curve"]:
                close(q[n], fit.fit.at(np.array(blob["grid"])))
    held = [fit.rmse_heldout**2 for fit in windows[0.5]]
    count = [int((data.frame["run"] == fit.run).sum()) for fit in windows[0.5]]
    assert min(held) <= blob["windows"][0]["rmse"] ** 2 <= max(held) and sum(count) == 66
    assert blob["windows"][1]["later"] == 0 and blob["windows"][1]["rmse"] is None
    assert [row["q50"] for row in blob["ceilings"]] == pytest.approx(
        [fit.fit.A for fit in windows[0.5]], rel=1e-5
    )
    assert all(math.isfinite(row["q95"]) for row in blob["ceilings"])


def test_ablations_are_recipes_and_have_colours_of_their_own():
    axes = {"ablation": ["none", "dapo_loss", "none"], "env.T": ["9", "9", "11"]}
    axes["recipe"] = ["cispo"] * 3
    fit = posterior([[0.5, 0.6, 0.7]], 2.0, 1.5, axes=axes)
    assert page.labels_of(fit) == ["cispo, T=9", "cispo, dapo_loss, T=9", "cispo, T=11"]
    blue, red, green = COLORS[:3]
    assert page.colors_of(fit) == [blue, red, blue]
    assert [recipe["mark"] for recipe in page.recipes_of(fit)] == [0, 0, 1]
    alone = posterior([[0.5, 0.6, 0.7]], 2.0, 1.5)
    assert page.colors_of(alone) == [blue, red, green]
