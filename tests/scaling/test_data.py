"""Evals: standard errors, units, treatments, cuts, digests, and every error text."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from rlx.errors import InputError
from rlx.scaling.data import COLUMNS, Evals, short_names


def read(rows, columns="run compute value", **options):
    return Evals.from_frame(pd.DataFrame(rows, columns=columns.split()), name="t", **options)


def message(rows, columns="run compute value", **options):
    with pytest.raises(InputError) as error:
        read(rows, columns, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


UP = [("a", c, 0.1 * c) for c in range(1, 6)]


# ---------------------------------------------------------------- standard errors


def prompts_oracle(passes, k):
    """Variance of the mean of n independent prompts, each by its unbiased sample variance."""
    total = 0.0
    for c in passes:
        samples = [1.0] * c + [0.0] * (k - c)
        mean = sum(samples) / k
        total += sum((x - mean) ** 2 for x in samples) / (k - 1) / k
    return math.sqrt(total) / len(passes)


def binomial_oracle(passes, trials):
    p = (passes + 0.5) / (trials + 1)
    return math.sqrt(p * (1 - p) / trials)


def test_stderr_of_the_passes_of_each_prompt():
    passes = [[0, 3, 5, 8], [1, 8, 2, 4], [8, 7, 6, 1], [2, 2, 7, 8]]
    rows = [("a", i, cell) for i, cell in enumerate(passes)]
    frame = read(rows, "run C passes_per_prompt", samples_per_prompt=8).frame
    want = [prompts_oracle(cell, 8) for cell in passes]
    assert frame["stderr"].tolist() == pytest.approx(want, rel=1e-12)
    assert frame["value"].tolist() == [sum(cell) / 32 for cell in passes]
    assert (frame["trials"] == 32).all() and frame["passes"].tolist() == [16, 15, 22, 19]


def test_samples_per_prompt_follow_from_the_trials():
    rows = [("a", i, "[0, 1, 2]", 12) for i in range(4)]
    frame = read(rows, "run C passes_per_prompt trials").frame
    assert frame["stderr"].tolist() == pytest.approx([prompts_oracle([0, 1, 2], 4)] * 4)


def test_prompts_that_say_nothing_leave_the_binomial():
    """All or none of a prompt's samples pass, or there is one sample a prompt."""
    cells = [[0, 0], [4, 4], [4, 0], [0, 4]]
    frame = read(list(zip("aaaa", range(4), cells, strict=True)), "run C passes_per_prompt",
                 samples_per_prompt=4).frame  # fmt: skip
    assert frame["stderr"].tolist() == [binomial_oracle(c, 8) for c in (0, 8, 4, 4)]
    single = [("a", i, [0, 1, 1, i % 2]) for i in range(4)]
    frame = read(single, "run C passes_per_prompt", samples_per_prompt=1).frame
    assert frame["stderr"].tolist() == [binomial_oracle(2 + i % 2, 4) for i in range(4)]


def test_stderr_of_totals():
    rows = [("a", 0, 0, 20), ("a", 1, 7, 20), ("a", 2, 20, 20), ("a", 3, 1, 5)]
    frame = read(rows, "run C passes trials").frame
    want = [binomial_oracle(0, 20), binomial_oracle(7, 20), binomial_oracle(20, 20)]
    assert frame["stderr"].tolist() == pytest.approx([*want, binomial_oracle(1, 5)], rel=1e-12)
    assert frame["value"].tolist() == [0, 0.35, 1, 0.2]
    rounded = read([("a", i, 0.333, 1, 3) for i in range(4)], "run C value passes trials").frame
    assert rounded["value"].tolist() == [0.333] * 4
    assert rounded["stderr"].tolist() == [binomial_oracle(1, 3)] * 4


def test_stderr_of_a_value_whose_trials_are_known():
    frame = read(UP, trials=50).frame
    want = [binomial_oracle(0.1 * c * 50, 50) for c in range(1, 6)]
    assert frame["stderr"].tolist() == pytest.approx(want, rel=1e-12)
    assert frame["passes"].isna().all()
    by_column = read([(*row, 50) for row in UP], "run compute value n", trials="n").frame
    pd.testing.assert_frame_equal(by_column, frame)


