"""Run directories of rlx: runs that are pooled as seeds differ in the seed alone."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rlx.config import AlgoConfig, Config
from rlx.scaling import Evals
from rlx.scaling.runs import axes_of
from rlx.scaling.source import Notes

PLAIN = Config()
OTHER = replace(PLAIN, algo=AlgoConfig(loss="gspo", clip_high=0.3))


def write_run(directory, config=PLAIN, evaluations=5, drop=(), **manifest):
    directory.mkdir(parents=True)
    held = asdict(config)
    for section, name in drop:
        del held[section][name]
    manifest = {"axes": {}, "ceiling": None, "recipe": "cispo", "seed": config.seed} | manifest
    manifest |= {"run_id": directory.name, "status": "done", "config": held}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {"step": i, "eval_set": "heldout", "trials": 800, "passes": 20 * i + config.seed,
         "mean": (20 * i + config.seed) / 800, "compute": 1e9 * i}
        for i in range(evaluations)
    ]  # fmt: skip
    (directory / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(path, capsys):
    """(axes, label of the levels of each run, what was said of axes)."""
    evals = Evals.read(path)
    said = [line for line in capsys.readouterr().out.splitlines() if " axis " in line]
    return evals.axes, evals.frame.groupby("run")["axes"].first().to_dict(), said


def seeds(config):
    return config, replace(config, seed=1, out="elsewhere", study="x")


def test_runs_that_differ_in_the_seed_are_pooled(tmp_path, capsys):
    for i, config in enumerate(seeds(PLAIN)):
        write_run(tmp_path / f"runs/r{i}", config)
    assert read(tmp_path, capsys) == ((), {"r0": "", "r1": ""}, [])


def test_what_else_differs_is_an_axis_and_is_said(tmp_path, capsys):
    """The command's `algo.loss=gspo algo.clip_high=0.3`, recorded by older code without axes."""
    write_run(tmp_path / "runs/a", PLAIN)
    write_run(tmp_path / "runs/b", replace(OTHER, seed=1))
    axes, levels, said = read(tmp_path, capsys)
    assert axes == ("algo.loss",)
    assert levels == {"a": "algo.loss=cispo", "b": "algo.loss=gspo"}
    assert said == [
        f"{tmp_path}: runs of cispo differ in algo.loss, algo.clip_high besides the seed: "
        "axis algo.loss"
    ]


def test_an_option_that_a_run_does_not_name_has_the_level_of_its_configuration(tmp_path, capsys):
    write_run(tmp_path / "runs/a", PLAIN)
    write_run(tmp_path / "runs/b", replace(PLAIN, seed=1), axes={"algo.loss": "cispo"})
    write_run(tmp_path / "runs/c", OTHER, axes={"algo.loss": "gspo", "algo.clip_high": 0.3})
    axes, levels, said = read(tmp_path, capsys)
    assert axes == ("algo.loss", "algo.clip_high") and said == []
    plain = "algo.loss=cispo, algo.clip_high=0.28"
    assert levels == {"a": plain, "b": plain, "c": "algo.loss=gspo, algo.clip_high=0.3"}


def test_a_run_without_the_word_is_that_of_a_run_with_it(tmp_path, capsys):
    """`+ablation=none` computes what nothing said computes."""
    write_run(tmp_path / "runs/a", PLAIN)
    write_run(tmp_path / "runs/b", replace(PLAIN, seed=1), axes={"ablation": "none"})
    write_run(tmp_path / "runs/c", OTHER, axes={"ablation": "gspo"})
    axes, levels, _ = read(tmp_path, capsys)
    assert axes == ("ablation",)
    assert levels == {"a": "ablation=none", "b": "ablation=none", "c": "ablation=gspo"}


@pytest.mark.parametrize("level, wanted", [("gspo", "default"), ("default", "(default)")])
def test_a_missing_level_is_no_real_one(tmp_path, capsys, level, wanted):
    write_run(tmp_path / "runs/a", PLAIN)
    write_run(tmp_path / "runs/b", OTHER, axes={"ablation": level})
    _, levels, said = read(tmp_path, capsys)
    assert levels == {"a": f"ablation={wanted}", "b": f"ablation={level}"}
    assert said == [f"{tmp_path}: axis ablation: 1 runs have no level: level {wanted}"]


def test_a_run_from_before_an_option_is_at_its_default(tmp_path, capsys):
    drop = [("algo", "tbrm_beta"), ("model", "remat")]
    write_run(tmp_path / "runs/old", PLAIN, drop=drop)
    write_run(tmp_path / "runs/new", replace(PLAIN, seed=1))
    assert read(tmp_path, capsys) == ((), {"new": "", "old": ""}, [])


def test_a_thousand_runs_are_read_in_seconds(tmp_path, capsys):
    for i in range(1000):
        config = replace(PLAIN, seed=i % 5, steps=1 + i // 5)
        write_run(tmp_path / f"runs/r{i:03}", config, 40, axes={"steps": config.steps})
    begin = time.process_time()
    evals = Evals.read(tmp_path)
    taken = time.process_time() - begin
    assert evals.axes == ("steps",) and len(evals.runs) == 1000
    assert taken < 30, taken  # 5 s on a quiet machine is the aim


def test_a_list_and_a_text_that_looks_like_it_are_two_levels():
    runs = [{"recipe": "a", "config": {"env": {"kwargs": {"x": x}}}} for x in ([1, 2], "[1, 2]")]
    axes, levels = axes_of(runs, Path("study"), Notes())
    assert axes == ("env.kwargs.x",) and len({level["env.kwargs.x"] for level in levels}) == 2
    for run in runs:  # which differs from itself
        run["config"]["env"]["kwargs"]["y"] = float("nan")
    assert axes_of(runs, Path("study"), Notes())[0] == axes
