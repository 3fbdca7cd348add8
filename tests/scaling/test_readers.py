"""Every source, and what cannot be read from it."""

import json
import re
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rlx.errors import InputError
from rlx.scaling.data import COLUMNS, Evals

SHARED = Path(__file__).parents[3] / "shared" / "data"


def message(path, **options):
    """The one line that reading `path` ends with."""
    with pytest.raises(InputError) as error:
        Evals.read(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- tables


LONG = "model,algo,seed,gpu_hours,pass_rate\n" + "".join(
    f"{m},{m},{s},{c},{0.1 + 0.1 * i}\n"
    for m in ("x", "y")
    for s in (0, 1)
    for i, c in enumerate((0, 1, 2, 4))
)


def test_long_form_is_inferred_and_says_so(tmp_path, capsys):
    file = tmp_path / "log.csv"
    file.write_text(LONG)
    evals = Evals.read(file, axes=["model"])
    assert capsys.readouterr().out.splitlines() == list(evals.notes)
    assert evals.notes == (
        "log.csv: inferred recipe=algo seed=seed compute=gpu_hours value=pass_rate",
        "log.csv: no run column: runs are algo+model+seed",
        "log.csv: runs x-x-0, x-x-1, y-y-0, y-y-1 have the same evaluations; all are kept",
        "log.csv: starts inferred from the evaluations at C = 0: 4 runs, 1 starts",
    )
    frame = evals.frame
    assert evals.runs == ["x-x-0", "x-x-1", "y-y-0", "y-y-1"]
    assert frame["axes"].unique().tolist() == ["model=x", "model=y"]
    assert frame["model"].tolist() == ["x"] * 8 + ["y"] * 8
    assert frame["recipe"].unique().tolist() == ["x", "y"]
    assert frame["compute"].tolist() == [0, 1, 2, 4] * 4
    assert (evals.axes, evals.compute_label, evals.title) == (("model",), "gpu_hours", "log.csv")


def test_long_form_by_name_from_jsonl(tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    rows = [{"id": "a", "c": c, "ok": 10 * (c + 1), "of": 100, "eps": 5.0} for c in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)) + '\n{"id": ')
    evals = Evals.read(
        file, run="id", compute="c", passes="ok", trials="of", r0="eps", scale="percent"
    )
    assert evals.frame["value"].tolist() == [0.1, 0.2, 0.3, 0.4]  # counts have no unit
    assert evals.frame["trials"].tolist() == [100.0] * 4
    assert evals.frame["passes"].tolist() == [10, 20, 30, 40]
    assert evals.frame["eps"].tolist() == [0.05] * 4
    assert (evals.frame["recipe"] == "a").all() and evals.frame["seed"].isna().all()
    assert capsys.readouterr().out.startswith(f"{file}: incomplete last line dropped\n")


def test_parquet_holds_the_passes_of_each_prompt(tmp_path):
    file = tmp_path / "log.parquet"
    passes = [[0, 4, 2], [1, 4, 2], [2, 4, 2], [3, 4, 2]]
    table = {"run": "a", "C": [0.0, 1.0, 2.0, 4.0], "seed": 3, "passes_per_prompt": passes}
    pd.DataFrame(table).to_parquet(file)
    evals = Evals.read(file, samples_per_prompt=4)
    assert evals.frame["value"].tolist() == pytest.approx([6 / 12, 7 / 12, 8 / 12, 9 / 12])
    assert evals.frame["trials"].tolist() == [12] * 4
    # sum p (1 - p) / (3^2 * 3), p = 0, 1, 1/2
    assert evals.frame["stderr"].iloc[0] == pytest.approx(np.sqrt(0.25 / 27))
    assert evals.frame["seed"].tolist() == [3] * 4


def test_a_training_reward_is_not_taken_where_there_is_a_held_out_score(tmp_path):
    file = tmp_path / "log.jsonl"
    for scores, want in ((("pass1",), "eval_math_pass1"), (("pass4", "pass1"), "")):
        held_out = {f"eval_math_{score}": 0.2 + i / 10 for i, score in enumerate(scores)}
        rows = [{"global_step": 10 * i, **held_out, "reward": 0.1} for i in range(5)]
        file.write_text("\n".join(map(json.dumps, rows)))
        if want:
            assert (Evals.read(file).frame["value"] == 0.2).all()
        else:
            with pytest.raises(InputError, match="eval_math_pass4, eval_math_pass1"):
                Evals.read(file)