def test_a_stated_stderr_wins_and_zero_or_nothing_does_not():
    rows = [("a", 0, 5, 20, 0.07), ("a", 1, 5, 20, 0), ("a", 2, 5, 20, None), ("a", 3, 5, 20, 0.5)]
    frame = read(rows, "run C passes trials std_err").frame
    assert frame["stderr"].tolist() == [0.07, *[binomial_oracle(5, 20)] * 2, 0.5]
    everywhere = read(rows, "run C passes trials std_err", stderr=0.01)
    assert everywhere.frame["stderr"].tolist() == [0.01] * 4
    assert "t: stderr=0.01 on every row, as given" in everywhere.notes
    percent = read([(r, c, 100 * v) for r, c, v in UP], stderr=2, scale="percent").frame
    assert percent["stderr"].tolist() == [0.02] * 5  # in the unit of the values
    assert read(UP).frame["stderr"].isna().all()


def test_a_stated_stderr_wins_over_the_passes_of_each_prompt():
    rows = [("a", i, [1, 2], 0.07 if i else 0) for i in range(4)]
    frame = read(rows, "run C passes_per_prompt stderr", samples_per_prompt=4).frame
    assert frame["stderr"].tolist() == pytest.approx([prompts_oracle([1, 2], 4), *[0.07] * 3])


# ---------------------------------------------------------------- units


def test_percent_is_inferred_and_says_so():
    rows = [("a", 0, 0.5, 80), ("a", 1, 20, 80), ("a", 2, 30, 80), ("a", 3, 40, 80)]
    evals = read(rows, "run C value ceiling", r0=5)
    assert evals.frame["value"].tolist() == pytest.approx([0.005, 0.2, 0.3, 0.4])
    assert evals.frame["truth"].tolist() == [0.8] * 4
    assert evals.frame["r0"].tolist() == [0.05] * 4
    assert "t: values up to 40: read as scale=percent" in evals.notes
    assert not any("scale" in note for note in read(UP).notes)
    assert not any(
        "scale" in note for note in read(rows, "run C value ceiling", scale="percent").notes
    )


@pytest.mark.parametrize(
    ("values_a", "values_b", "options", "want"),
    [
        (
            [0.1, 0.2, 0.3, 1],
            [10, 20, 30, 40],
            {},
            "scale=: t mixes units: most values of run a are at most 1, run b goes up to 40; "
            "give scale=fraction or percent, or fix the values",
        ),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 40], {}, "scale=: t mixes units: .*"),
        (
            [10, 20, 30, 101],
            [1, 2, 3, 4],
            {},
            r"data=t: run a, row 4: value 101 is outside .*100\].*",
        ),
        (
            [0.1, 0.2, 1.5, 0.4],
            [0, 0, 0, 0],
            {"scale": "fraction"},
            r"data=t: run a, row 3: value 1.5 is outside \[0, 1\]; fix it, or give scale=percent",
        ),
        (
            [1, 2, 3, 4],
            [1, 2, 3, 101],
            {"scale": "percent"},
            r"data=t: run b, row 8: value 101 is outside \[0, 100\]; fix it",
        ),
        ([0, 0, -0.1, 0], [0, 0, 0, 0], {}, r"data=t: run a, row 3: value -0.1 is outside \[0, .*"),
    ],
)
def test_values_of_no_unit(values_a, values_b, options, want):
    rows = [("a", i, v) for i, v in enumerate(values_a)]
    rows += [("b", i, v) for i, v in enumerate(values_b)]
    assert re.fullmatch(want, message(rows, **options))


def test_small_percentages_can_be_stated():
    rows = [("a", i, v) for i, v in enumerate([0, 0.2, 0.5, 1])]
    assert read(rows, scale="percent").frame["value"].tolist() == [0, 0.002, 0.005, 0.01]


# ---------------------------------------------------------------- treatments


