"""Logs as strangers write them: each kind is read to the right numbers, or is one line.

The property tests compare with `reference`, which reads a table cell by cell in plain Python.
"""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlx.errors import InputError
from rlx.scaling.data import Evals

VALUES = [0.1, 0.18, 0.27, 0.34, 0.4, 0.44, 0.47, 0.49]


def read(directory, name, content, **options):
    file = Path(directory) / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Evals.read(file, **options)


def message(directory, name, content, **options):
    with pytest.raises(InputError) as error:
        read(directory, name, content, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def table(header, *columns, separator=",", end="\n"):
    rows = [header.replace(",", separator)]
    rows += [separator.join(map(str, cells)) for cells in zip(*columns, strict=True)]
    return end.join(rows) + end


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


STEPS = range(1, 9)
ROWS = [{"step": s, "pass_rate": v} for s, v in zip(STEPS, VALUES, strict=True)]
PLAIN = table("step,pass_rate", STEPS, VALUES)


# ---------------------------------------------------------------- how lines and cells are written


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", "\ufeff" + lines(ROWS)),
        ("t.jsonl", lines(ROWS).replace("\n", "\n\n")),
        ("t.jsonl", lines(ROWS).replace("\n", "\r\n")),
        ("t.jsonl", lines(ROWS).replace('"pass_rate"', '"note": "a\u2028b", "pass_rate"')),
        ("t.jsonl", lines(ROWS) + '{"step": 9, "pa'),  # torn
        ("t.jsonl", lines(ROWS) + "\0" * 40),  # as a file system leaves a torn line
        ("t.csv", "\ufeff" + PLAIN),
        ("t.csv", PLAIN.replace("\n", "\r\n\r\n")),
        ("t.csv", PLAIN.replace("\n", ",\n")),
        ("t.csv", PLAIN.encode("utf-16")),
        ("t.csv", table("step,pass_rate", STEPS, VALUES, separator=";")),
        ("t.CSV", table("step,pass_rate", STEPS, VALUES, separator="\t")),
        ("t.csv", table('step,"pass_rate"', STEPS, [f'"{v}"' for v in VALUES])),
        ("t.csv", PLAIN + "9"),
        ("t.csv", table("checkpoint,acc", [f"step_{s:04}" for s in STEPS], VALUES)),
        ("t.csv", table("step,acc,max_new_tokens", STEPS, VALUES, [512] * 8)),
        ("t.jsonl", lines([{"step": r["step"], "data": {"val/acc/mean@1": r["pass_rate"],
                                                        "perf/tokens": 7}} for r in ROWS])),
        ("t.jsonl", lines([{"step": r["step"], "eval": {"acc": r["pass_rate"]}, "lr": {"a": 1}}
                           for r in ROWS])),
    ],
)  # fmt: skip
def test_one_log_in_many_forms(tmp_path, name, content):
    frame = read(tmp_path, name, content).frame
    assert frame["compute"].tolist() == list(STEPS) and frame["value"].tolist() == VALUES
    assert frame["run"].tolist() == ["t"] * 8


def test_the_separator_is_said(tmp_path):
    notes = read(tmp_path, "t.csv", table("step,acc", STEPS, VALUES, separator=";")).notes
    assert notes[0] == "t.csv: cells are separated by semicolons"


