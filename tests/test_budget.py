"""A study with a budget: its runs and its files; at the end one live study, killed twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments import budget, study
from experiments.cells import last_update
from rlx.errors import InputError
from rlx.record import RunRecord
from rlx.scaling.stopping import Plan

ROOT = Path(__file__).parents[1]
CELLS = {"a": ["a-s0", "a-s1"], "b": ["b-s0", "b-s1"]}
EASY = (
    "fit=laplace algo=cispo,grpo,deepseek_grpo seed=0,1 steps=24 eval.every_steps=1 mesh=one "
    "model.d_model=16 model.n_layers=1 model.d_ff=24 model.head_dim=8 rollout.prompts_per_step=4 "
    "rollout.group_size=8 rollout.slots=32 optim.microbatches=1 optim.learning_rate=1e-4 "
    "optim.warmup_steps=2 env.train_prompts=64 env.heldout_prompts=32 eval.samples_per_prompt=16 "
    "warm_start.steps=40 warm_start.batch_size=16 warm_start.learning_rate=1e-2 "
    "warm_start.worked_share_end=0.3"
).split() + ["env.kwargs={lo: 3, hi: 4, base: 4}"]


@pytest.mark.parametrize(
    "steps, every, share, wanted",
    [(400, 10, 0.25, 100), (400, 30, 0.25, 120), (100, 10, 0.55, 60), (7, 2, 1.0, 7)],
)
def test_a_share_ends_with_an_evaluation(steps, every, share, wanted):
    assert last_update(steps, every, share) == wanted


def test_cells_of_a_study_differ_in_more_than_the_seed():
    cells = study.seeds_of("recipes", [])
    assert cells["scalerl"] == ["scalerl-s0", "scalerl-s1", "scalerl-s2"] and len(cells) == 5
    assert sorted(sum(cells.values(), [])) == sorted(study.cells("recipes", []))


def test_a_baseline_is_named_by_its_recipe_or_its_axes():
    loo = {"scalerl, ablation=none": [], "scalerl, ablation=keep": [], "grpo": []}
    assert budget.find("", loo) == budget.find("scalerl", loo) == "scalerl, ablation=none"
    assert budget.find("ablation=keep", loo) == "scalerl, ablation=keep"
    assert budget.find("grpo", loo) == "grpo"
    with pytest.raises(InputError, match="baseline=x: names 0 cells; give one of them: scalerl"):
        budget.find("x", loo)
    with pytest.raises(InputError, match="names 2 cells; give one of them: a, m=1 | a, m=2"):
        budget.find("a", {"a, m=1": [], "a, m=2": []})


def write(out, name, step, status="paused", steps=40, pace=10.0):
    record = RunRecord(out / "runs" / name)
    record.update_manifest(status=status, config={"steps": steps, "eval": {"every_steps": 5}})
    for done in range(0, step + 1, 5):
        record.append("evals.jsonl", {"step": done, "compute": pace * done, "mean": 0.5})
        device_s = {"generate": 0.2 * done, "train": 0.1 * done}
        record.append("clock.jsonl", {"step": done, "device_s": device_s})


def test_what_a_cell_costs_is_known_from_its_pace(tmp_path):
    """400 FLOPs and 12 s a run of `a`; one of `b` has stopped early for want of prompts."""
    for name, step, status in [("a-s0", 10, "paused"), ("a-s1", 40, "done"), ("b-s0", 20, "done")]:
        write(tmp_path, name, step, status)
    cost = {unit: budget.Rounds(tmp_path, [], CELLS, "a", unit).cost() for unit in budget.UNITS}
    assert cost["share"] == {"a": 1.0, "b": 1.0}
    assert cost["flops"] == {"a": 800.0, "b": 400.0}
    assert cost["device_s"] == pytest.approx({"a": 24.0, "b": 12.0})


def test_a_round_starts_what_has_not_come_to_its_share(tmp_path, monkeypatch):
    write(tmp_path, "a-s0", 20)
    write(tmp_path, "a-s1", 20, "interrupted")  # killed between its evaluation and its checkpoint
    write(tmp_path, "b-s0", 40, "done")
    started = []

    def sweep(words):
        started.append(json.loads((tmp_path / budget.SHARES).read_text()))
        return 1 if len(started) > 1 else 0

    monkeypatch.setattr(budget, "exit_status_of", sweep)
    rounds = budget.Rounds(tmp_path, ["sweep"], CELLS, "a", "share")
    rounds.launch({"a": 0.5, "b": 0.5})
    assert started == [{"a-s1": 0.5, "b-s1": 0.5}]
    with pytest.raises(budget.SweepFailed):
        rounds.launch({"a": 0.75})
    assert started[1] == {"a-s0": 0.75, "a-s1": 0.75}


def test_a_run_that_was_continued_by_hand_counts_to_its_share(tmp_path):
    write(tmp_path, "a-s0", 40, "done")
    run = budget.Run.at(tmp_path / "runs" / "a-s0")
    assert run.has_come_to(0.25) and run.compute_at(0.3) == 150.0


def test_a_study_goes_on_as_it_was_begun(tmp_path):
    """A torn line is cut off; another plan is refused."""
    record, rounds = RunRecord(tmp_path), budget.Rounds(tmp_path, [], CELLS, "a", "share")
    rounds.launch = lambda shares: dict.fromkeys(CELLS, 1.0)
    rounds.end, rounds.forecast = lambda: 0.5, None
    with pytest.raises(TypeError):  # the first forecast
        budget.decide(record, Plan(CELLS, "a", "fixed", 0.8), "share", rounds)
    lines = (tmp_path / budget.DECISIONS).read_text()
    assert [json.loads(x)["decision"] for x in lines.splitlines()] == ["plan", "start", "start"]
    (tmp_path / budget.DECISIONS).write_text(lines + '{"round": 1, "sha')
    with pytest.raises(TypeError):
        budget.decide(RunRecord(tmp_path), Plan(CELLS, "a", "fixed", 0.8), "share", rounds)
    assert (tmp_path / budget.DECISIONS).read_text() == lines
    with pytest.raises(
        InputError, match="policy=equal: the study in .* was started with fixed; continue"
    ):
        budget.decide(RunRecord(tmp_path), Plan(CELLS, "a", "equal", 0.8), "share", rounds)


@pytest.mark.parametrize(
    "words, line",
    [
        (["budget=half"], "budget=half: not a number; give one, such as 0.5"),
        (["budget=2"], "budget=2.0: not in (0, 1]; give a share of the study, or unit=flops"),
        (["budget=.5", "unit=hours"], "unit=hours: unknown; use share|flops|device_s"),
        (["budget=.5", "policy=best"], "policy=best: unknown; use equal|halving|fixed"),
        (["policy=equal"], "policy=equal: there is no budget; give budget=0.5, or leave it out"),
    ],
)
def test_a_bad_budget_is_one_line(tmp_path, capsys, words, line):
    assert study.main(["sweep=recipes", f"out={tmp_path}", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not list(tmp_path.rglob("manifest.json"))


# ------------------------------------------------------------------ live


def conducted(out, warm, kill=()):
    """decisions.jsonl of a study with a budget, its processes killed after that many lines."""
    words = ["sweep=recipes", f"out={out}", "budget=0.6", "baseline=cispo", *EASY]
    for lines in [*kill, None]:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.study", *words, f"warm_start_dir={warm}"],
            env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}, cwd=out.parent,
            stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        file = out / budget.DECISIONS
        while lines and not (file.exists() and len(file.read_text().splitlines()) >= lines):
            assert process.poll() is None
            time.sleep(0.2)
        if lines:
            time.sleep(3)  # into the round
            os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
        assert process.returncode == (-signal.SIGKILL if lines else 0)
    return file.read_text(), said


@pytest.mark.slow
def test_a_live_study_killed_twice_decides_the_same(tmp_path):
    whole, said = conducted(tmp_path / "whole", tmp_path / "warm")
    killed, _ = conducted(tmp_path / "killed", tmp_path / "warm", kill=(2, 3))
    assert killed == whole and "reason" in said
    rows = list(map(json.loads, whole.splitlines()))
    last = {row["cell"]: row for row in rows if row["decision"] in ("stop", "go on")}
    assert len(last) == 2
    for out in ("whole", "killed"):
        assert {path.name for path in (tmp_path / out / "runs").iterdir() if path.is_dir()} == {
            run for runs in rows[0]["cells"].values() for run in runs
        }
        assert (tmp_path / out / budget.VERDICTS).exists()