def test_gaps_copies_repeats_and_short_runs(capsys):
    rows = [("a", 0, 10), ("a", 1, 20), ("a", 1, 30), ("a", 2, None), ("a", None, 3)]
    rows += [("a", 3, 40), ("a", 3, 40), ("a", 4, 50)]
    evals = read([*rows, ("b", 1, 10), ("b", 2, 20), ("b", 3, 30)], scale="percent")
    assert evals.frame["compute"].tolist() == [0, 1, 3, 4]
    assert evals.frame["value"].tolist() == pytest.approx([0.1, 0.25, 0.4, 0.5])
    assert evals.notes == (
        "t: inferred run=run compute=compute value=value",
        "t: run a: 2 rows with an empty cell dropped",
        "t: run a: 1 exact copies dropped",
        "t: run a: 1 repeated values of compute: averaged",
        "t: run b: 3 points, fewer than 4: left out",
        "t: starts inferred from the evaluations at C = 0: 1 runs, 1 starts",
    )
    assert capsys.readouterr().out == "\n".join(evals.notes) + "\n"
    shorter = read([*rows, ("b", 1, 10), ("b", 2, 20)], scale="percent", min_points=2)
    assert shorter.runs == ["a", "b"]


def test_repeats_pool_their_counts():
    rows = [("a", 1, 1, 10), ("a", 2, 1, 10), ("a", 2, 9, 30), ("a", 3, 4, 10), ("a", 4, 5, 10)]
    frame = read(rows, "run compute passes trials").frame
    assert frame["value"].tolist() == pytest.approx([0.1, 0.25, 0.4, 0.5])  # (1 + 9) / (10 + 30)
    assert frame["trials"].tolist() == [10, 40, 10, 10]
    assert frame["passes"].tolist() == [1, 10, 4, 5]
    assert frame["stderr"].iloc[1] == pytest.approx(binomial_oracle(10, 40), rel=1e-12)


def test_equal_values_of_other_counts_are_no_copies():
    rows = [("a", c, 5, 10) for c in range(4)]
    frame = read([*rows, ("a", 3, 15, 30)], "run compute passes trials").frame
    assert frame["trials"].tolist() == [10, 10, 10, 40]


def test_repeats_pool_their_standard_errors():
    """Var(sum w y / sum w) = sum w^2 s^2 / (sum w)^2 for independent evaluations."""
    tail = [("a", c, 0.5, None, 0.1) for c in (2, 3, 4)]
    weighted = [("a", 1, 0.2, 10, 0.03), ("a", 1, 0.4, 30, 0.04)]
    frame = read(weighted + [(*row[:3], 5, 0.1) for row in tail], "run C value trials stderr").frame
    want = math.sqrt((10 * 0.03) ** 2 + (30 * 0.04) ** 2) / 40
    assert frame["stderr"].iloc[0] == pytest.approx(want, rel=1e-12)
    assert frame["value"].iloc[0] == pytest.approx(0.35)
    plain = [("a", 1, 0.2, None, 0.03), ("a", 1, 0.4, 30, 0.04)]
    frame = read(plain + tail, "run C value trials stderr").frame
    assert frame["value"].iloc[0] == pytest.approx(0.3)
    assert frame["stderr"].iloc[0] == pytest.approx(math.sqrt(0.03**2 + 0.04**2) / 2, rel=1e-12)
    assert math.isnan(frame["trials"].iloc[0])
    unknown = [("a", 1, 0.2, None, 0.03), ("a", 1, 0.4, None, None)]
    assert math.isnan(read(unknown + tail, "run C value trials stderr").frame["stderr"].iloc[0])


def test_ragged_runs_whose_rows_are_interleaved():
    rows = [("b", 0, 0.1), ("a", 0, 0.2), ("b", 1, 0.2), ("a", 5, 0.3), ("b", 2, 0.3)]
    rows += [("a", 6, 0.4), ("a", 7, 0.4), ("b", 3, 0.4), ("b", 4, 0.4)]
    frame = read(rows).frame
    assert frame["run"].tolist() == ["b"] * 5 + ["a"] * 4
    assert frame["compute"].tolist() == [0, 1, 2, 3, 4, 0, 5, 6, 7]
    assert list(frame.index) == list(range(9))