@pytest.mark.parametrize(
    ("name", "content", "want"),
    [
        ("t.csv", "step,acc,acc\n1,0.1,0.2\n", "/t.csv:1: the column acc appears twice"),
        ("t.csv", "Step,a - acc,a - acc__MIN,a - acc\n", "the column a - acc appears twice"),
        ("t.csv", "step,acc\n1,0.1\n2,\0\n", "/t.csv:3: holds NUL characters; remove them"),
        ("t.csv", "step,acc\n1,0.1,0.2\n", "/t.csv:2: 3 cells under a header of 2; fix that"),
        ("t.csv", "step,acc\n1\n2,0.1\n", "/t.csv:2: 1 cells under a header of 2; fix that line"),
        ("t.csv", b"run,acc\n\xe9,1\n", "/t.csv:2: not UTF-8 text; save it as UTF-8"),
        ("t.csv", 'step,acc\n1,"0.1\n', ":2: unexpected end of data; fix the quotes"),
        ("t.csv", "step;acc\n1;0,5\n", "(row 1: '0,5'); name another with value=, or write plain"),
        ("t.csv", "step,acc\n1,50%\n", "(row 1: '50%'); name another with value=, or write plain"),
        ("t.csv", "step,acc\n1,True\n", "not a column of numbers (row 1: 'True')"),
        ("t.csv", "step,acc\n1,1_0\n", "not a column of numbers (row 1: '1_0')"),
        ("t.jsonl", '{"step": 1, "acc": true}\n', "not a column of numbers (row 1: True)"),
        ("t.jsonl", '{"step": 1, "step": 2}\n', "line 1 has step twice; restore or remove"),
        ("t.jsonl", "[1]\n", "line 1 is not an object; write one object per line"),
        ("t.jsonl", "{}\n" + "[" * 10**5 + "\n", "line 2 is not JSON; restore or remove"),
        ("t.jsonl", '{"step": ' + "9" * 400 + "}\n", "compute=step: t.jsonl: not a column of num"),
        ("t.jsonl", "", "holds no rows; give a table with evaluations"),
        ("t.csv", "eval_set,step,acc\n,1,1\nb,1,1\n", "row 1: eval_set is empty; fill it in"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_names_file_line_or_cell(tmp_path, name, content, want):
    assert want in message(tmp_path, name, content)


# ---------------------------------------------------------------- runs


def test_run_names_are_text(tmp_path):
    names = ["007", "07", "7", "=cmd|' /C calc'!A0"]
    rows = [
        (n, c, v + i / 8) for i, n in enumerate(names) for c, v in zip(STEPS, VALUES, strict=True)
    ]
    evals = read(tmp_path, "t.csv", table("run,step,acc", *zip(*rows, strict=True)))
    assert evals.runs == names and len(evals.frame) == 32


def test_a_column_of_values_for_each_run(tmp_path):
    half = [v / 2 for v in VALUES[:7]] + [""]
    text = table("step,a,b", STEPS, VALUES, half)
    assert message(tmp_path, "t.csv", text).endswith("or wide=true if each column is a run")
    evals = read(tmp_path, "t.csv", text, wide=True)
    assert evals.runs == ["a", "b"] and evals.compute_label == "training step"
    assert evals.frame["value"].tolist() == VALUES + half[:7]
    assert evals.frame["compute"].tolist() == [*STEPS, *STEPS][:15]
    assert "leave out value=" in message(tmp_path, "t.csv", text, wide=True, value="a")


@pytest.mark.parametrize(
    ("header", "compute", "want"),
    [
        (",step,a", None, "beside compute=column 1, step cannot be a run"),
        (",step,a", "step", "beside compute=step, column 1 cannot be a run"),
        ("step,gpu_hours,a", None, "beside compute=step, gpu_hours cannot be a run"),
    ],
)
def test_an_index_or_a_second_compute_is_no_run(tmp_path, header, compute, want):
    per_cent = [100 * v for v in VALUES]  # in which steps would pass as values
    text = table(header, STEPS, STEPS, per_cent)
    assert want in message(tmp_path, "t.csv", text, wide=True, compute=compute)


def test_none_is_a_level(tmp_path):
    rows = [
        (s, v, kl, 0)
        for kl in ("None", "k3", "default")
        for s, v in zip(STEPS, VALUES, strict=True)
    ]
    text = table("step,pass_rate,kl,seed", *zip(*rows, strict=True))
    evals = read(tmp_path, "t.csv", text, axes=["kl"])
    assert evals.runs == ["None-0", "k3-0", "default-0"]
    assert evals.frame["kl"].unique().tolist() == ["None", "k3", "default"]
    rows = [{"step": s, "acc": v, "kl": kl} for s, v, kl, _ in rows]
    null = lines(row | {"kl": None if row["kl"] == "None" else row["kl"]} for row in rows)
    assert read(tmp_path, "t.jsonl", null, axes="kl").runs == ["None", "k3", "default"]
    empty = text.replace("None", "").replace("step", "run,step").replace("\n", "\nr,")[:-2]
    empty = table(
        "run,step,acc,kl",
        *zip(*[("a", s, v, "") for s, v in zip(STEPS, VALUES, strict=True)], strict=True),
    ) + "".join(f"b,{s},{v},default\n" for s, v in zip(STEPS, VALUES, strict=True))
    assert "axis kl is empty, other runs say default" in message(
        tmp_path, "t.csv", empty, axes=["kl"]
    )  # fmt: skip


def test_what_is_left_out_is_one_line(tmp_path):
    short = [(f"r{r}", c, 0.1) for r in range(28) for c in range(3)]
    rows = [*short, *(("x", c, 0.1 * c) for c in range(5))]
    notes = read(tmp_path, "t.csv", table("run,step,acc", *zip(*rows, strict=True))).notes
    assert "t.csv: 28 runs (r0, r1, r2 and 25 more): 3 points, fewer than 4: left out" in notes
    assert len(notes) == 3


# ---------------------------------------------------------------- compute


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("mean_completion_tokens", [200 + 30 * s for s in STEPS]),
        ("completion_tokens", [200 + 30 * s for s in STEPS]),
        ("max_new_tokens", [512] * 8),
        ("eval_seconds", [30 + s / 10 for s in STEPS]),
        ("achieved_tflops", [300 + s / 2 for s in STEPS]),
        ("tokens_per_step", [1000 * s for s in STEPS]),
        ("step_seconds", [9, 8, 9, 8, 9, 8, 9, 8]),
        ("total_tokens", [9000] * 8),
    ],
)
def test_a_length_a_rate_a_duration_and_a_constant_are_no_compute(tmp_path, column, cells):
    text = table(f"step,{column},pass_rate", STEPS, cells, VALUES)
    assert "inferred compute=step value=pass_rate" in read(tmp_path, "t.csv", text).notes[0]
    alone = table(f"{column},pass_rate", cells, VALUES)
    assert message(tmp_path, "t.csv", alone).startswith("compute=: t.csv has ")


@pytest.mark.parametrize("column", ["train_flops", "gpu_hours", "num_tokens", "elapsed_seconds"])
def test_what_is_spent_since_the_start_wins_over_steps(tmp_path, column):
    text = table(f"step,{column},pass_rate", STEPS, [1e9 * s**1.2 for s in STEPS], VALUES)
    assert f"compute={column}" in read(tmp_path, "t.csv", text).notes[0]


def test_compute_that_may_be_either_is_asked_for(tmp_path):
    text = table("step,response_tokens,acc", STEPS, [90 * s for s in STEPS], VALUES)
    want = "compute=: t.csv has columns response_tokens, step; name one with compute="
    assert message(tmp_path, "t.csv", text) == want


def test_compute_that_begins_late_is_said(tmp_path):
    evals = read(tmp_path, "t.csv", table("step,acc", [10**4 + 10 * s for s in STEPS], VALUES))
    assert any("step starts at 0.993 of its end" in note for note in evals.notes)
    with pytest.raises(InputError, match="step starts at 0.993 of its end, after 0.5 of it; subtr"):
        evals.until(share=0.5)


# ---------------------------------------------------------------- values


def test_rows_with_equal_numbers_are_no_copies_where_a_column_tells_them_apart(tmp_path):
    rows = [("a", s, p, 10, i) for s in range(4) for i, p in enumerate((5, 5, 8))]
    text = table("run,step,passes,trials,eval_seed", *zip(*rows, strict=True))
    frame = read(tmp_path, "t.csv", text).frame
    assert frame["passes"].tolist() == [18] * 4 and frame["trials"].tolist() == [30] * 4
    twice = text + "".join(text.splitlines(keepends=True)[-3:])  # whole rows again
    assert read(tmp_path, "t.csv", twice).frame["trials"].tolist() == [30] * 4


@pytest.mark.parametrize("column", ["task", "benchmark", "dataset", "metric", "language"])
def test_rows_of_several_tasks_are_not_averaged(tmp_path, column):
    rows = [
        (s, v / (1 + i), t) for s, v in zip(STEPS, VALUES, strict=True) for i, t in enumerate("xy")
    ]
    text = table(f"step,acc,{column}", *zip(*rows, strict=True))
    assert f"column {column} distinguishes rows at the same compute (x, y)" in message(
        tmp_path, "t.csv", text
    )
    renamed = text.replace(column, "eval_set")
    assert read(tmp_path, "t.csv", renamed, eval_set="x").frame["value"].tolist() == VALUES
    apart = read(tmp_path, "t.csv", text, axes=[column])
    assert apart.runs == ["x", "y"] and len(apart.frame) == 16


def test_tasks_that_take_turns_are_not_one_curve(tmp_path):
    rows = [(s, v, "xy"[i % 2]) for i, (s, v) in enumerate(zip(STEPS, VALUES, strict=True))]
    text = table("step,acc,task", *zip(*rows, strict=True))
    assert "column task takes turns within a run (x, y); rename task to eval_set" in message(
        tmp_path, "t.csv", text
    )
    one = read(tmp_path, "t.csv", text.replace("task", "eval_set"), eval_set="x").frame
    assert one["value"].tolist() == VALUES[::2]
    ordered = [(*row[:2], "x" if i < 4 else "y") for i, row in enumerate(rows)]  # a curriculum
    text = table("step,acc,dataset", *zip(*ordered, strict=True))
    assert read(tmp_path, "t.csv", text).frame["value"].tolist() == VALUES
    unscored = [(s, v if t == "x" else "", t) for s, v, t in rows]  # training rows between
    text = table("step,acc,split", *zip(*unscored, strict=True))
    assert read(tmp_path, "t.csv", text).frame["value"].tolist() == VALUES[::2]


@pytest.mark.parametrize("values", [[3.0, 4, 5, 7], [-1.0, 0, 1, 2], [-20.0, 5, 30, 40]])
def test_a_shaped_reward_is_no_per_cent(tmp_path, values):
    text = message(tmp_path, "t.csv", table("step,reward", range(4), values))
    assert text.startswith(
        f"scale=: t.csv: values from {min(values):g} to {max(values):g}: neither"
    )
    assert "give scale=percent if they are; a shaped or negative reward is not a pass rate" in text


@pytest.mark.parametrize("other", ["pass_rate", "value", "acc.1"])
def test_two_columns_of_values_are_asked_for(tmp_path, other):
    text = table(f"step,acc,{other}", STEPS, VALUES, VALUES[::-1])
    assert message(tmp_path, "t.csv", text) == (
        f"value=: t.csv has columns acc, {other}; name one with value="
    )
    assert read(tmp_path, "t.csv", text, value="acc").frame["value"].tolist() == VALUES


def test_two_runs_of_a_name_are_asked_about(tmp_path):
    rows = [("a", s, v * k) for s, v in zip(STEPS, VALUES, strict=True) for k in (1, 0.9)]
    text = table("run,step,acc", *zip(*rows, strict=True))
    want = "run a: several rows at most values of compute; number them in a column eval_seed"
    assert want in message(tmp_path, "t.csv", text)
    resumed = table("run,step,acc", "a" * 8, [*range(4)] * 2, VALUES)  # which counts from 0 again
    assert "add what it had spent" in message(tmp_path, "t.csv", resumed)
    numbered = [(*row, i % 2) for i, row in enumerate(rows)]
    text = table("run,step,acc,eval_seed", *zip(*numbered, strict=True))
    got = read(tmp_path, "t.csv", text).frame["value"].tolist()
    assert got == pytest.approx([0.95 * v for v in VALUES])


def test_names_of_runs_cannot_write_to_the_terminal(tmp_path, capsys):
    rows = [*(("a", s, v) for s, v in zip(STEPS, VALUES, strict=True)), ("\x1b[31mb", 1, 0.1)]
    read(tmp_path, "t.csv", table("run,step,acc", *zip(*rows, strict=True)))
    assert "t.csv: run \\x1b[31mb: 1 points, fewer than 4: left out" in capsys.readouterr().out


def test_counts_are_whole(tmp_path):
    text = table("step,passes,trials", range(4), [1, 2.5, 3, 4], [10] * 4)
    assert "row 2: passes 2.5 is not a whole number; give mean scores with value=" in message(
        tmp_path, "t.csv", text
    )


# ---------------------------------------------------------------- resumed TensorBoard runs


def write_events(directory, name, rows):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(directory), filename_suffix=name)
    for wall, step, tag, value in rows:
        cells = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(wall_time=wall, step=step, summary=cells))
    writer.close()


