"""Which code made a run, and what an interruption of it threw away."""

import subprocess
from pathlib import Path

import pytest

from rlx.record import RunRecord, read_rows
from rlx.train.report import commit, note_lost_work

SETS = ("heldout", "gcd", "sums")


def interrupted(path, sets, torn=0):
    """Evaluated at 0, 4 and 8, killed in update 10; `torn` rows of the last evaluation missing."""
    record = RunRecord(path)
    rows = [
        {"step": step, "eval_set": name, "mean": 0.1 * i, "compute": 1e9 * step}
        for step in (0, 4, 8)
        for i, name in enumerate(sets)
    ]
    for row in rows[: len(rows) - torn]:
        record.append("evals.jsonl", row)
    for step in range(10):
        record.append("metrics.jsonl", {"step": step})
    for step in (0, 4, 8):
        record.append("clock.jsonl", {"step": step, "wall_s": 3.0 * step})
    return record


@pytest.mark.parametrize("sets, torn", [(SETS[:1], 0), (SETS, 0), (SETS, 1), (SETS, 2)])
def test_lost_work_does_not_depend_on_the_number_of_sets(tmp_path, sets, torn):
    record = interrupted(tmp_path, sets, torn)
    note_lost_work(record, {"version": 4, "clock": {"wall_s": 13.0}})
    note_lost_work(record, {"version": 0})
    since_4, whole = read_rows(tmp_path / "restarts.jsonl")
    assert since_4 == {
        "step": 4, "updates_lost": 6, "compute_lost": 4e9, "wall_s_lost": 11.0
    }  # fmt: skip
    assert (whole["updates_lost"], whole["compute_lost"]) == (10, 8e9)


def test_nothing_is_lost_after_the_last_evaluation_and_update(tmp_path):
    note_lost_work(interrupted(tmp_path, SETS), {"version": 10, "clock": {"wall_s": 30.0}})
    assert not (tmp_path / "restarts.jsonl").exists()


def test_the_commit_is_that_of_the_checkout():
    ask = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True).stdout
    assert commit().removesuffix("-dirty") == head.strip()  # outside of a checkout both are empty