def test_columns_and_their_kinds():
    rows = [("a", "x", s, "cispo", t, c, 0.1 * c) for s, t in ((0, 9), (1, 11)) for c in range(4)]
    frame = pd.DataFrame(rows, columns=["id", "algo", "seed", "loss", "T", "C", "value"])
    frame["id"] += frame["seed"].astype(str)
    evals = Evals.from_frame(frame, run="id", axes=["loss", "T"])
    assert list(evals.frame.columns) == [*COLUMNS, "loss", "T"]
    assert evals.frame["axes"].unique().tolist() == ["loss=cispo, T=9", "loss=cispo, T=11"]
    assert evals.frame["seed"].tolist() == [0] * 4 + [1] * 4
    assert (
        evals.frame.dtypes[["compute", "value", "stderr", "passes", "trials", "truth"]]
        .eq(float)
        .all()
    )
    assert evals.frame["T"].dtype == np.int64 and evals.runs == ["a0", "a1"]
    assert evals.title == "frame"
    words = frame.assign(seed=["s"] * 7 + [None], T=[True] * 4 + [False] * 4)
    evals = Evals.from_frame(words, run="id", axes=["T"])
    assert evals.frame["seed"].tolist() == ["s"] * 8
    assert evals.frame["axes"].unique().tolist() == ["T=True", "T=False"]


def test_levels_that_are_empty_are_default():
    rows = [(r, c, 0.1 * c, t) for r, t in (("a", 9.0), ("b", None)) for c in range(4)]
    evals = read(rows, "run C value T", axes=["T"])
    assert evals.frame["T"].tolist() == ["9"] * 4 + ["default"] * 4
    assert "t: axis T: 1 runs have no level: level default" in evals.notes


# ---------------------------------------------------------------- starts


def test_runs_with_one_evaluation_at_zero_share_a_start():
    zero = {"a": (0, 2, 10), "b": (0, 2, 10), "c": (0, 4, 20), "d": (1, 2, 10), "e": (0, 3, 10)}
    rows = []
    for run, (c, passes, trials) in zero.items():
        rows += [(run, c, passes, trials), *((run, 2 + i, 5, 10) for i in range(3))]
    evals = read(rows, "run C passes trials")
    start = evals.frame.drop_duplicates("run").set_index("run")["start"]
    assert start.to_dict() == {
        "a": "start of a", "b": "start of a", "c": "start of c", "d": "start of d",
        "e": "start of e",
    }  # fmt: skip
    assert "t: starts inferred from the evaluations at C = 0: 5 runs, 4 starts" in evals.notes


def test_passes_of_each_prompt_tell_starts_apart():
    rows = [
        (run, c, cell if c == 0 else [1, 2])
        for run, cell in (("a", [0, 2]), ("b", [2, 0]), ("c", [2, 0]))
        for c in range(4)
    ]
    frame = read(rows, "run C passes_per_prompt", samples_per_prompt=2).frame
    assert frame.groupby("start")["run"].unique().map(list).tolist() == [["a"], ["b", "c"]]


def test_a_start_that_is_given_is_kept():
    rows = [(r, c, 0.1 * c + (r == "b") / 8, s) for r, s in (("a", 7), ("b", 7)) for c in range(4)]
    evals = read(rows, "run C value base", start="base")
    assert evals.frame["start"].unique().tolist() == ["7"]  # other values at C = 0 are allowed
    assert not any("starts inferred" in note for note in evals.notes)
    rows = [(*row[:3], "s" if row[1] == 0 and row[0] == "a" else None) for row in rows]
    frame = read(rows, "run C value base", start="base").frame  # said once a run, or not at all
    assert frame["start"].unique().tolist() == ["s", "start of b"]


# ---------------------------------------------------------------- what cannot be used