def test_named_counts_win_over_a_column_that_looks_like_values():
    table = pd.DataFrame({"C": range(4), "score": 0.9, "ok": 1, "of": 4})
    assert Evals.from_frame(table, passes="ok", trials="of").frame["value"].tolist() == [0.25] * 4


def test_a_file_that_evals_wrote_is_read_back_the_same(tmp_path):
    file = tmp_path / "log.csv"
    file.write_text(LONG)
    evals = Evals.read(file, axes=["model"])
    evals.frame.to_parquet(tmp_path / "again.parquet")
    evals.frame.to_csv(tmp_path / "again.csv", index=False)
    for name in ("again.parquet", "again.csv"):
        again = Evals.read(tmp_path / name, axes=["model"], start="start")
        assert again.sha256() == evals.sha256()


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/events.out.tfevents.1.host").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert re.fullmatch(
        r"data=.*t.parquet: Parquet files need pyarrow; pip install 'rlx\[logs\]'",
        message(tmp_path / "t.parquet"),
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert re.fullmatch(
        r"data=.*logs: TensorBoard logs need tensorboard; pip install 'rlx\[logs\]'",
        message(tmp_path / "logs"),
    )


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("t.csv", "", r"data=.*t.csv: is empty; give a table with a header"),
        ("t.parquet", "PAR", r"data=.*t.parquet: unreadable \(.*\); give a table"),
        ("t.jsonl", "x\n{}\n", "data=.*t.jsonl: line 1 is not JSON; restore or remove that line"),
        ("t.txt", "x", "data=.*t.txt: unknown kind of file; use .csv, .jsonl or .parquet"),
        ("t.csv", "run,value\na,1\n", "compute=: t.csv has no such column; use one of run, value"),
        ("t.csv", "run,C\na,1\n", "value=: t.csv has no such column; use one of run, C"),
        ("t.csv", "C,passes\n1,1\n", "value=: t.csv has no such column; use one of C, passes"),
        (
            "t.csv",
            "run,train_flops,eval_flops,value\na,1,1,1\n",
            "compute=: t.csv has columns train_flops, eval_flops; name one with compute=",
        ),
        ("t.json", "{", r"data=.*t.json: not JSON \(.*\); restore or remove it"),
        ("t.json", "[]", "data=.*t.json: no log_history in it; give a trainer_state.json"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, want):
    (tmp_path / name).write_text(text)
    assert re.fullmatch(want, message(tmp_path / name))


def test_places_that_hold_nothing(tmp_path):
    assert re.fullmatch(
        "data=.*: holds no manifest.json, runs/.*/manifest.json, trainer_state.json or event "
        "files; give a study, a run or a table",
        message(tmp_path),
    )
    assert "no such file or directory; give a study, run or file" in message(tmp_path / "x")


# ---------------------------------------------------------------- W&B


def wandb_export(path, metrics=("val/acc",)):
    """Two runs at alternating times, with the columns that W&B's chart export writes."""
    time = np.arange(12.0)
    columns = {"Relative Time (Process)": time}
    for i, run in enumerate(("gsm8k-lr1 - old-b8", "gsm8k-lr2-b8")):
        mine = time % 2 == i
        for metric in (*metrics, "_step"):
            level = 5 * time if metric == "_step" else 0.4 + 0.01 * time
            for suffix in ("", "__MIN", "__MAX"):
                columns[f"{run} - {metric}{suffix}"] = np.where(mine, level, np.nan)
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def test_a_wandb_export(tmp_path, capsys):
    evals = Evals.read(wandb_export(tmp_path / "w.csv"))
    assert capsys.readouterr().out == (
        "w.csv: a W&B export of 2 runs, compute=Relative Time (Process), value=val/acc; "
        "empty cells dropped\n"
        "w.csv: starts inferred from the evaluations at C = 0: 2 runs, 2 starts\n"
    )
    frame = evals.frame
    assert frame["run"].value_counts().to_dict() == {"gsm8k-lr1 - old-b8": 6, "gsm8k-lr2-b8": 6}
    second = frame[frame["run"] == "gsm8k-lr2-b8"]
    assert second["compute"].tolist() == [1, 3, 5, 7, 9, 11]
    assert second["value"].tolist() == pytest.approx([0.41, 0.43, 0.45, 0.47, 0.49, 0.51])
    assert frame[["truth", "trials", "stderr"]].isna().all(axis=None)
    assert evals.compute_label == "Relative Time (Process)"