def test_of_a_resumed_run_the_later_event_file_counts(tmp_path):
    """Tag by tag: another tag's file, which began earlier, is left as it is."""
    run = tmp_path / "run"
    write_events(run, ".1", [(s, 10 * s, "eval/acc", s / 16) for s in range(6)])
    write_events(run, ".2", [(50 + s, 10 * s, "eval/acc", s / 32) for s in range(4, 9)])
    write_events(run, ".3", [(s, s, "train/loss", 1.0) for s in range(90)])
    evals = Evals.read(run)
    assert evals.frame["compute"].tolist() == [10 * s for s in range(9)]
    assert evals.frame["value"].tolist() == [s / (16 if s < 4 else 32) for s in range(9)]
    said = "run: run run: resumed: 2 numbers replaced by those of a later event file"
    assert said in evals.notes


def test_two_runs_that_write_events_to_one_directory_are_an_error(tmp_path):
    run = tmp_path / "run"
    for name, shift in ((".1", 0), (".2", 0.5)):
        write_events(run, name, [(s + shift, s, "eval/acc", s / 16) for s in range(6)])
    with pytest.raises(InputError, match="event files that write eval/acc at the same time; give"):
        Evals.read(run)


# ---------------------------------------------------------------- any bytes


def cells_of(text, separator):
    """(cells, whether a newline ended them) of each line; ValueError on a quote out of place."""
    row, cell, state, found = [], "", "start", []
    for c in [*text.replace("\r\n", "\n").replace("\r", "\n"), None]:
        if state == "quoted" and c is None:
            raise ValueError("open quote")
        if state == "quoted":
            state, cell = ("closing", cell) if c == '"' else (state, cell + c)
        elif state == "closing" and c == '"':
            state, cell = "quoted", cell + c
        elif c in (separator, "\n", None):
            row, cell, state = [*row, cell], "", "start"
            if c != separator:
                found.append((row, c is not None))
                row = []
        elif state == "closing":
            raise ValueError("a quote inside")
        elif state == "start" and c == '"':
            state = "quoted"
        else:
            state, cell = "plain", cell + c
    return [(row, ended) for row, ended in found if any(cell.strip() for cell in row)]