@pytest.mark.parametrize(
    ("rows", "options", "want"),
    [
        (
            [*UP, ("a", 4, 0.4)],
            {},
            "data=t: run a, row 6: compute falls from 5 to 4; sort the rows, cut what a resumed "
            "run repeats, add what it had spent if it counts from 0, or name the run with run=",
        ),
        ([*UP, ("a", 4.75, 0.4)], {}, "data=t: run a, row 6: compute falls from 5 to 4.75; .*"),
        ([("a", -1, 0.1), *UP], {}, "data=t: run a, row 1: compute -1 is negative or .*"),
        ([*UP, ("a", math.inf, 0.1)], {}, "data=t: run a, row 6: compute inf is negative or .*"),
        ([*UP, ("a", 6, math.inf)], {"scale": "fraction"}, "data=t: run a, row 6: value inf is .*"),
        ([*UP, (None, 6, 0.1)], {}, "data=t: run .*, row 6: the run has no name; fill it in"),
        (UP[:3], {}, "data=t: no run has 4 points; name other columns, or lower min_points"),
        (UP, {"scale": "per cent"}, "scale=per cent: unknown unit; use fraction or percent"),
        (UP, {"compute": "c"}, "compute=c: t has no such column; use one of run, compute, value"),
        (UP, {"value": "run"}, r"value=run: t: not a column of numbers \(.*\); name another.*"),
        (UP, {"axes": ["len"]}, "axes=len: t has no such column; use one of .*"),
        (UP, {"axes": ["value"]}, "axes=value: a name reserved by Evals; rename that column"),
        (UP, {"r0": "eps"}, "r0=eps: t has no such column; use one of .*"),
        (UP, {"r0": "value"}, "r0=value: a name reserved by Evals; rename that column"),
        (UP, {"r0": 1}, r"r0=1: run a: not a pass rate in \[0, 1\); give it in the unit of value"),
        (UP, {"r0": "140", "scale": "percent"}, r"r0=140: run a: not a pass rate in \[0, 100.*"),
        (UP, {"trials": 0}, "data=t: run a, row 1: trials 0 is not positive; fix it"),
        (UP, {"trials": "n"}, "trials=n: t has no such column; use one of .*"),
        (UP, {"run": "5"}, "run=5: t has no such column; use one of .*"),
        (UP, {"stderr": -1}, r"data=t: run a, row 1: stderr -1 is outside \[0, 0.5\]; .*"),
        (UP, {"stderr": 0.51}, r".* row 1: stderr 0.51 is outside \[0, 0.5\]; .*scale=percent"),
        (
            [("a", i, v) for i, v in enumerate((0.1, 0.2, math.inf, 0.3))],
            {},
            "data=t: run a, row 3: value inf is infinite; fix it, or leave the cell empty",
        ),
        (
            [("a", i, v) for i, v in enumerate((20, 30, 40, 45))],
            {"r0": 0.2},
            "data=t: run a, row 1: r0 0.2 beside values from 20 to 45: per cent or not.*",
        ),
        (
            [("a", i, v) for i, v in enumerate((20, 30, 40, 45))],
            {"stderr": 0.02},  # 4 million samples
            "data=t: run a, row 1: stderr 0.02 beside values from 20 to 45: per cent or not.*",
        ),
        (
            UP,
            {"samples_per_prompt": 8},
            "samples_per_prompt=8: t has no passes_per_prompt; give trials= or stderr=",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(rows, options, want):
    assert re.fullmatch(want, message(rows, **options))


def test_small_errors_in_per_cent_are_those_of_many_samples_or_named():
    rows = [("a", i, v, 0.09) for i, v in enumerate((90.0, 95.0, 98.0, 99.0))]
    assert message(rows, "run C value stderr").startswith(
        "data=t: run a, row 1: stderr 0.09 beside"
    )
    for given, options in ((rows[3:], {}), (rows, {"scale": "percent"})):  # 12,000 at 99 %
        found = read(
            [*given, *[("a", 4 + i, 99.0, 0.09) for i in range(4)]], "run C value stderr", **options
        )
        assert found.frame["stderr"].tolist() == pytest.approx([0.0009] * len(found.frame))


@pytest.mark.parametrize(
    ("columns", "last", "options", "want"),
    [
        ("passes trials", (9, 8), {}, "passes 9 is not between 0 and trials 8; fix it"),
        ("passes trials", (-1, 8), {}, "passes -1 is not between 0 and trials 8; fix it"),
        ("value passes trials", (0.26, 2, 8), {}, "value 0.26 is not passes 2 / trials 8; name .*"),
        ("passes_per_prompt trials", ([1, 2], 7), {}, "passes_per_prompt are not counts of 3.5 .*"),
        ("passes_per_prompt trials", ([1, 5], 8), {}, "passes_per_prompt are not counts of 4 .*"),
        ("passes_per_prompt trials", ([1, -1], 8), {}, "passes_per_prompt are not counts of 4 .*"),
        ("passes_per_prompt trials", ([1.5, 1], 8), {}, "passes_per_prompt are not counts of 4 .*"),
        ("passes_per_prompt trials", ("[1, 2", 8), {}, "passes_per_prompt are not counts .*"),
        ("passes_per_prompt trials", (["x"], 8), {}, "passes_per_prompt are not counts .*"),
        ("passes_per_prompt trials", ([[1], [1]], 8), {}, "passes_per_prompt are not counts .*"),
        ("passes_per_prompt trials", ([], 8), {}, "passes_per_prompt are not counts .*"),
        ("passes_per_prompt trials", (7, 8), {}, "passes_per_prompt are not counts .*"),
        ("passes_per_prompt trials", ([1], 8), {"samples_per_prompt": 4}, ".* of 4 samples .*"),
        ("passes_per_prompt passes", ([1, 1], 3), {"samples_per_prompt": 4}, ".* counts of 4 .*"),
        ("value truth", (0.25, 2), {}, r"truth 2 is outside \[0, 1\]; fix it, or .*"),
    ],
)  # fmt: skip
def test_counts_that_contradict_each_other(columns, last, options, want):
    good = {"passes": 2, "trials": 8, "value": 0.25, "passes_per_prompt": [1, 1], "truth": 0.5}
    rows = [("a", i, *(good[c] for c in columns.split())) for i in range(4)]
    text = message([*rows, ("a", 4, *last)], f"run C {columns}", **options)
    assert re.fullmatch(f"data=t: run a, row 5: {want}", text)


@pytest.mark.parametrize(("column", "options"), [
    ("recipe", {}), ("seed", {}), ("truth", {}), ("T", {"axes": ["T"]}), ("eps", {"r0": "eps"}),
    ("base", {"start": "base"}),
])  # fmt: skip
def test_a_run_has_one_of_each(column, options):
    rows = [("a", c, 0.1 * c, 0.25 if c < 3 else 0.5) for c in range(4)]
    assert message(rows, f"run C value {column}", **options) == (
        f"data=t: run a: several values of {'start' if column == 'base' else column} (0.25, 0.5); "
        "give each run one, or name the run with run="
    )


def test_an_axis_is_no_r0_and_stands_once():
    rows = [("a", c, 0.1 * c, 0.1) for c in range(4)]
    for options in ({"axes": ["T"], "r0": "T"}, {"axes": ["T", "T"]}):
        text = message(rows, "run C value T", **options)
        assert text == "axes=T: a name reserved by Evals; rename that column"


def test_r0_is_said_for_every_run():
    rows = [(r, c, 0.1, 0.05 if r == "a" else None) for r in "ab" for c in range(4)]
    assert message(rows, "run C value eps", r0="eps") == (
        "data=t: run b, row 5: eps is empty; give each run one R0"
    )


# ---------------------------------------------------------------- Evals


def study():
    rows = [
        (run, recipe, seed, c, v)
        for run, recipe, seed, last in (("a0", "a", 0, 8), ("a1", "a", 1, 8), ("b0", "b", 0, 4))
        for c, v in zip(np.linspace(0, last, 5), (0.1, 0.2, 0.3, 0.4, 0.4 + seed / 8), strict=True)
    ]
    return read(rows, "run recipe seed C value")


def test_until_and_after_cut_each_run():
    evals = study()
    half = evals.until(share=0.5)
    assert half.frame["compute"].tolist() == [0, 2, 4, 0, 2, 4, 0, 1, 2]
    assert evals.after(share=0.5).frame["compute"].tolist() == [6, 8, 6, 8, 3, 4]
    assert evals.until(4).frame["compute"].tolist() == [0, 2, 4, 0, 2, 4, 0, 1, 2, 3, 4]
    assert evals.until(compute=4).sha256() == evals.until(4).sha256()
    assert evals.after(4).runs == ["a0", "a1"]
    assert list(half.frame.index) == list(range(9))
    assert half.notes == evals.notes and half.compute_label == evals.compute_label
    assert evals.until(share=1).sha256() == evals.sha256()
    assert len(evals.frame) == 15


def test_until_says_which_runs_it_leaves_out(capsys):
    rows = [
        (run, c, c / 100) for run, first in (("a", 0), ("late", 60)) for c in range(first, 90, 5)
    ]
    evals = read(rows, "run C value")
    capsys.readouterr()
    half = evals.until(share=0.5)
    said = "t: run late: no evaluation up to 0.5 of its end: left out"
    assert half.runs == ["a"] and half.notes == (*evals.notes, said)
    assert capsys.readouterr().out == f"{said}\n"
    assert evals.until(40).notes[-1] == "t: run late: no evaluation up to C = 40: left out"
    assert evals.until(60).notes == evals.notes


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, "share=None: needs exactly one of compute and share; give compute=C or"),
        ({"compute": 1, "share": 0.5}, "share=0.5: needs exactly one of compute and share"),
        ({"share": 0}, r"share=0: not in \(0, 1\]; 0.5 keeps the first half"),
        ({"share": 1.1}, r"share=1.1: not in \(0, 1\]; 0.5 keeps the first half"),
        ({"compute": -1}, "data=t: no evaluation is left; cut elsewhere"),
    ],
)
def test_cuts_that_cannot_be_made(options, want):
    with pytest.raises(InputError, match=want):
        study().until(**options)