def test_a_wandb_export_by_step_and_metric(tmp_path):
    file = wandb_export(tmp_path / "w.csv", metrics=("val/acc", "val/len"))
    evals = Evals.read(file, value="val/acc", compute="_step", trials=1000, r0=0.25)
    assert evals.frame["compute"].tolist()[:3] == [0, 10, 20]
    assert evals.frame["trials"].unique().tolist() == [1000]
    assert evals.frame["r0"].unique().tolist() == [0.25]
    assert "w.csv: trials=1000 on every row, as given" in evals.notes


def test_bad_cells_of_a_wandb_export_are_found_in_the_file(tmp_path):
    file = wandb_export(tmp_path / "w.csv")
    table = pd.read_csv(file)
    table.loc[4, "gsm8k-lr1 - old-b8 - val/acc"] = -1
    table.to_csv(file, index=False)
    assert "run gsm8k-lr1 - old-b8, row 5: value -1 is outside [0, 1]" in message(file)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, "value=: w.csv has metrics val/acc, val/len, _step; name one of them"),
        ({"value": "acc"}, "value=acc: w.csv has metrics val/acc, val/len, _step; name one .*"),
        (
            {"value": "val/acc", "compute": "t"},
            "compute=t: w.csv has no such column; use one of Relative Time .*",
        ),
        ({"run": "5"}, "run=5: w.csv is a W&B export, one column per run; leave out run="),
        ({"trials": "n"}, "trials=n: w.csv is a W&B export, .*; leave out trials="),
        ({"axes": ["a", "b"]}, "axes=a,b: w.csv is a W&B export, .*; leave out axes="),
    ],
)
def test_wandb_errors(tmp_path, options, want):
    file = wandb_export(tmp_path / "w.csv", metrics=("val/acc", "val/len"))
    assert re.fullmatch(want, message(file, **options))


def test_an_export_as_wandb_writes_it():
    file = SHARED / "deep_grpo" / "grpo_scale_rollout.csv"
    if not file.exists():
        pytest.skip(f"{file.name} is not beside the checkout")
    evals = Evals.read(file, trials="1319")
    assert len(evals.runs) == 5 and evals.compute_label == "Step"
    first = evals.frame.iloc[0]
    assert (first["compute"], first["value"]) == (0, 0.42835481425322214)
    p = (0.42835481425322214 * 1319 + 0.5) / 1320
    assert first["stderr"] == pytest.approx((p * (1 - p) / 1319) ** 0.5, rel=1e-12)
    assert evals.frame["start"].nunique() == 5  # each was measured on its own


# ---------------------------------------------------------------- directories written by rlx


VALUES = [0.125, 0.25, 0.375, 0.5, 0.5]