def number(cell):
    word = str(cell).strip().lower() if cell is not None else ""
    if isinstance(cell, bool):
        raise ValueError(cell)
    if word in ("", "-", "nan", "na", "n/a", "#n/a", "<na>", "null", "none"):
        return math.nan
    if not set(word) <= set("0123456789+-.e") and word.strip("+-") not in ("inf", "infinity"):
        raise ValueError(word)
    return float(word)


def csv_rows(text, separator):
    """(run, step, acc, the row) of each line below the header; ValueError where none is sure."""
    (head, _), *body = cells_of(text, separator)
    head = [name.strip() for name in head]
    place = [head.index(name) for name in ("run", "step", "acc")]
    if body and len(body[-1][0]) < len(head) and not body[-1][1]:
        del body[-1]
    for row, _ in body:
        if len(row) < len(head) and not all(not name for name in head[len(row) :]):
            raise ValueError("a short line")
        if any(row[len(head) :]):
            raise ValueError("a long line")
    return [(*(row[i] for i in place), tuple(row[: len(head)])) for row, _ in body]


def json_rows(text):
    found = text.split("\n")
    rows = []
    for i, line in enumerate(found):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                if i + 1 < len(found):
                    raise
                continue
            if not isinstance(row, dict):
                raise ValueError("no object")
            cells = (row.get("run"), row.get("step"), row.get("acc"))
            if any(isinstance(cell, dict | list) for cell in row.values()):
                raise ValueError("nested")
            rows.append((*cells, tuple(sorted((k, str(x)) for k, x in row.items()))))
    return rows


