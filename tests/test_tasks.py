"""Runs on a mixture of tasks from the command line: their rows, their fits, their figure."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import tasks
from experiments import fit, study
from rlx.errors import InputError
from rlx.record import read_rows, runs
from rlx.scaling import Evals

ROOT = Path(__file__).parents[1]
SETS = ["heldout", "any", "long", "five", "wider"]
SMALL = [
    "steps=5", "eval.every_steps=1", "mesh=one", "optim.microbatches=1", "eval=default",
    "model.d_model=16", "model.n_layers=1", "model.d_ff=24", "model.head_dim=8",
    "rollout.prompts_per_step=4", "rollout.group_size=4", "rollout.slots=16",
    "env.train_prompts=32", "env.heldout_prompts=8", "warm_start.steps=8",
    "env.kwargs.tasks.five.heldout_prompts=6", "env.kwargs.tasks.wider.heldout_prompts=4",
    "warm_start.batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two seeds of the sweep `tasks`, much smaller."""
    out = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert study.main(["sweep=tasks", "fit=point", f"out={out}", *SMALL]) == 0
    return out


def test_an_evaluation_has_a_row_for_every_set(mixed):
    for path in runs(mixed):
        rows, clock = read_rows(path / "evals.jsonl"), read_rows(path / "clock.jsonl")
        assert [(row["step"], row["eval_set"]) for row in rows] == [
            (step, name) for step in range(6) for name in SETS
        ]
        assert [row["step"] for row in clock] == list(range(6))
        for at_step in np.array_split(np.array(rows), 6):
            assert len({row["compute"] for row in at_step}) == 1
            heldout, *parts = (row["passes_per_prompt"] for row in at_step)
            assert [len(part) for part in (heldout, *parts)] == [8, 4, 4, 6, 4]
        manifest = json.loads((path / "manifest.json").read_text())
        ceilings = manifest["ceilings"]
        assert list(ceilings) == SETS and ceilings["heldout"] == manifest["ceiling"]
        assert ceilings["heldout"] == (ceilings["any"] + ceilings["long"]) / 2


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_fitted_by_its_name(mixed, tmp_path, name, capsys):
    command = [f"data={mixed}", f"eval_set={name}", "method=point", f"out={tmp_path}"]
    assert fit.main(command) == 0
    fits = pd.read_csv(tmp_path / "fits.csv")
    assert fits["run"].tolist() == [path.name for path in runs(mixed)]
    (path, _) = runs(mixed)
    rows = [row for row in read_rows(path / "evals.jsonl") if row["eval_set"] == name]
    frame = Evals.read(path, eval_set=name).frame
    assert frame["value"].tolist() == [row["mean"] for row in rows]
    assert frame["trials"].tolist() == [row["trials"] for row in rows]
    ceilings = json.loads((path / "manifest.json").read_text())["ceilings"]
    assert fits["truth"].tolist() == [ceilings[name]] * 2


def test_an_unknown_set_is_one_line_and_exit_code_2(mixed, capsys):
    assert fit.main([f"data={mixed}", "eval_set=chess"]) == 2
    error = f"error: eval_set=chess: not in {mixed}; use one of any, five, heldout, long, wider\n"
    assert capsys.readouterr().err == error


def test_the_status_tells_the_held_out_pass_rate(mixed):
    table = study.status(mixed).set_index("run")
    for path in runs(mixed):
        rows = [r for r in read_rows(path / "evals.jsonl") if r["eval_set"] == "heldout"]
        assert table.loc[path.name, "pass_rate"] == rows[-1]["mean"]


@pytest.mark.slow  # a posterior for each of five sets
def test_the_figure_has_a_panel_for_every_set_and_one_of_transfer(mixed, tmp_path, capsys):
    tasks.main([f"study={mixed}", f"out={tmp_path}", "method=laplace"])
    assert (tmp_path / "tasks.png").stat().st_size > 20_000
    evals = pd.read_csv(tmp_path / "evals.csv")
    assert evals.groupby("eval_set", sort=False).size().to_dict() == dict.fromkeys(SETS, 12)
    table = pd.read_csv(tmp_path / "tasks.csv")
    trained = table.drop_duplicates("eval_set").set_index("eval_set")["trained"].to_dict()
    assert trained == dict.fromkeys(SETS[:3], True) | dict.fromkeys(SETS[3:], False)


def test_tasks_of_either_kind_of_mixture_are_told_apart_by_weight(tmp_path):
    rows = [{"dataset": "gcd"}, {"dataset": "gcd", "weight": 0}, {"dataset": "lcm", "weight": 2}]
    env = {"name": "reasoning_gym", "kwargs": {"mixture": rows}}
    (tmp_path / "manifest.json").write_text(json.dumps({"config": {"env": env}}))
    assert tasks.trained_tasks(tmp_path) == {"gcd", "lcm"}


def test_a_study_of_one_set_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "evals.jsonl").write_text('{"eval_set": "heldout"}\n')
    with pytest.raises(InputError, match="study=.*: its runs evaluate heldout; give the study of"):
        tasks.main([f"study={tmp_path}"])
