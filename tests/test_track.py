"""Rows that reach a dashboard are those of the files."""

from dataclasses import replace

import pytest

import rlx.scaling as sc
from rlx.errors import InputError
from rlx.record import read_rows
from rlx.track import numbers, tracker
from rlx.train import rl


def test_numbers_of_a_row():
    row = {
        "step": 3,
        "a": 1,
        "b/c": 0.5,
        "text": "bcbc",
        "list": [1],
        "deep": {"x": 2, "y": {"z": 3}},
    }
    assert numbers(row) == {"a": 1, "b/c": 0.5, "deep/x": 2, "deep/y/z": 3}


def test_tensorboard_has_the_rows_of_the_run(easy, tmp_path):
    """Read back by the module that reads anybody's TensorBoard logs."""
    config = replace(easy, out=str(tmp_path / "run"), tracker="tensorboard")
    rl.train(config, progress=False)
    evals = read_rows(tmp_path / "run" / "evals.jsonl")
    got = sc.Evals.read(tmp_path, value="eval/mean", compute="spent/compute")
    assert got.frame["value"].tolist() == pytest.approx([row["mean"] for row in evals])
    want = [row["compute"] for row in evals]
    assert got.frame["compute"].tolist() == pytest.approx(want, rel=1e-6)  # kept in float32


def test_wandb_offline(easy, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = replace(easy, out=str(tmp_path / "run"), tracker="wandb", steps=2)
    rl.train(config, progress=False)
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_a_missing_package_is_one_line(easy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match="tracker=wandb: .*; pip install 'rlx\\[trackers\\]'"):
        tracker(replace(easy, tracker="wandb"))