def test_select():
    evals = study()
    assert evals.select(["b0", "a0"]).runs == ["a0", "b0"]
    with pytest.raises(InputError, match="runs=c: no such run; use names among a0, a1, b0"):
        evals.select(["c", "a0"])


def test_rename():
    evals = study()
    new = evals.rename({"a0": "first"})
    assert new.runs == ["first", "a1", "b0"] and evals.runs == ["a0", "a1", "b0"]
    assert new.frame.drop(columns="run").equals(evals.frame.drop(columns="run"))
    own = read([(r, c, 0.1 * c) for r in "ab" for c in range(4)], "run C value").rename({"a": "x"})
    assert own.frame["recipe"].unique().tolist() == ["x", "b"]  # a recipe called after its run
    assert evals.rename({"a0": "a1", "a1": "a0"}).runs == ["a1", "a0", "b0"]
    with pytest.raises(InputError, match="names=a1: the name of two runs; give each its own"):
        evals.rename({"a0": "a1"})
    with pytest.raises(InputError, match="runs=c: no such run"):
        evals.rename({"c": "d"})


def test_it_says_what_it_holds():
    assert repr(study()) == "3 runs x 5 evaluations, 2 recipes, C up to 8"
    rows = [(r, t, c, 0.1 * c) for r, t, n in (("a", 9, 4), ("b", 11, 6)) for c in range(n)]
    assert str(read(rows, "run T C value", axes=["T"])) == (
        "2 runs x 4 to 6 evaluations, 2 recipes, T (9, 11), C up to 5"
    )
    many = [(f"r{t}", t, c, 0.1 * c) for t in range(9) for c in range(4)]
    assert ", T (9), " in repr(read(many, "run T C value", axes=["T"]))


