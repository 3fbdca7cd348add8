"""The study of turns: where its runs end beside their ceilings, and its figure."""

import pandas as pd
import pytest

from analysis import turns
from analysis.studies import renamed
from rlx.errors import InputError
from rlx.record import RunRecord


@pytest.fixture
def study(tmp_path):
    """Two numbers of turns, one of which has no known ceiling."""
    for n, ceiling, rates in ((1, None, [0.1, 0.1, 0.1, 0.1]), (4, 0.75, [0.3, 0.4, 0.6, 0.8])):
        record = RunRecord(tmp_path / "study" / "runs" / f"turns{n}")
        record.update_manifest(
            run_id=f"turns{n}", study="turns", recipe="cispo", seed=0, status="done",
            ceiling=ceiling, axes={"episode.max_turns": n},
            config={"episode": {"max_turns": n}}, warm_start_flops=0.0,
        )  # fmt: skip
        for step, mean in enumerate(rates):
            record.append(
                "evals.jsonl",
                {"step": step, "eval_set": "heldout", "mean": mean, "passes": int(100 * mean),
                 "trials": 100, "stderr": 0.05, "compute": 1e9 * step},
            )  # fmt: skip
    return tmp_path / "study"


def test_where_runs_end(study, tmp_path):
    turns.main([f"study={study}", f"out={tmp_path}/out"])
    table = pd.read_csv(tmp_path / "out" / "ends.csv")
    assert table["episode.max_turns"].tolist() == [1, 4]
    assert table["end"].tolist() == [0.1, 0.6] and table["start"].tolist() == [0.1, 0.3]
    assert table["way"].isna().tolist() == [True, False]
    assert table["way"][1] == pytest.approx(2 / 3, abs=1e-4)
    assert (tmp_path / "out" / "turns.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", ["turns", "tool"])
def test_the_committed_table_follows_from_the_committed_evaluations(name):
    folder = turns.Options().out.with_name(name)
    again = turns.ends(renamed(pd.read_csv(folder / "evals.csv"))).round(4)
    pd.testing.assert_frame_equal(again, pd.read_csv(folder / "ends.csv"), check_dtype=False)


def test_a_study_of_something_else(tmp_path):
    with pytest.raises(InputError, match="^study=.*: no runs of this study; python -m experiments"):
        turns.main([f"study={tmp_path}"])