def reference(rows):
    """{run: [(compute, value)]} of all runs, one row after the other."""
    runs = {}
    for run, step, acc, row in rows:
        step, acc = number(step), number(acc)
        if run is None or not str(run).strip():
            if not math.isnan(acc):
                raise ValueError("no run")
            continue
        if not math.isnan(step) and not math.isnan(acc):
            runs.setdefault(str(run), []).append((step, acc, row))
    study = {}
    for run, evaluations in runs.items():
        points, before = {}, 0.0
        for i, (step, acc, row) in enumerate(evaluations):
            if not 0 <= acc <= 1 or not before <= step < math.inf:
                raise ValueError("out of range")
            before = step
            if (step, acc, row) not in evaluations[:i]:
                points.setdefault(step, []).append(acc)
        study[run] = [(step, sum(accs) / len(accs)) for step, accs in points.items()]
    return study


GOOD = [
    (run, s, v / n)
    for n, run in enumerate(("a", "b", "é 1"), 1)
    for s, v in zip(STEPS, VALUES, strict=True)
]
NASTY = [b"\r\n", b"\n\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\xd9\xa1"]
NASTY += b"nan inf 1e5 true null 0x1 1_0 7 007 run acc step".split()
NASTY += [b"a,1,0.1\n", b'{"run": "a", "step": 9, "acc": 0.5}\n', b'"acc": 1, ']
NASTY += [bytes([c]) for c in b'",;\t\n\r-.{}[] =%\\|']
QUIET = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def damaged(draw, good):
    """A log with up to four pieces written over, put in or taken out."""
    data = good
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        cut = draw(st.sampled_from([0, 0, 1, 2, 10]))
        put = draw(st.one_of(st.sampled_from(NASTY), st.binary(max_size=3)))
        data = data[:at] + put + data[at + cut :]
    return data


