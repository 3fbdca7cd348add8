"""The study of a task with a worse optimum on the way: where its runs end, and its figure."""

import pandas as pd
import pytest

from analysis import hard_mix
from analysis.studies import renamed
from rlx.record import RunRecord

KNOWN = {"guess all": 0.25, "work out all": 0.5, "tell apart": 0.625}


@pytest.fixture
def study(tmp_path):
    """Two cells, each at a rate of its own; one run rises and falls."""
    learning_rates = {"none": 1e-3, "sync": 2e-4}
    for ablation, rates in {"none": [0.25, 0.6, 0.2], "sync": [0.25, 0.5, 0.64]}.items():
        record, rate = RunRecord(tmp_path / "study" / "runs" / ablation), learning_rates[ablation]
        record.update_manifest(
            run_id=ablation, study="hard_mix", recipe="cispo", seed=0, status="done", ceiling=0.5,
            axes={"optim.learning_rate": rate, "ablation": ablation}, config={
                "env": {"kwargs": {"base": 4}}, "optim": {"learning_rate": rate},
                "pipeline": {"kind": ablation},
            },
            warm_start_flops=0.0,
        )  # fmt: skip
        for step in range(15):
            mean = rates[step // 5]
            record.append(
                "evals.jsonl",
                {"step": step, "eval_set": "heldout", "mean": mean, "passes": int(100 * mean),
                 "trials": 100, "stderr": 0.05, "compute": 1e9 * step},
            )  # fmt: skip
    return tmp_path / "study"


def test_where_runs_end(study, tmp_path):
    hard_mix.main([f"study={study}", f"out={tmp_path}/out"])
    assert hard_mix.levels(study) == KNOWN
    table = pd.read_csv(tmp_path / "out" / "ends.csv").set_index("ablation")
    assert table["end"].round(3).to_dict() == {"none": 0.2, "sync": 0.64}
    assert table["best"].round(3).to_dict() == {"none": 0.6, "sync": 0.64}
    assert table["level"].to_dict() == {"none": "guess all", "sync": "tell apart"}
    assert (tmp_path / "out" / "hard_mix.png").stat().st_size > 10_000


def test_the_committed_table_follows_from_the_committed_evaluations():
    folder = hard_mix.Options().out
    evals = renamed(pd.read_csv(folder / "evals.csv"))
    worked = evals["truth"].iloc[0]
    known = {"guess all": 0.25, "work out all": worked, "tell apart": worked + (1 - worked) / 4}
    again = hard_mix.ends(evals, known).round(4).reset_index(drop=True)
    pd.testing.assert_frame_equal(again, pd.read_csv(folder / "ends.csv"), check_dtype=False)