def test_evals_need_their_columns():
    with pytest.raises(InputError, match="frame=: lacks the columns value, T; make Evals with"):
        Evals(study().frame.drop(columns="value"), axes=("T",))


def test_an_option_that_does_not_exist_is_an_error():
    with pytest.raises(TypeError, match="passess"):
        read(UP, passess="x")


# ---------------------------------------------------------------- concat


def test_concat():
    evals = study()
    axes = read([("z", c, 0.1 * c, 9) for c in range(4)], "run C value T", axes=["T"], trials=50)
    both = Evals.concat([evals, axes])
    assert both.runs == ["a0", "a1", "b0", "z"] and both.axes == ("T",)
    assert both.frame["T"].tolist() == ["default"] * 15 + ["9"] * 4
    assert both.frame["axes"].unique().tolist() == ["T=default", "T=9"]
    assert both.notes == (
        *evals.notes, *axes.notes, "concat: axis T: 3 runs have no level: level default"
    )  # fmt: skip
    np.testing.assert_array_equal(both.frame["trials"], [np.nan] * 15 + [50] * 4)
    assert both.frame["seed"].isna().sum() == 4
    assert (both.compute_label, both.title) == ("C", "t")


def test_concat_keeps_a_run_once():
    evals = study()
    parts = [evals.select(["a0", "b0"]), evals.select(["b0", "a1"])]
    assert Evals.concat(parts).runs == ["a0", "b0", "a1"]
    assert Evals.concat([evals, evals]).sha256() == evals.sha256()
    with pytest.raises(InputError, match="run=a0: is in several parts with different rows"):
        Evals.concat([evals, evals.until(share=0.5)])