def agrees(tmp_path, name, data, rows_of):
    """`data` is a study of the reference's numbers, or one line."""
    named = {"run": "run", "compute": "step", "value": "acc", "scale": "fraction"}
    try:
        evals = read(tmp_path, name, data, min_points=1, **named)
    except InputError as error:
        assert "\n" not in str(error)
        return False
    separated = {"semicolons": ";", "tabs": "\t", "bars": "|"}
    said = [note.split()[-1] for note in evals.notes if "separated by" in note]
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    want = reference(rows_of(data.decode(encoding), separated[said[0]] if said else ","))
    frame = evals.frame
    assert frame["run"].unique().tolist() == list(want)
    points = [point for run in want for point in want[run]]
    assert frame["compute"].tolist() == [step for step, _ in points]
    assert frame["value"].tolist() == pytest.approx([acc for _, acc in points], rel=1e-12)
    return True


CSV = "".join(f"{','.join(map(str, row))}\n" for row in [("run", "step", "acc"), *GOOD]).encode()
JSON = lines({"run": r, "step": s, "acc": v} for r, s, v in GOOD).encode()


@QUIET
@given(damaged(CSV))
def test_any_csv_is_a_study_of_the_right_numbers_or_one_line(tmp_path, data):
    agrees(tmp_path, "t.csv", data, csv_rows)


@QUIET
@given(damaged(CSV.replace(b",", b";")))
def test_any_csv_with_semicolons_is_too(tmp_path, data):
    agrees(tmp_path, "t.csv", data, csv_rows)


@QUIET
@given(damaged(JSON))
def test_any_jsonl_is_a_study_of_the_right_numbers_or_one_line(tmp_path, data):
    agrees(tmp_path, "t.jsonl", data, lambda text, _: json_rows(text))


def test_the_reference_and_the_readers_agree_on_good_logs(tmp_path):
    assert agrees(tmp_path, "t.csv", CSV, csv_rows)
    assert agrees(tmp_path, "t.jsonl", JSON, lambda text, _: json_rows(text))


cell = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4),
                 st.lists(st.integers(0, 4), max_size=3), st.binary(max_size=2))  # fmt: skip
NAME = st.sampled_from(
    "run recipe seed step compute gpu_hours tokens value acc score passes trials stderr truth "
    "passes_per_prompt samples_per_prompt eval_set task loss a - acc__MIN a - acc".split()
)


@QUIET
@given(st.lists(st.dictionaries(NAME, cell, max_size=8), max_size=8), st.booleans())
def test_any_table_is_a_study_or_one_line(rows, wide):
    frame = pd.DataFrame(rows, dtype=object)
    try:
        evals = Evals.from_frame(frame, wide=wide, min_points=1)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert evals.frame["value"].between(0, 1).all() and evals.frame["compute"].ge(0).all()


@QUIET
@given(st.binary(max_size=200), st.sampled_from("t.csv t.tsv t.jsonl t.json t.parquet".split()))
def test_any_bytes_are_one_line(tmp_path, data, name):
    with pytest.raises(InputError) as error:
        read(tmp_path, name, data)
    assert "\n" not in str(error.value)


value = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
state = st.dictionaries(
    st.sampled_from(["log_history", "global_step", "total_flos"]),
    st.one_of(value, st.lists(st.one_of(value, st.dictionaries(
        st.sampled_from(["step", "eval_reward", "epoch", "num_tokens"]), value)), max_size=6)),
)  # fmt: skip


@QUIET
@given(state, st.sampled_from([None, "total_flos", "epoch"]))
def test_any_trainer_state_is_a_study_or_one_line(tmp_path, state, compute):
    try:
        read(tmp_path, "t.json", json.dumps(state), compute=compute, min_points=1)
    except InputError as error:
        assert "\n" not in str(error)


@QUIET
@given(st.binary(max_size=200))
def test_any_event_file_is_one_line(tmp_path, data):
    (tmp_path / "run").mkdir(exist_ok=True)
    with pytest.raises(InputError) as error:
        (tmp_path / "run/events.out.tfevents.1.host").write_bytes(data)
        Evals.read(tmp_path / "run")
    assert "\n" not in str(error.value)
