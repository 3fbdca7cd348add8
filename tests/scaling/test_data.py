"""Reading curves: every source, every treatment, every error text."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from rlx.scaling.data import COLUMNS, DataError, read, short_names


def write_run(directory, *, values, status="done", seed=0, axes=None, ceiling=0.625, **extra):
    directory.mkdir(parents=True)
    manifest = {"run_id": directory.name, "study": "s", "recipe": "grpo", "seed": seed}
    manifest |= {"axes": axes or {}, "ceiling": ceiling, "status": status}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    rows = [
        {
            "step": 10 * i,
            "eval_set": "heldout",
            "trials": 8,
            "passes": round(8 * v),
            "passes_per_prompt": [round(4 * v), round(4 * v)],
            "mean": v,
            "compute": 1e9 * i,
            "tokens_generated": 100 * i,
            "generate_flops": {"prefill": 1.0},
            **{key: column[i] for key, column in extra.items()},
        }
        for i, v in enumerate(values)
    ]
    (directory / "evals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    clock = [{"step": 10 * i, "wall_s": 3.0 * i, "modelled_device_s": 2.0 * i} for i in range(1, 9)]
    (directory / "clock.jsonl").write_text("".join(json.dumps(row) + "\n" for row in clock))


VALUES = [0.125, 0.25, 0.375, 0.5, 0.5]


def test_a_study(tmp_path, capsys):
    for seed in (0, 1):
        write_run(
            tmp_path / f"runs/g-s{seed}", values=VALUES, seed=seed, axes={"max_new_tokens": 9}
        )
    frame = read(tmp_path)
    assert list(frame.columns) == COLUMNS and len(frame) == 10
    first = frame[frame["run"] == "g-s1"].iloc[1]
    assert first.to_dict() == {
        "run": "g-s1",
        "recipe": "grpo",
        "seed": 1,
        "axes": "max_new_tokens=9",
        "compute": 1e9,
        "value": 0.25,
        "trials": 8,
        "truth": 0.625,
    }
    assert frame.attrs["compute_label"] == "training compute C (FLOPs)"
    assert frame.attrs["value_label"] == "pass rate (held-out, mean@4)"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("compute", "want"),
    [
        ("tokens_generated", [0, 100, 200, 300, 400]),
        ("modelled_device_s", [0, 2, 4, 6, 8]),
        ("wall_s", [0, 3, 6, 9, 12]),
    ],
)
def test_a_run_directory_on_another_axis(tmp_path, compute, want):
    write_run(tmp_path / "r", values=VALUES, ceiling=None)
    frame = read(tmp_path / "r", compute=compute)
    assert frame["compute"].tolist() == want
    assert frame["truth"].isna().all() and (frame["axes"] == "").all()


def test_unfinished_runs_and_torn_lines(tmp_path, capsys):
    write_run(tmp_path / "runs/a", values=VALUES)
    write_run(tmp_path / "runs/b", values=VALUES, status="running")
    write_run(tmp_path / "runs/c", values=VALUES[:3], status="interrupted")
    write_run(tmp_path / "runs/d", values=VALUES, status="running")
    (tmp_path / "runs/d/evals.jsonl").unlink()
    with (tmp_path / "runs/a/evals.jsonl").open("a") as file:
        file.write('{"step": 50, "me')
    assert read(tmp_path)["run"].value_counts().to_dict() == {"a": 5, "b": 5}
    out = capsys.readouterr().out
    assert "run b: status running, 5 evaluations: read so far" in out
    assert "run c: status interrupted, 3 evaluations: left out" in out
    assert "run d: status running, 0 evaluations: left out" in out
    assert "runs/a/evals.jsonl: torn last line dropped" in out


def test_study_errors(tmp_path):
    write_run(tmp_path / "runs/a", values=VALUES)
    evals = tmp_path / "runs/a/evals.jsonl"

    def message(**options):
        with pytest.raises(DataError) as error:
            read(tmp_path, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert re.fullmatch(
        r"compute=flops: no numeric column of .*runs/a/evals.jsonl; use one of step, trials, "
        r"passes, mean, compute, tokens_generated",
        message(compute="flops"),
    )
    assert message(recipe="x").endswith("say it; leave out recipe=")
    good = evals.read_text()
    evals.write_text(good.replace('{"step": 10,', '{"step": 10', 1))
    assert re.search("line 2 is not JSON; restore or remove that line", message())
    evals.write_text(good.replace("heldout", "train", 1))
    assert "mixes evaluation sets heldout, train; keep one" in message()
    (tmp_path / "runs/a/clock.jsonl").write_text('{"step": 10}\n')
    evals.write_text(good)
    assert re.search("compute=wall_s: not in .*clock.jsonl; use another", message(compute="wall_s"))
    (tmp_path / "runs/a/manifest.json").write_text("{")
    assert re.search(r"manifest.json: not JSON \(.*\); restore or remove it", message())
    (tmp_path / "runs/a/manifest.json").unlink()
    assert "holds neither manifest.json nor runs/*/manifest.json" in message()


LONG = "model,algo,seed,gpu_hours,pass_rate\n" + "".join(
    f"{m},{m},{s},{c},{0.1 + 0.1 * i}\n"
    for m in ("x", "y")
    for s in (0, 1)
    for i, c in enumerate((0, 1, 2, 4))
)


def test_long_form_is_inferred_and_says_so(tmp_path, capsys):
    file = tmp_path / "log.csv"
    file.write_text(LONG)
    frame = read(file, axes=["model"])
    assert capsys.readouterr().out.splitlines() == [
        "log.csv: inferred recipe=algo seed=seed compute=gpu_hours value=pass_rate",
        "log.csv: no run column: algo+model+seed is a run",
    ]
    assert frame["run"].unique().tolist() == ["x-x-0", "x-x-1", "y-y-0", "y-y-1"]
    assert frame["axes"].unique().tolist() == ["model=x", "model=y"]
    assert frame["recipe"].unique().tolist() == ["x", "y"]
    assert frame["compute"].tolist() == [0, 1, 2, 4] * 4
    assert frame.attrs["compute_label"] == "gpu_hours"


def test_long_form_by_name_from_jsonl(tmp_path, capsys):
    file = tmp_path / "log.jsonl"
    rows = [{"id": "a", "c": c, "ok": 10 * (c + 1), "of": 100, "start": 5.0} for c in range(4)]
    file.write_text("\n".join(map(json.dumps, rows)) + '\n{"id": ')
    frame = read(file, run="id", compute="c", passes="ok", trials="of", r0="start")
    assert frame["value"].tolist() == [0.1, 0.2, 0.3, 0.4]
    assert frame["trials"].tolist() == [100.0] * 4
    assert frame["start"].tolist() == [5.0] * 4
    assert (frame["recipe"] == "a").all() and frame["seed"].isna().all()
    assert capsys.readouterr().out == f"{file}: torn last line dropped\n"


def table(tmp_path, rows, name="t.csv"):
    file = tmp_path / name
    pd.DataFrame(rows, columns=["run", "compute", "value"]).to_csv(file, index=False)
    return file


def test_percent_duplicates_gaps_and_short_runs(tmp_path, capsys):
    rows = [("a", 0, 10), ("a", 1, 20), ("a", 1, 30), ("a", 2, None), ("a", 3, 40), ("a", 4, 50)]
    file = table(tmp_path, [*rows, ("b", 1, 10), ("b", 2, 20), ("b", 3, 30)])
    frame = read(file, scale="percent")
    assert frame["compute"].tolist() == [0, 1, 3, 4]
    assert frame["value"].tolist() == pytest.approx([0.1, 0.25, 0.4, 0.5])
    out = capsys.readouterr().out
    assert "run a: 1 rows with an empty cell dropped" in out
    assert "run a: 1 repeated values of compute averaged" in out
    assert "run b: 3 points, fewer than 4: left out" in out


def test_duplicates_are_weighted_by_trials(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("run,compute,passes,trials\na,1,1,10\na,2,1,10\na,2,9,30\na,3,4,10\na,4,5,10\n")
    frame = read(file)
    assert frame["value"].tolist() == pytest.approx([0.1, 0.25, 0.4, 0.5])  # (1 + 9) / (10 + 30)
    assert frame["trials"].tolist() == [10, 40, 10, 10]


UP = [("a", c, 0.1 * c) for c in range(1, 6)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [("a", 1, 20.5), *UP[1:]],
            {},
            r"data=.*t.csv: run a: value 20.5 at compute 1 is outside \[0, 1\]; give scale=percent",
        ),
        (
            [*UP, ("a", 6, 101)],
            {"scale": "percent"},
            r"data=.*: run a: value 101 at compute 6 is outside \[0, 100\]; .*",
        ),
        (
            [*UP, ("a", 4, 0.4)],
            {},
            "data=.*: run a: compute falls from 5 to 4; sort the rows, or name the run .*run=",
        ),
        ([("a", -1, 0.1), *UP], {}, "data=.*: run a: compute -1 is negative; fix it"),
        (UP[:3], {}, "data=.*: no run has 4 points; name other columns"),
        (UP, {"scale": "per cent"}, "scale=per cent: unknown unit; use fraction or percent"),
        (UP, {"compute": "c"}, "compute=c: t.csv has no such column; use one of run, .*"),
        (UP, {"value": "run"}, r"value=run: t.csv: not a column of numbers \(.*\); name another.*"),
        (UP, {"axes": ["len"]}, "axes=len: t.csv has no such column; use one of .*"),
        (UP, {"r0": "eps"}, "r0=eps: t.csv has no such column; use one of .*"),
        (UP, {"r0": "value"}, "r0=value: run a: several values; give one value per run"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, rows, options, message):
    with pytest.raises(DataError) as error:
        read(table(tmp_path, rows), **options)
    assert re.fullmatch(message, str(error.value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", r"data=.*t.csv: unreadable \(No columns to parse from file\); give a table"),
        ("t.txt", "x", "data=.*t.txt: unknown kind of file; use .csv, .jsonl or .parquet"),
        ("t.csv", "run,value\na,1\n", "compute=: t.csv has no such column; use one of run, value"),
        ("t.csv", "run,C\na,1\n", "value=: t.csv has no such column; use one of run, C"),
        (
            "t.csv",
            "run,train_flops,eval_flops,value\na,1,1,1\n",
            "compute=: t.csv has columns train_flops, eval_flops; name one with compute=",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read(tmp_path / name)
    assert re.fullmatch(message, str(error.value))


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
    frame = read(wandb_export(tmp_path / "w.csv"))
    assert capsys.readouterr().out == (
        "w.csv: a W&B export of 2 runs, compute=Relative Time (Process), value=val/acc; "
        "empty cells dropped\n"
    )
    assert frame["run"].value_counts().to_dict() == {"gsm8k-lr1 - old-b8": 6, "gsm8k-lr2-b8": 6}
    second = frame[frame["run"] == "gsm8k-lr2-b8"]
    assert second["compute"].tolist() == [1, 3, 5, 7, 9, 11]
    assert second["value"].tolist() == pytest.approx([0.41, 0.43, 0.45, 0.47, 0.49, 0.51])
    assert frame["truth"].isna().all() and frame["trials"].isna().all()
    assert frame.attrs["compute_label"] == "Relative Time (Process)"


def test_a_wandb_export_by_step_and_metric(tmp_path):
    file = wandb_export(tmp_path / "w.csv", metrics=("val/acc", "val/len"))
    frame = read(file, value="val/acc", compute="_step")
    assert frame["compute"].tolist()[:3] == [0, 10, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "value=: w.csv has metrics val/acc, val/len, _step; name one of them"),
        ({"value": "acc"}, "value=acc: w.csv has metrics val/acc, val/len, _step; name one .*"),
        (
            {"value": "val/acc", "compute": "t"},
            "compute=t: w.csv has no such column; use one of Relative Time .*",
        ),
        ({"run": "x"}, "run=x: w.csv is a W&B export, one column per run; leave out run="),
    ],
)
def test_wandb_errors(tmp_path, options, message):
    file = wandb_export(tmp_path / "w.csv", metrics=("val/acc", "val/len"))
    with pytest.raises(DataError) as error:
        read(file, **options)
    assert re.fullmatch(message, str(error.value))


def test_short_names():
    names = ["Qwen-GSM8K-sp-b4-0118", "qwen-gsm8k-n16-0118", "Qwen-GSM8K-n64-0118"]
    assert list(short_names(names).values()) == ["sp-b4", "n16", "n64"]
    assert short_names(["a-b"]) == {"a-b": "a-b"}
    assert short_names(["a", "a-a"]) == {"a": "a", "a-a": "a-a"}  # nothing would be left
