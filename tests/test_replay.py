"""The replay of committed studies: its yardsticks, its counts, and what its tables hold."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest

from analysis import replay
from rlx.scaling import Evals
from rlx.scaling.stopping import Rule


def made(ends, last=10.0):
    """Runs that rise in a line from 0.1 at C = 0 to their end at C = `last`, 11 evaluations."""
    rows = [
        {"run": f"{recipe}-s{seed}", "recipe": recipe, "seed": seed, "compute": last * k / 10}
        | {"value": 0.1 + (end + 0.001 * seed - 0.1) * k / 10, "stderr": 0.01}
        for recipe, end in ends.items()
        for seed in range(3)
        for k in range(11)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evals = Evals.from_frame(pd.DataFrame(rows))
    return replay.study("made", evals, {"recipe": "base"})


def test_the_compute_to_a_level_is_read_off_the_line_between_evaluations():
    run = pd.DataFrame({"compute": np.arange(11.0), "value": np.arange(11) / 10})
    assert np.exp(replay.compute_to_level(run, 0.33)) == pytest.approx(3.3)
    assert np.exp(replay.compute_to_level(run, 2.0)) == pytest.approx(10.0)  # never: at its end


def test_truth_is_what_differs_by_two_standard_errors():
    study = made({"base": 0.5, "far": 0.3, "alike": 0.5})
    assert study.baseline == "recipe=base" and len(study.cells) == 3
    known = replay.truth(study)
    assert known["recipe=far"] == {"final": "lower", "compute": "higher"}
    assert known["recipe=alike"] == {"final": "", "compute": ""}


def test_each_cell_is_cut_to_its_own_share():
    study = made({"base": 0.5, "far": 0.3})
    cut = study.until({"recipe=base": 0.5, "recipe=far": 0.2}).frame
    assert cut.groupby("recipe")["compute"].max().to_dict() == {"base": 5.0, "far": 2.0}


def test_counts():
    def row(cell, final, compute):
        says = {"final": {"says": final}, "compute": {"says": compute}}
        return {"cell": cell, "decision": "stop", **says}

    known = {"a": {"final": "lower", "compute": ""}, "b": {"final": "higher", "compute": ""}}
    told = [row("a", "lower", "equal"), row("b", "lower", "higher")]
    assert replay.score(told, known) == {
        "true": 2, "none": 2, "kept": 1, "opposite": 1, "unsupported": 1, "equal": 1,
        "equal_wrong": 0,
    }  # fmt: skip


def test_the_committed_studies_are_53_comparisons():
    with contextlib.redirect_stdout(io.StringIO()):
        studies = replay.studies()
    assert [len(study.cells) for study in studies] == [9, 5, 8, 17, 3, 9, 9]
    assert sum(len(study.cells) - 1 for study in studies) == 53
    assert all(len(runs) == 3 for study in studies for runs in study.cells.values())


def test_what_the_tables_say_at_half_the_compute():
    """At least 95 % kept, at most 2 % opposite and 5 % unsupported where the guard passes."""
    table = pd.read_csv(replay.EVALS / "budget/summary.csv")
    table = table[(table["rule"] == "left out") & (table["yardstick"] == "fitted")]
    table = table[(table["policy"] == "equal") & table["guard"] & (table["budget"] == 0.5)]
    row = table.set_index("group").loc["guard passes"]
    assert row["kept"] / row["true"] >= 0.95 and row["spent"] <= 0.5
    assert row["opposite"] / row["true"] <= 0.02 and row["unsupported"] / row["none"] <= 0.05
    assert table.set_index("group").loc["hard", "spent"] == 1


def test_studies_that_share_a_baseline_are_left_out_together():
    assert replay.shared_with("controls") == replay.SHARED[1]
    assert replay.shared_with("hard_lo") == ("hard_lo",)
    rules = pd.read_csv(replay.EVALS / "budget/rules.csv")
    assert set(rules["study"]) == {*replay.GROUPS["five"], *replay.GROUPS["hard"]}
    assert set(rules["margin"]) == {Rule().margin}


def test_what_a_replay_spends():
    """Both cells get half of their updates; the baseline's runs end at 10, the others' too."""
    study = made({"base": 0.5, "far": 0.3})

    def forecast(reached):
        runs = [run for cell in study.cells.values() for run in cell]
        shape = (200, len(runs))
        value = 0.4 + 0.001 * np.random.default_rng(0).normal(size=shape)
        return replay.Ahead(runs, value, np.zeros(shape))

    decisions, spent = replay.replay(study, forecast, "equal", 0.5, Rule(), guarded=False)
    assert decisions and 0 < spent["spent"] <= 0.5
    assert spent["spent_flops"] == pytest.approx(spent["spent"])  # equal lengths, equal cost
