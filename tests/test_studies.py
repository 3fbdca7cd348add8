"""The paper's figures and claims from study directories: what they name exists, and they can be
drawn and judged on a study whose truth is known."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import yaml

import rlx.scaling as sc
from analysis import comparisons, studies
from rlx.errors import InputError
from rlx.scaling.curve import sigmoid

CONF = studies.Path(__file__).parents[1] / "conf"
COMMITTED = studies.RESULTS / "evals"


def sweep(name):
    """The levels of each axis of a study."""
    node = yaml.safe_load((CONF / "sweep" / f"{name}.yaml").read_text())
    params = node["hydra"]["sweeper"]["params"]
    levels = {key: str(value).replace(" ", "").split(",") for key, value in params.items()}
    return {
        "recipe": levels.pop("algo", ["cispo"]),
        "ablation": levels.pop("+ablation", []),
    } | levels


@pytest.mark.parametrize("name", comparisons.FIGURES)
def test_a_figure_names_cells_of_its_study(name):
    figure = comparisons.FIGURES[name]
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


CLAIMED = [
    ("the same", "none", "prompt_norm", "same A", "reproduced"),
    ("lower", "none", "centered", "lower A", "reproduced"),
    ("higher", "none", "centered", "higher A", "contradicted"),
    ("dearer", "none", "off_policy_8", "more compute", "reproduced"),
    ("not dearer", "none", "prompt_norm", "more compute", None),
]


@pytest.fixture
def made(fit, tmp_path, monkeypatch):
    """Its tables, under claims of our own."""
    rows = [(c, "0", "loo", "ablation", level, ref, event) for c, ref, level, event, _ in CLAIMED]
    names = ["claim", "figure", "study", "axis", "level", "reference", "event"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "claims.csv", index=False)
    monkeypatch.setattr(studies, "CLAIMS", tmp_path / "claims.csv")
    return studies.tables("loo", fit)


def test_tables_are_quantiles_of_the_posterior(fit, made):
    line = made["curves"].query("level == 'recipe' and name == 'cispo, ablation=centered'")
    drawn = fit.curve(line["compute"]).sel(recipe="cispo, ablation=centered").values
    expected = np.quantile(drawn.reshape(-1, len(line)), [0.05, 0.5, 0.95], axis=0)
    np.testing.assert_allclose(line[["q05", "q50", "q95"]].to_numpy().T, expected)
    assert line["compute"].max() == pytest.approx(1e12)
    assert set(made["curves"].query("level == 'run'")["name"]) == set(fit.runs)
    ceilings = made["effects"].groupby("ceiling")["level"].apply(set)
    assert ceilings["horizon"] == ceilings["asymptote"] == {*CELLS} - {"none"}


def test_a_study_replaces_its_own_rows(tmp_path):
    path = tmp_path / "table.csv"
    for study, x in (("loo", 1), ("recipes", 2), ("loo", 3)):
        studies.replaced(path, pd.DataFrame({"study": [study], "x": [x]}))
    assert pd.read_csv(path).to_dict("list") == {"study": ["recipes", "loo"], "x": [2, 3]}


@pytest.mark.parametrize("name", ["14b", "8a", "7", "15"])
def test_a_figure_is_drawn(fit, made, name):
    figure = comparisons.FIGURES[name]
    recipes = {"none": "batch", "prompt_norm": "prompt", "centered": "none"}
    figure = dataclasses.replace(figure, recipes={"none": "ours"} if name == "8a" else recipes)
    effects = made["effects"].query("ceiling == 'horizon'")
    drawn = comparisons.draw(figure, comparisons.of_fit("loo", fit))
    axes = {ax.get_xlabel().partition(" at ")[0].partition(" to ")[0]: ax for ax in drawn.axes}
    if name in ("14b", "15"):
        middles = [line.get_xdata()[0] for line in axes["change of the pass rate"].lines[2::2]]
        expected = effects.set_index("level").loc[["prompt_norm", "centered"], "dA_q50"]
        assert middles == expected.tolist()
    if name == "7":
        names = [text.get_text() for text in drawn.axes[0].get_yticklabels()]
        assert names == list(recipes.values())
        assert len(axes["compute"].lines) == 1 + 2 * 2
    if name == "8a":
        seeds = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
        assert seeds == ["seed 0", "seed 1", "seed 2"]


def test_verdicts_are_the_probabilities_of_the_claims(made):
    def judged(ceiling):
        rows = made["effects"]
        return studies.verdicts(rows[rows["ceiling"] == ceiling]).set_index("claim")

    table = judged("asymptote")  # the fitted curves, whose ceilings are known to within 0.02
    for claim, *_, verdict in CLAIMED:
        if verdict:
            assert table.loc[claim, "verdict"] == verdict
    assert table.loc["not dearer", "verdict"] != "reproduced"
    assert table.loc["lower", "dA"] == pytest.approx(-0.15, abs=0.02)
    assert table.loc["dearer", "compute_ratio"] == pytest.approx(10**0.5, rel=0.15)
    assert 0.005 < table.loc["the same", "smallest_dA"] < 0.05
    assert 1.02 < table.loc["the same", "smallest_ratio"] < 1.5
    doubted = judged("horizon")  # at 10 times the compute
    assert doubted.loc["the same", "verdict"] == "cannot tell"
    assert doubted.loc["the same", "smallest_dA"] > 2 * table.loc["the same", "smallest_dA"]
    for claim in ("lower", "higher", "dearer"):
        assert doubted.loc[claim, "verdict"] == table.loc[claim, "verdict"]


@pytest.mark.parametrize("name", ["verdicts", "verdicts_at_horizon"])
def test_committed_verdicts_follow_from_the_committed_effects(name):
    table = pd.read_csv(studies.RESULTS / "effects.csv")
    kind = {"verdicts": "asymptote", "verdicts_at_horizon": "horizon"}[name]
    again = studies.verdicts(table[table["ceiling"] == kind])
    committed = pd.read_csv(studies.RESULTS / f"{name}.csv")
    pd.testing.assert_frame_equal(again, committed, check_dtype=False, atol=1e-4)


@pytest.mark.slow  # a Laplace fit, a minute
def test_committed_tables_are_what_the_fit_gives(tmp_path):
    studies.main(["study=recipes", f"out={tmp_path}"])
    for name in ("curves", "parameters", "effects"):
        again, committed = (pd.read_csv(p / f"{name}.csv") for p in (tmp_path, studies.RESULTS))
        committed = committed[committed["study"] == "recipes"].dropna(axis=1, how="all")
        pd.testing.assert_frame_equal(
            again.dropna(axis=1, how="all"), committed.reset_index(drop=True),
            check_dtype=False, rtol=0.02, atol=0.01,
        )  # fmt: skip


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="study=99: not available; use study=recipes|loo"):
        studies.main(["study=99", f"out={tmp_path}"])
    with pytest.raises(InputError, match="no runs of this study; python -m experiments.study"):
        studies.main(["study=loo", f"runs={tmp_path}", f"out={tmp_path}"])


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
    assert evals.compute_label == "training compute C (FLOPs)" and evals.title == "ceiling_movers"
    assert len(evals.runs) == 24 and evals.frame["start"].nunique() == 4
    assert studies.read_table(folder / "loo.csv", "compute").frame["start"].nunique() == 1
