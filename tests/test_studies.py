"""The paper's figures and claims from study directories: what they name exists, and they can be
drawn and judged on a study whose truth is known."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import yaml

import rlx.scaling as sc
from analysis import studies
from rlx.errors import InputError
from rlx.scaling.curve import sigmoid

CONF = studies.Path(__file__).parents[1] / "conf"
COMMITTED = studies.Options().out / "evals"


def sweep(name):
    """The levels of each axis of a study."""
    node = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text())
    params = node["hydra"]["sweeper"]["params"]
    levels = {key: str(value).replace(" ", "").split(",") for key, value in params.items()}
    return {
        "recipe": levels.pop("algo", ["cispo"]),
        "ablation": levels.pop("+ablation", []),
    } | levels


@pytest.mark.parametrize("name", studies.FIGURES)
def test_a_figure_names_cells_of_its_study(name):
    figure = studies.FIGURES[name]
    axis, others = figure.match.get("axis", "recipe"), dict(figure.match)
    others.pop("axis", None)
    levels = sweep(figure.study)
    assert set(figure.recipes) <= set(levels[axis])
    assert all(level in levels[name] for name, level in others.items())


def test_a_claim_names_cells_of_its_study():
    claims = pd.read_csv(studies.CLAIMS, dtype=str)
    assert len(claims) > 25 and claims["claim"].is_unique
    for claim in claims.itertuples():
        assert claim.event in studies.EVENTS
        assert {claim.level, claim.reference} <= set(sweep(claim.study)[claim.axis])


@pytest.mark.parametrize("file", sorted(COMMITTED.glob("*.csv")), ids=lambda file: file.stem)
def test_committed_evaluations_are_of_the_cells_of_today(file):
    """As many as the study has, under the names that they have now."""
    evals, levels = studies.renamed(pd.read_csv(file)), sweep(file.stem)
    axes = [axis for axis in levels if axis != "seed" and (levels[axis] or axis == "recipe")]
    cells = set(evals[axes].astype(str).itertuples(index=False, name=None))
    assert cells == set(itertools.product(*(levels[axis] for axis in axes)))


CELLS = {  # A, log10 C_mid
    "none": (0.80, 10.0),
    "prompt_norm": (0.80, 10.0),
    "centered": (0.65, 10.0),
    "off_policy_8": (0.80, 10.5),
}


@pytest.fixture(scope="module")
def fit():
    """A preview of four cells x three seeds; two of them differ, each in its own way."""
    rng = np.random.default_rng(0)
    rows = []
    for ablation, (A, log_C_mid) in CELLS.items():
        for seed in range(3):
            for C in [0, *np.geomspace(1e9, 1e12, 20)]:
                p = float(sigmoid(np.array([C]), A=A, B=1.5, C_mid=10**log_C_mid, R0=0.1)[0])
                passes = rng.binomial(1024, p)
                rows.append((f"{ablation}-s{seed}", "cispo", ablation, seed, C, passes, 1024))
    names = ["run", "recipe", "ablation", "seed", "compute", "passes", "trials"]
    evals = sc.Evals.from_frame(pd.DataFrame(rows, columns=names), axes=["ablation"])
    return sc.fit(evals, method="laplace")


@pytest.mark.parametrize("name", ["14b", "8a", "7"])
def test_a_figure_is_drawn(fit, tmp_path, name):
    figure = studies.FIGURES[name]
    recipes = {"none": "batch", "prompt_norm": "prompt", "centered": "none"}
    if name == "8a":
        recipes = {"none": "ours"}
    figure = dataclasses.replace(figure, study="x", recipes=recipes)
    path = tmp_path / "figure.png"
    studies.draw(figure, fit).savefig(path)
    assert path.stat().st_size > 20_000


def test_verdicts_are_the_probabilities_of_the_claims(fit, tmp_path, monkeypatch):
    claims = [
        ("the same", "none", "prompt_norm", "same A", "reproduced"),
        ("lower", "none", "centered", "lower A", "reproduced"),
        ("higher", "none", "centered", "higher A", "contradicted"),
        ("dearer", "none", "off_policy_8", "more compute", "reproduced"),
        ("not dearer", "none", "prompt_norm", "more compute", None),
    ]
    rows = [(c, "0", "x", "ablation", level, ref, event) for c, ref, level, event, _ in claims]
    names = ["claim", "figure", "study", "axis", "level", "reference", "event"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "claims.csv", index=False)
    monkeypatch.setattr(studies, "CLAIMS", tmp_path / "claims.csv")
    alone = fit.with_doubt(None)  # the fitted curves, whose ceilings are known to within 0.02
    table = studies.verdicts(lambda study: alone).set_index("claim")
    for claim, *_, verdict in claims:
        if verdict:
            assert table.loc[claim, "verdict"] == verdict
    assert table.loc["not dearer", "verdict"] != "reproduced"
    assert table.loc["lower", "dA"] == pytest.approx(-0.15, abs=0.02)
    assert table.loc["dearer", "compute_ratio"] == pytest.approx(10**0.5, rel=0.15)
    assert 0.005 < table.loc["the same", "smallest_dA"] < 0.05
    assert 1.02 < table.loc["the same", "smallest_ratio"] < 1.5
    doubted = studies.verdicts(lambda study: fit).set_index("claim")  # at 10 times the compute
    assert doubted.loc["the same", "verdict"] == "cannot tell"
    assert doubted.loc["the same", "smallest_dA"] > 2 * table.loc["the same", "smallest_dA"]
    for claim in ("lower", "higher", "dearer"):
        assert doubted.loc[claim, "verdict"] == table.loc[claim, "verdict"]


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="fig=99: no such figure; use 2|4a"):
        studies.main(["fig=99", f"out={tmp_path}"])
    with pytest.raises(InputError, match="no runs of this study; python -m experiments.study"):
        studies.main(["fig=2", f"runs={tmp_path}", f"out={tmp_path}"])


def test_a_wide_posterior_contradicts_nothing():
    """Half of the draws far above, half far below: no claim but "not the same" gains from it."""
    row = {"p_ceiling": 0.98, "p_raises": 0.49, "p_lowers": 0.49, "p_uncompared": 0.95}
    row |= {"p_dearer": 0.02, "p_sooner": 0.49, "p_later": 0.49}
    for event in ("same A", "more compute", "more compute to 80 %", "higher A", "lower A"):
        claim, contrary = studies.EVENTS[event](pd.Series(row))
        assert max(claim, contrary) < studies.DECIDE
    claim, contrary = studies.EVENTS["same A"](pd.Series(row | {"p_raises": 0.95, "p_lowers": 0.0}))
    assert contrary >= studies.DECIDE


def test_committed_evaluations_are_read_as_the_runs_were():
    folder = studies.CLAIMS.parent / "results" / "studies" / "evals"
    evals = studies.read_table(folder / "ceiling_movers.csv", "compute")
    assert {"model", "rollout.max_new_tokens", "rollout.prompts_per_step"} <= set(evals.axes)
    assert evals.compute_label == "training compute (FLOPs)" and evals.title == "ceiling_movers"
    assert len(evals.runs) == 24 and evals.frame["start"].nunique() == 4
    assert studies.read_table(folder / "loo.csv", "compute").frame["start"].nunique() == 1