def write_run(directory, *, values=VALUES, status="done", seed=0, config=None, **manifest):
    """4 samples of 2 prompts an evaluation; the first prompt takes the odd pass."""
    directory.mkdir(parents=True)
    manifest = {"axes": {}, "ceiling": 0.625, "config": config} | manifest
    manifest |= {"run_id": directory.name, "recipe": "grpo", "seed": seed, "status": status}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {
            "step": 10 * i,
            "eval_set": "heldout",
            "trials": 8,
            "passes": round(8 * v),
            "passes_per_prompt": [(round(8 * v) + 1) // 2, round(8 * v) // 2],
            "mean": v,
            "stderr": 0.4,  # read off the passes instead
            "compute": 1e9 * i,
            "tokens_generated": 100 * i,
            "generate_flops": {"prefill": 1.0},
        }
        for i, v in enumerate(values)
    ]
    (directory / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clock = [{"step": 10 * i, "wall_s": 3.0 * i, "modelled_device_s": 2.0 * i} for i in range(1, 9)]
    (directory / "clock.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clock))


def test_a_study(tmp_path, capsys):
    for seed in (0, 1):
        run = tmp_path / f"runs/g-s{seed}"
        write_run(run, values=VALUES[seed:], seed=seed, axes={"max_new_tokens": 9})
    evals = Evals.read(tmp_path)
    assert list(evals.frame.columns) == [*COLUMNS, "max_new_tokens"] and len(evals.frame) == 9
    first = evals.frame[evals.frame["run"] == "g-s1"].iloc[1]
    assert first.drop("stderr").to_dict() == {
        "run": "g-s1",
        "recipe": "grpo",
        "seed": 1,
        "axes": "max_new_tokens=9",
        "compute": 1e9,
        "value": 0.375,
        "passes": 3,
        "trials": 8,
        "truth": 0.625,
        "start": "start of g-s1",
        "max_new_tokens": 9,
    }
    # 2 and 1 of 4 samples pass: (1/2 * 1/2 + 1/4 * 3/4) / (2^2 * 3)
    assert first["stderr"] == pytest.approx(((0.25 + 0.1875) / 12) ** 0.5)
    assert evals.compute_label == "training compute C (FLOPs)"
    assert evals.value_label == "pass rate (held-out, mean@4)"
    assert (evals.axes, evals.title) == (("max_new_tokens",), tmp_path.name)
    assert capsys.readouterr().out == (
        f"{tmp_path}: starts inferred from the evaluations at C = 0: 2 runs, 2 starts\n"
    )


@pytest.mark.parametrize(
    ("compute", "want"),
    [
        ("tokens_generated", [0, 100, 200, 300, 400]),
        ("modelled_device_s", [0, 2, 4, 6, 8]),
        ("wall_s", [0, 3, 6, 9, 12]),
    ],
)
def test_a_run_directory_on_another_axis(tmp_path, compute, want):
    write_run(tmp_path / "r", ceiling=None)
    frame = Evals.read(tmp_path / "r", compute=compute).frame
    assert frame["compute"].tolist() == want
    assert frame["truth"].isna().all() and (frame["axes"] == "").all()


def test_r0_of_a_study_is_a_number_of_its_rows(tmp_path):
    write_run(tmp_path / "r", config=None)
    evals = tmp_path / "r/evals.jsonl"
    evals.write_text(evals.read_text().replace('"mean"', '"eps": 0.05, "mean"'))
    assert Evals.read(tmp_path / "r", r0="eps").frame["eps"].tolist() == [0.05] * 5
    assert message(tmp_path / "r", r0="eta").startswith("r0=eta: not a numeric column of ")


def test_runs_of_one_warm_start_share_r0(tmp_path, tiny):
    """The manifest's own words: model, environment, warm start, limits of generation."""
    limits = replace(tiny.rollout, max_new_tokens=9)
    other = replace(tiny.warm_start, steps=5)
    configs = {
        "a": replace(tiny, seed=0, out="a"),
        "b": replace(tiny, seed=1, out="b", eval=replace(tiny.eval, seed=7)),
        "long": replace(tiny, rollout=limits),
        "warm": replace(tiny, warm_start=other),
    }
    for name, config in configs.items():
        write_run(tmp_path / "runs" / name, config=asdict(config), seed=config.seed)
    write_run(tmp_path / "runs/train-set", config=asdict(tiny))
    rows = tmp_path / "runs/train-set/evals.jsonl"
    rows.write_text(rows.read_text().replace("heldout", "train"))
    evals = Evals.read(tmp_path)
    start = evals.frame.drop_duplicates("run").set_index("run")["start"]
    assert start["a"] == start["b"] and re.fullmatch("start [0-9a-f]{12}", start["a"])
    assert start.nunique() == 4
    assert not any("starts inferred" in note for note in evals.notes)


def write_sets(directory, **values):
    """A run whose evaluations have a row for each set, as in rlx.train.loop."""
    write_run(directory, ceilings={name: 0.5 for name in values if name != "heldout"})
    rows = []
    for name, of_set in values.items():
        write_run(directory / name, values=of_set)
        text = (directory / name / "evals.jsonl").read_text().replace("heldout", name)
        rows.append(text.splitlines(keepends=True))
    together = [row for at_step in zip(*rows, strict=True) for row in at_step]
    (directory / "evals.jsonl").write_text("".join(together))


@pytest.fixture
def two_sets(tmp_path):
    """One run with the held-out set and two tasks, one with the held-out set alone."""
    write_sets(tmp_path / "runs/a", heldout=VALUES, gcd=VALUES[::-1], sums=[0.25] * 5)
    write_run(tmp_path / "runs/b")
    return tmp_path


def test_the_held_out_set_is_read_unless_another_is_named(two_sets):
    evals = Evals.read(two_sets)
    alone = Evals.read(two_sets / "runs/b")
    assert evals.runs == ["a", "b"] and evals.value_label == "pass rate (held-out, mean@4)"
    assert evals.frame.loc[evals.frame["run"] == "a", "value"].tolist() == VALUES
    assert f"{two_sets}: evaluation sets gcd, heldout, sums: using eval_set=heldout" in (
        evals.notes
    )
    columns = ["compute", "value", "stderr", "passes", "trials"]
    a, b = (evals.frame.loc[evals.frame["run"] == run, columns].to_numpy() for run in "ab")
    np.testing.assert_array_equal(a, b)
    assert not any("evaluation sets" in note for note in alone.notes)
    assert alone.sha256() == Evals.read(two_sets / "runs/b", eval_set="heldout").sha256()


def test_a_set_by_its_name(two_sets):
    evals = Evals.read(two_sets, eval_set="gcd")
    assert evals.runs == ["a"] and evals.frame["value"].tolist() == VALUES[::-1]
    assert evals.frame["compute"].tolist() == [1e9 * i for i in range(5)]
    assert evals.frame["truth"].tolist() == [0.5] * 5  # not the held-out set's
    assert evals.value_label == "pass rate (gcd, mean@4)"
    assert f"{two_sets}: run b: no rows of eval_set=gcd: left out" in evals.notes
    seconds = Evals.read(two_sets, eval_set="sums", compute="wall_s").frame
    assert seconds["compute"].tolist() == [0, 3, 6, 9, 12] and (seconds["value"] == 0.25).all()
    assert message(two_sets, eval_set="chess") == (
        f"eval_set=chess: not in {two_sets}; use one of gcd, heldout, sums"
    )


def test_the_ceiling_of_a_manifest_without_ceilings_is_the_held_out_sets(two_sets):
    manifest = two_sets / "runs/a/manifest.json"
    old = json.loads(manifest.read_text())
    del old["ceilings"]
    manifest.write_text(json.dumps(old))
    truth = {
        name: Evals.read(two_sets, eval_set=name).frame["truth"] for name in ("heldout", "gcd")
    }
    assert (truth["heldout"] == 0.625).all() and truth["gcd"].isna().all()


def test_rows_without_the_name_of_a_set_are_of_the_held_out_one(tmp_path):
    write_run(tmp_path / "r")
    evals = tmp_path / "r/evals.jsonl"
    evals.write_text(evals.read_text().replace('"eval_set": "heldout", ', ""))
    assert Evals.read(tmp_path / "r").frame["truth"].tolist() == [0.625] * 5
    assert Evals.read(tmp_path / "r", eval_set="heldout").value_label.startswith("pass rate (held")


def test_an_evaluation_is_named_by_its_place_in_the_file(two_sets):
    evals = two_sets / "runs/a/evals.jsonl"
    lines = evals.read_text().splitlines(keepends=True)
    lines[7] = lines[7].replace('"passes": ', '"passes": 9')  # the third evaluation of gcd
    evals.write_text("".join(lines))
    assert "run a, row 8: " in message(two_sets, eval_set="gcd")
    Evals.read(two_sets)


def test_the_rows_of_a_run_as_a_table(two_sets):
    """evals.jsonl by itself: the sets are told apart there as well."""
    file = two_sets / "runs/a/evals.jsonl"
    options = {"compute": "compute", "value": "mean"}
    assert Evals.read(file, **options).frame["value"].tolist() == VALUES
    gcd = Evals.read(file, eval_set="gcd", **options)
    assert gcd.frame["value"].tolist() == VALUES[::-1] and gcd.value_label == "pass rate (gcd)"
    assert "evals.jsonl: evaluation sets gcd, heldout, sums: using eval_set=gcd" in gcd.notes
    apart = Evals.read(file, axes=["eval_set"], **options)
    assert apart.runs == ["heldout", "gcd", "sums"] and len(apart.frame) == 15
    assert message(file, eval_set="x", **options).endswith("use one of gcd, heldout, sums")


def test_a_set_is_not_asked_of_what_has_none(tmp_path):
    (tmp_path / "log.csv").write_text(LONG)
    assert message(tmp_path / "log.csv", eval_set="x").startswith("eval_set=x: log.csv has no such")
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    wrong = message(tmp_path / "trainer_state.json", eval_set="x")
    assert wrong.endswith("holds logs, not a table; leave out eval_set=")


def test_axes_that_some_runs_lack_are_default(tmp_path):
    write_run(tmp_path / "runs/a", axes={"T": 9})
    write_run(tmp_path / "runs/b", axes={"T": 11, "loss": "cispo"})
    evals = Evals.read(tmp_path)
    assert evals.axes == ("T", "loss")
    assert evals.frame["T"].unique().tolist() == [9, 11]
    assert evals.frame["axes"].unique().tolist() == ["T=9, loss=default", "T=11, loss=cispo"]
    assert f"{tmp_path}: axis loss: 1 runs have no level: level default" in evals.notes


def test_unfinished_runs_and_torn_lines(tmp_path, capsys):
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b", status="running")
    write_run(tmp_path / "runs/c", values=VALUES[:3], status="interrupted")
    write_run(tmp_path / "runs/d", status="running")
    (tmp_path / "runs/d/evals.jsonl").unlink()
    with (tmp_path / "runs/a/evals.jsonl").open("a") as file:
        file.write('{"step": 50, "me')
    assert Evals.read(tmp_path).runs == ["a", "b"]
    out = capsys.readouterr().out
    assert "run b: status running, 5 evaluations so far" in out
    assert "run c: status interrupted, 3 evaluations so far" in out
    assert "run c: 3 points, fewer than 4: left out" in out
    assert "run d: status running, 0 evaluations so far" in out
    assert "runs/a/evals.jsonl: incomplete last line dropped" in out
    assert Evals.read(tmp_path, min_points=3).runs == ["a", "b", "c"]


def test_study_errors(tmp_path):
    write_run(tmp_path / "runs/a")
    evals = tmp_path / "runs/a/evals.jsonl"
    assert re.fullmatch(
        r"compute=flops: not a numeric column of .*runs/a/evals.jsonl; use one of step, trials, "
        r"passes, mean, stderr, compute, tokens_generated",
        message(tmp_path, compute="flops"),
    )
    assert message(tmp_path, recipe="x").endswith("define it; leave out recipe=")
    assert message(tmp_path, value="x").endswith("define it; leave out value=")
    good = evals.read_text()
    evals.write_text(good.replace('{"step": 10,', '{"step": 10', 1))
    assert re.search("line 2 is not JSON; restore or remove that line", message(tmp_path))
    evals.write_text(good.replace("heldout", "train", 1).replace("heldout", "test"))
    mixed = "mixes evaluation sets test, train; name one with eval_set=NAME"
    assert mixed in message(tmp_path)
    evals.write_text(good.replace('"passes": 2', '"passes": 7'))
    assert re.search("run a, row 2: passes_per_prompt are not counts of 4", message(tmp_path))
    evals.write_text("")
    assert re.search("evals.jsonl: no evaluation; run it again", message(tmp_path))
    (tmp_path / "runs/a/clock.jsonl").write_text('{"step": 10}\n')
    evals.write_text(good)
    assert re.search(
        "wall_s: not in .*clock.jsonl; use another", message(tmp_path, compute="wall_s")
    )
    (tmp_path / "runs/a/clock.jsonl").unlink()
    assert "no such file; give a dir" in message(tmp_path, compute="wall_s")
    (tmp_path / "runs/a/manifest.json").write_text("{")
    assert re.search(r"manifest.json: not JSON \(.*\); restore or remove it", message(tmp_path))
    write_run(tmp_path / "s/runs/a", status="running", values=[])
    assert "no run has an evaluation yet; wait" in message(tmp_path / "s")


# ---------------------------------------------------------------- TensorBoard


def write_events(directory, rows, *, as_tensor=False):
    """Real event files: (wall time, step, {tag: value}); simple values as torch writes them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar.metadata import create_summary_metadata
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    writer = EventFileWriter(str(directory))
    for wall, step, tags in rows:
        values = [
            Summary.Value(
                tag=tag, tensor=make_tensor_proto(x), metadata=create_summary_metadata("", "")
            )
            if as_tensor
            else Summary.Value(tag=tag, simple_value=x)
            for tag, x in tags.items()
        ]
        writer.add_event(Event(wall_time=wall, step=step, summary=Summary(value=values)))
    writer.close()


def events(pass_rate, n=5):
    """An evaluation every 10 steps and 30 s, training rewards and tokens at every step."""
    rows = []
    for step in range(10 * n - 9):
        tags = {"train/reward": 0.5, "tokens": 100.0 * step}
        tags |= {"eval/pass_rate": pass_rate + step / 256} if step % 10 == 0 else {}
        rows.append((1e9 + 3.0 * step, step, tags))
    return rows


@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_tensorboard_directory(tmp_path, capsys, as_tensor):
    write_events(tmp_path / "a", events(0.125), as_tensor=as_tensor)
    write_events(tmp_path / "deep/b", events(0.25, n=6), as_tensor=as_tensor)
    evals = Evals.read(tmp_path)
    assert evals.runs == ["a", "deep/b"] and evals.compute_label == "training step"
    a = evals.frame[evals.frame["run"] == "a"]
    assert a["compute"].tolist() == [0, 10, 20, 30, 40]
    assert a["value"].tolist() == [0.125 + i * 10 / 256 for i in range(5)]
    assert len(evals.frame) == 11 and evals.value_label == "eval/pass_rate"
    out = capsys.readouterr().out
    assert f"{tmp_path.name}: 2 runs, compute=step, value=eval/pass_rate\n" in out


def test_tensorboard_compute_at_the_same_step(tmp_path):
    write_events(tmp_path, events(0.125))
    evals = Evals.read(tmp_path, value="eval/pass_rate", compute="tokens")
    assert evals.runs == [tmp_path.name] and evals.compute_label == "tokens"
    assert evals.frame["compute"].tolist() == [0, 1000, 2000, 3000, 4000]


def test_tensorboard_seconds_since_the_file_began(tmp_path):
    now = time.time() + 60
    write_events(tmp_path, [(now + wall - 1e9, *event) for wall, *event in events(0.125)])
    evals = Evals.read(tmp_path, compute="wall_time")
    assert evals.compute_label == "wall-clock time (s)"
    assert evals.frame["compute"].tolist() == pytest.approx([60, 90, 120, 150, 180], abs=5)
    assert evals.frame["compute"].diff().iloc[1:].tolist() == pytest.approx([30] * 4, abs=1e-4)


def test_a_long_tensorboard_log_is_read_whole(tmp_path):
    """The reader's default is to keep a sample of each tag."""
    rows = [(float(i), i, {"eval/acc": i / 2**14}) for i in range(12_000)]
    write_events(tmp_path, rows)
    assert len(Evals.read(tmp_path).frame) == 12_000


def test_tensorboard_runs_without_the_tag_or_its_compute(tmp_path, capsys):
    write_events(tmp_path / "a", events(0.125))
    write_events(tmp_path / "b", [(0.0, 0, {"loss": 1.0})])
    late = [
        (float(i), i, {"eval/pass_rate": 0.5} | ({"tokens": 9.0 * i} if i else {}))
        for i in range(5)
    ]
    write_events(tmp_path / "c", late)
    evals = Evals.read(tmp_path, compute="tokens")
    assert evals.runs == ["a", "c"]
    assert evals.frame[evals.frame["run"] == "c"]["compute"].tolist() == [9, 18, 27, 36]
    out = capsys.readouterr().out
    assert "run b: no eval/pass_rate: left out" in out
    assert "run c: 1 rows with an empty cell dropped" in out


def test_the_only_score_is_the_value_even_of_training(tmp_path):
    write_events(tmp_path, [(0.0, i, {"train/accuracy": 0.5, "loss": 2.0}) for i in range(4)])
    assert Evals.read(tmp_path).value_label == "train/accuracy"


def test_tensorboard_errors(tmp_path):
    write_events(tmp_path / "a", [(0.0, i, {"eval/acc": 0.5, "eval/score": 0.5}) for i in range(5)])
    name = tmp_path.name
    assert message(tmp_path) == (
        f"value=: no unique pass rate in {name}; name one with value=: step, wall_time, "
        "eval/acc, eval/score"
    )
    assert message(tmp_path, value="acc").startswith("value=acc: no unique pass rate in ")
    assert message(tmp_path, value="eval/acc", compute="t") == (
        f"compute=t: not logged in {name}; use one of step, wall_time, eval/acc, eval/score"
    )
    assert message(tmp_path, recipe="x").endswith("holds logs, not a table; leave out recipe=")
    write_events(tmp_path / "b", [(0.0, 5, {"eval/acc": 0.5}), (1.0, 2, {"eval/acc": 0.5})])
    assert re.search(
        "run b, step 2: compute falls from 5 to 2; sort the rows, cut what a resumed run repeats",
        message(tmp_path, value="eval/acc"),
    )
    write_events(tmp_path / "c", [(0.0, 1, {"eval/acc": 0.5}), (0.0, 2, {"late": 0.5})])
    assert message(tmp_path / "c", compute="late") == (
        "compute=late: not logged at the steps of eval/acc; use step, or another key of the same "
        "rows"
    )


# ---------------------------------------------------------------- transformers and TRL


def trainer_state(steps, pass_rate=0.25, **history):
    """What transformers' Trainer writes beside a checkpoint, with TRL's keys of GRPO."""
    log = []
    for step in range(5, steps + 1, 5):
        log.append(
            {"epoch": step / 100, "grad_norm": 1.5, "learning_rate": 1e-06, "loss": 0.02}
            | {"num_tokens": 50.0 * step, "reward": 0.75, "reward_std": 0.25, "step": step}
        )
        if step % 10 == 0:
            log.append(
                {"epoch": step / 100, "eval_loss": 0.01, "eval_num_tokens": 1.0}
                | {"eval_reward": pass_rate + step / 256, "eval_reward_std": 0.25}
                | {"eval_rewards/accuracy_reward/mean": 0.5, "eval_runtime": 9.5, "step": step}
                | history
            )
    log.append({"epoch": steps / 100, "step": steps, "total_flos": 0.0, "train_runtime": 99.0})
    return {
        "best_global_step": None,
        "best_metric": None,
        "best_model_checkpoint": None,
        "epoch": steps / 100,
        "eval_steps": 10,
        "global_step": steps,
        "is_hyper_param_search": False,
        "is_local_process_zero": True,
        "is_world_process_zero": True,
        "log_history": log,
        "logging_steps": 5,
        "max_steps": 1000,
        "num_input_tokens_seen": 0,
        "num_train_epochs": 1,
        "save_steps": 50,
        "stateful_callbacks": {},
        "total_flos": 4e15,
        "train_batch_size": 8,
        "trial_name": None,
        "trial_params": None,
    }


def write_state(directory, *args, **kwargs):
    directory.mkdir(parents=True)
    (directory / "trainer_state.json").write_text(json.dumps(trainer_state(*args, **kwargs)))


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, [10, 20, 30, 40]),
        ({"compute": "num_tokens"}, [500, 1000, 1500, 2000]),  # of the training row of the step
        ({"compute": "total_flos"}, [1e15, 2e15, 3e15, 4e15]),
        ({"compute": "num_input_tokens_seen"}, [7, 7.5, 8, 8.5]),
    ],
)
def test_a_trainer_state(tmp_path, capsys, options, want):
    write_state(tmp_path / "my-run/checkpoint-40", 40)
    file = tmp_path / "my-run/checkpoint-40/trainer_state.json"
    if options.get("compute") == "num_input_tokens_seen":
        state = json.loads(file.read_text())
        for row in state["log_history"]:
            row["num_input_tokens_seen"] = 6.5 + row["step"] / 20
        file.write_text(json.dumps(state))
    evals = Evals.read(file, **options)
    assert evals.runs == ["my-run"] and evals.value_label == "eval_reward"
    assert evals.frame["compute"].tolist() == want
    assert evals.frame["value"].tolist() == [0.25 + s / 256 for s in (10, 20, 30, 40)]
    flos = "trainer_state.json: total_flos is assumed to be proportional to step\n"
    assert (flos in capsys.readouterr().out) == (options.get("compute") == "total_flos")


