"""`experiments.scored`: scores by hand, and a table of sets that is interrupted."""

import contextlib
import io

import numpy as np
import pandas as pd
import pytest

from experiments import scored
from experiments.scored import Curves, scores, work
from rlx.errors import InputError
from rlx.record import read_rows


def test_scores_by_hand():
    """Two runs, one of them with two evaluations, draws 0 .. 1: the interval is 0.05 to 0.95."""
    x_XP = np.repeat(np.linspace(0, 1, 1001)[:, None], 3, 1)
    table = pd.DataFrame({"run": ["a", "a", "b"], "value": [0.5, 0.97, 0.9]})
    found = scores(x_XP, table.assign(horizon=[1.2, 3.0, 3.0]))
    assert found["coverage"] == pytest.approx((0.5 + 0 + 2 * 0.5) / 2)  # (1 + 0) / 2 of a, 1 of b
    assert found["width"] == pytest.approx(0.9)
    assert found["interval"] == pytest.approx(0.9 + 0.25 * 20 * 0.02)
    assert found["rmse"] == pytest.approx(np.sqrt((0.47**2 / 2 + 0.4**2) / 2))
    assert found["coverage 1.5x"] == 1 and found["coverage 4x"] == pytest.approx(2 / 3)
    assert (found["n"], found["runs"]) == (3, 2)


@pytest.fixture
def jobs(monkeypatch):
    """Two sets with a row for each of three rules; the calls that made them."""
    made = []

    def rows(name):
        made.append(name)
        return [{"rule": rule, "coverage": 0.9} for rule in ("posterior", "last", "line")]

    def two(*_):
        for name in ("one", "two"):
            yield Curves(name, "g", lambda: None), 0.5, lambda name=name: rows(name)

    monkeypatch.setattr(scored, "_jobs", two)
    return made


def ask(out, method="laplace"):
    with contextlib.redirect_stdout(io.StringIO()):
        return work(out, out, 0, method)


def test_an_interrupted_table_gets_each_row_once(tmp_path, jobs):
    whole = ask(tmp_path)
    assert len(whole) == 6 and jobs == ["one", "two"]
    file = tmp_path / "scored.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]) + lines[4][:20])  # killed within the second set
    jobs.clear()
    again = ask(tmp_path)
    assert jobs == ["two"]
    pd.testing.assert_frame_equal(again, whole)


def test_scores_of_another_method_are_not_mixed(tmp_path, jobs):
    ask(tmp_path)
    with pytest.raises(InputError, match="method=nuts: .* holds scores by laplace; give another"):
        ask(tmp_path, "nuts")
    assert {row["method"] for row in read_rows(tmp_path / "scored.jsonl")} == {"laplace"}