def test_concat_of_other_units():
    other = read(UP, "run tokens value")
    said = "concat=C, tokens: not one unit of compute; give Evals of"
    with pytest.raises(InputError, match=said):
        Evals.concat([study(), other])
    with pytest.raises(InputError, match="not one unit of compute"):
        Evals.concat([])


# ---------------------------------------------------------------- the digest


def changed(column, i, cell):
    evals = study()
    frame = evals.frame.copy()
    frame.loc[i, column] = cell
    return Evals(frame)


def test_the_digest_changes_with_every_cell_and_the_order():
    evals = study()
    others = [changed("value", 3, np.nextafter(evals.frame["value"].iloc[3], 1))]
    others += [changed("run", 0, "a"), changed("start", 0, "x"), changed("trials", 2, 8.0)]
    others += [changed("compute", 0, 1e-300), Evals(evals.frame[::-1]), evals.until(share=0.9)]
    others += [Evals(evals.frame.rename(columns={"start": "Start"}).assign(start="x"))]
    digests = {other.sha256() for other in [evals, *others]}
    assert len(digests) == 1 + len(others)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    with_axis = evals.frame.assign(T=1)
    assert Evals(with_axis).sha256() != Evals(with_axis, axes=("T",)).sha256()


def test_the_digest_is_of_numbers_not_of_how_they_are_kept():
    evals = study()
    frame = evals.frame.assign(seed=evals.frame["seed"].astype(float), title="no")
    assert Evals(frame.drop(columns="title"), title="x").sha256() == evals.sha256()
    assert changed("compute", 0, -0.0).sha256() == evals.sha256()
    other_nan = np.full(len(frame), 0xFFF8000000000001, np.uint64).view(np.float64)
    assert Evals(evals.frame.assign(trials=other_nan)).sha256() == evals.sha256()


def test_the_digest_survives_another_process(tmp_path):
    file = tmp_path / "t.parquet"
    evals = study()
    evals.frame.to_parquet(file)
    program = (
        "import sys; from rlx.scaling.data import Evals\n"
        "evals = Evals.read(sys.argv[1], start='start')\n"
        "print(evals.sha256())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True
    )
    assert done.stdout.split()[-1] == evals.sha256(), done.stderr


def test_the_digest_is_the_documented_one():
    """SHA-256 of the names, then of each column: little-endian float64, or JSON text."""
    import hashlib
    import struct

    evals = study()
    text = json.dumps([list(evals.frame.columns), []]).encode()
    for column in evals.frame:
        cells = evals.frame[column].tolist()
        if all(isinstance(cell, int | float) for cell in cells):
            text += b"".join(struct.pack("<d", cell) for cell in cells)
        else:
            text += json.dumps(cells).encode()
    assert hashlib.sha256(text).hexdigest() == evals.sha256()


def test_short_names():
    names = ["Qwen-GSM8K-sp-b4-0118", "qwen-gsm8k-n16-0118", "Qwen-GSM8K-n64-0118"]
    assert list(short_names(names).values()) == ["sp-b4", "n16", "n64"]
    assert short_names(["a-b"]) == {"a-b": "a-b"}
    assert short_names(["a", "a-a"]) == {"a": "a", "a-a": "a-a"}  # nothing would be left