def test_the_last_checkpoint_of_every_run(tmp_path):
    write_state(tmp_path / "a/checkpoint-100", 100)
    write_state(tmp_path / "a/checkpoint-90", 90)  # the last by name, not by step
    write_state(tmp_path / "b", 50, pass_rate=0.5)
    write_state(tmp_path / "c", 30)
    evals = Evals.read(tmp_path)
    assert evals.frame["run"].value_counts().to_dict() == {"a": 10, "b": 5}
    assert "run c: 3 points, fewer than 4: left out" in " ".join(evals.notes)
    assert Evals.read(tmp_path / "a").runs == ["a"]
    assert len(Evals.read(tmp_path / "a/checkpoint-90").frame) == 9


def test_trainer_errors(tmp_path):
    write_state(tmp_path / "a", 40, eval_accuracy=0.5)
    text = message(tmp_path)
    assert text.startswith(f"value=: no unique pass rate in {tmp_path.name}; name one ")
    assert "eval_reward, " in text and text.endswith("total_flos, train_runtime")
    assert Evals.read(tmp_path, value="eval_accuracy").frame["value"].unique().tolist() == [0.5]
    assert "run a, step 10: value 9.5 is outside [0, 1]" in message(
        tmp_path, value="eval_runtime", scale="fraction"
    )
    write_state(tmp_path / "b", 40)
    state = trainer_state(40) | {"total_flos": 0.0}
    (tmp_path / "b/trainer_state.json").write_text(json.dumps(state))
    assert message(tmp_path / "b", compute="total_flos") == (
        "compute=total_flos: run b: the state has none; use step or a key of the rows"
    )
