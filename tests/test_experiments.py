"""A study from one command: its runs, the table, the fits and the picture; and going on."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import cells, study
from rlx.record import RunRecord, read_rows, write_json

ROOT = Path(__file__).parents[1]
SMALL = [
    "+ablation=none",  # instead of two losses
    "hydra.sweeper.params.seed=3",
    "steps=8", "eval.every_steps=1", "mesh=one", "optim.microbatches=1",
    "model.d_model=16", "model.n_layers=1", "model.d_ff=24", "model.head_dim=8",
    "rollout.prompts_per_step=2", "rollout.group_size=4", "rollout.slots=8",
    "env.train_prompts=16", "env.heldout_prompts=8", "warm_start.steps=8",
    "warm_start.batch_size=8",
]  # fmt: skip
FITS = ["run", "recipe", "seed", "A", "B", "C_mid", "R0", "truth", "rmse_heldout"]


def names(study):
    """The run directory of each answer length."""
    files = (study / "runs").glob("*/manifest.json")
    axes = {file.parent: json.loads(file.read_text())["axes"] for file in files}
    return {levels["rollout.max_new_tokens"]: path for path, levels in axes.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert study.main(["sweep=default", "fit=laplace", f"out={out}", *SMALL]) == 0
    return out


def test_every_cell_is_a_finished_run(finished):
    runs = names(finished)
    assert sorted(runs) == [9, 11]
    for T, path in runs.items():
        manifest = json.loads((path / "manifest.json").read_text())
        assert (manifest["status"], manifest["study"]) == ("done", "default")
        assert (manifest["recipe"], manifest["seed"]) == ("cispo", 3)
        assert {"ablation": "none", "rollout.max_new_tokens": T, "steps": 8}.items() <= (
            manifest["axes"].items()
        )
        assert [row["step"] for row in read_rows(path / "evals.jsonl")] == list(range(9))


def test_the_runs_share_one_warm_start(finished):
    starts = [read_rows(path / "evals.jsonl")[0] for path in names(finished).values()]
    assert starts[0]["trials"] == starts[1]["trials"] == 32
    assert len(list((finished / "warm_start").iterdir())) == 1


def test_the_fits_are_one_row_per_run(finished):
    fits = pd.read_csv(finished / "fits.csv")
    assert list(fits.columns)[: len(FITS)] == FITS
    assert sorted(fits["run"]) == sorted(path.name for path in names(finished).values())
    ceilings = fits.set_index("run")["truth"]
    for name, ceiling in ceilings.items():
        manifest = json.loads((finished / "runs" / str(name) / "manifest.json").read_text())
        assert ceiling == manifest["ceiling"]


def test_the_report_is_a_picture(finished):
    data = (finished / "report.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 10_000


def test_the_status_is_a_table(finished, capsys):
    before = sorted(finished.rglob("*"))
    assert study.main([f"out={finished}", "status=true"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    first = ["run", "status", "step", "pass_rate", "ceiling", "compute"]
    counted = ["eta_min", "epochs", "retired", "dropped", "interrupted", "truncated", "note"]
    assert header.split() == first + counted
    table = [row.split() for row in rows]
    assert [row[0] for row in table] == sorted(path.name for path in names(finished).values())
    assert all(row[1:3] == ["done", "8/8"] for row in table)
    assert all(row[-1] == "clip" for row in table)  # in 8 updates the cap never bound
    assert sorted(finished.rglob("*")) == before


def test_a_cell_that_has_not_begun_is_waiting(finished, tmp_path, capsys):
    plan = json.loads((finished / "runs" / cells.PLAN).read_text())
    assert sorted(plan) == sorted(path.name for path in names(finished).values())
    write_json(RunRecord(tmp_path / "runs").path / cells.PLAN, plan)
    first = names(finished)[9]
    shutil.copytree(first, tmp_path / "runs" / first.name)
    assert study.main([f"out={tmp_path}", "status=true"]) == 0
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [[first.name, "done"], [names(finished)[11].name, "waiting"]]


def test_the_status_of_a_thousand_runs_takes_seconds(tmp_path):
    """Each with 400 rows of 30 numbers; 43 s before, and 3 s on a quiet machine is the aim."""
    numbers = {f"some/number_{i}": 0.123456789 for i in range(27)}
    shares = dict.fromkeys(("zero_variance", "interrupted", "truncated"), 0.25)
    row = numbers | {f"rollout/{name}_share": x for name, x in shares.items()}
    metrics = "".join(json.dumps({"step": i, **row, "prompts/epoch": i}) + "\n" for i in range(400))
    evals = json.dumps({"step": 400, "mean": 0.5, "compute": 1.0}) + "\n"
    manifest = json.dumps({"status": "done", "config": {"steps": 400}, "ceiling": None})
    (tmp_path / "once").write_text(metrics)
    for i in range(1000):
        run = tmp_path / "runs" / f"r{i:03}"
        run.mkdir(parents=True)
        (run / "manifest.json").write_text(manifest)
        (run / "evals.jsonl").write_text(evals)
        (run / "metrics.jsonl").hardlink_to(tmp_path / "once")
    begin = time.process_time()
    table = study.status(tmp_path)
    assert time.process_time() - begin < 10
    assert len(table) == 1000 and (table["step"] == "400/400").all()
    assert (table["dropped"] == 0.25).all() and (table["epochs"] == 399).all()


def test_the_status_tells_what_became_of_each_cell(finished, tmp_path):
    """One being written, one killed, one that failed, one not started."""
    for name in ("running", "killed", "failed"):
        record = RunRecord(tmp_path / "runs" / name)
        record.update_manifest(
            status="running" if name != "failed" else "failed",
            error="ValueError: too large\nand more" if name == "failed" else "",
            config={"steps": 100}, ceiling=None,
        )  # fmt: skip
        for step in (0, 10):
            record.append("evals.jsonl", {"step": step, "mean": 0.25, "compute": 1.0})
            record.append("clock.jsonl", {"step": step, "wall_s": 6.0 * step})
        for step in range(20):
            record.append("metrics.jsonl", {"step": step})
    lock = RunRecord(tmp_path / "runs" / "running").lock()
    table = study.status(tmp_path, ["running", "later"]).set_index("run")
    lock.close()
    assert table["status"].to_dict() == {
        "failed": "failed", "killed": "stopped", "running": "running", "later": "waiting"
    }  # fmt: skip
    assert table.loc["running", "eta_min"] == 8  # 80 updates at 6 s
    assert table.loc["failed", "note"] == "ValueError: too large"
    assert np.isnan(table.loc["killed", "eta_min"])


def test_the_status_is_of_the_held_out_set(tmp_path):
    """Whatever else the runs evaluate; rows that do not name their set are of this one."""
    manifest = {"status": "done", "config": {"steps": 10}, "ceiling": 0.75}
    for name, sets in {"several": ("heldout", "gcd"), "old": ("",)}.items():
        record = RunRecord(tmp_path / "runs" / name)
        record.update_manifest(**manifest)
        for step in (0, 10):
            for eval_set in sets:
                mean = 0.9 if eval_set == "gcd" else 0.02 * step
                row = {"step": step, "mean": mean, "compute": 1e9 * step}
                record.append("evals.jsonl", {"eval_set": eval_set, **row} if eval_set else row)
    table = study.status(tmp_path)
    assert table["pass_rate"].tolist() == [0.2, 0.2] and table["compute"].tolist() == [1e10, 1e10]


def test_a_status_without_runs_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert study.main([f"out={tmp_path}", "status=true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: out={tmp_path}: no runs here; ") and error.count("\n") == 1


def test_the_same_command_trains_nothing_again(finished, monkeypatch):
    records = [*finished.glob("runs/*/*.jsonl"), *finished.glob("warm_start/*/manifest.json")]
    before = {file: file.stat().st_mtime_ns for file in records}
    assert len(before) == 7 and all(before.values())
    (finished / "report.png").unlink()
    monkeypatch.chdir(ROOT)
    assert study.main(["sweep=default", "fit=point", f"out={finished}", *SMALL]) == 0
    assert {file: file.stat().st_mtime_ns for file in records} == before
    assert (finished / "report.png").exists()


def test_a_word_without_a_value_is_one_line_and_exit_code_2(capsys):
    assert study.main(["status"]) == 2
    assert capsys.readouterr().err == "error: status=: no value; write KEY=VALUE\n"


def test_bad_input_ends_the_study_with_exit_code_2(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    assert study.main(["sweep=default", f"out={tmp_path / 'x'}", "algo.clip_low=2"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == ["error: algo.clip_low=2.0: outside [0, 1); use a value in [0, 1)"]
