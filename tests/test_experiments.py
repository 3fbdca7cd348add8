"""A study from one command: its runs, the table, the fits and the picture; and going on."""

import json
from pathlib import Path

import pandas as pd
import pytest

from experiments import study
from rlx.record import read_rows

ROOT = Path(__file__).parents[1]
SMALL = [
    "hydra.sweeper.params.algo=scalerl",  # instead of two recipes
    "hydra.sweeper.params.seed=3",
    "steps=8", "eval.every_steps=1", "mesh=one", "optim.microbatches=1",
    "model.d_model=16", "model.n_layers=1", "model.d_ff=24", "model.head_dim=8",
    "rollout.prompts_per_step=2", "rollout.group_size=4", "rollout.slots=8",
    "env.train_prompts=16", "env.heldout_prompts=8", "warm_start.steps=8",
    "warm_start.batch_size=8",
]  # fmt: skip
FITS = ["run", "recipe", "seed", "A", "B", "C_mid", "R0", "truth", "rmse_heldout"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert study.main(["sweep=default", "fit=laplace", f"out={out}", *SMALL]) == 0
    return out


def test_every_cell_is_a_finished_run(finished):
    runs = sorted((finished / "runs").iterdir())
    assert [path.name for path in runs] == ["scalerl-T11-s3", "scalerl-T9-s3"]
    for path, T in zip(runs, (11, 9), strict=True):
        manifest = json.loads((path / "manifest.json").read_text())
        assert (manifest["status"], manifest["study"]) == ("done", "default")
        assert (manifest["recipe"], manifest["seed"]) == ("scalerl", 3)
        assert manifest["axes"] == {"max_new_tokens": T}
        assert [row["step"] for row in read_rows(path / "evals.jsonl")] == list(range(9))


def test_the_runs_share_one_warm_start(finished):
    starts = [read_rows(path / "evals.jsonl")[0] for path in (finished / "runs").iterdir()]
    assert starts[0]["trials"] == starts[1]["trials"] == 32
    assert len(list((finished / "warm_start").iterdir())) == 1


def test_the_fits_are_one_row_per_run(finished):
    fits = pd.read_csv(finished / "fits.csv")
    assert list(fits.columns)[: len(FITS)] == FITS
    assert sorted(fits["run"]) == ["scalerl-T11-s3", "scalerl-T9-s3"]
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
    counted = ["epochs", "retired", "dropped", "interrupted", "truncated", "void"]
    assert header.split() == first + counted
    assert all(row.split()[-1] == "clip" for row in rows)  # on-policy in 8 updates: it never bound
    assert [row.split()[:3] for row in rows] == [
        ["scalerl-T11-s3", "done", "8/8"],
        ["scalerl-T9-s3", "done", "8/8"],
    ]
    assert sorted(finished.rglob("*")) == before


def test_a_status_without_runs_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert study.main([f"out={tmp_path}", "status=true"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: out={tmp_path}: no runs here; ") and error.count("\n") == 1


def test_the_same_command_trains_nothing_again(finished, monkeypatch):
    records = [*finished.glob("runs/*/*.jsonl"), *finished.glob("warm_start/*/manifest.json")]
    before = {file: file.stat().st_mtime_ns for file in records}
    assert len(before) == 7
    (finished / "report.png").unlink()
    monkeypatch.chdir(ROOT)
    assert study.main(["sweep=default", "fit=point", f"out={finished}", *SMALL]) == 0
    assert {file: file.stat().st_mtime_ns for file in records} == before
    assert (finished / "report.png").exists()


def test_a_word_without_a_value_is_one_line_and_exit_code_2(capsys):
    assert study.main(["status"]) == 2
    assert capsys.readouterr().err == "error: status: no value; write KEY=VALUE\n"


def test_bad_input_ends_the_study_with_exit_code_2(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    assert study.main(["sweep=default", f"out={tmp_path / 'x'}", "algo.clip_low=2"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors == [
        "error: algo.clip_low=2.0: outside [0, 1); the lower bound on the ratio is 1 - clip_low"
    ]
