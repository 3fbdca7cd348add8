"""`Evals`: evaluations of RL runs against compute, clean, with the noise of each.

    evals = Evals.read("runs/default")                       # any source, see rlx.scaling.readers
    evals = Evals.from_frame(table, recipe="algo", compute="gpu_hours", passes="k", trials="n")
    half = evals.until(share=0.5)                            # the data of a forecast

Standard error of a value, from sampling alone, by the first rule that applies (0 is unknown):

    given, as a column or as one number
    sqrt(sum_i p_i (1 - p_i) / (n^2 (k - 1))),  p_i = c_i / k     c_i of k samples of prompt i pass
    sqrt(p (1 - p) / trials),  p = (passes + 1/2) / (trials + 1)  totals only
    NaN                                                          unknown

The second is unbiased for a fixed set of n prompts; the third overstates its noise. Every
treatment of the data is printed in one line and kept in `Evals.notes`; data that cannot be used
raise `InputError`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.files import NUMBER, text
from rlx.scaling.readers import load, long_form
from rlx.scaling.source import Notes, Options, Source, r0_column, some, stated

COLUMNS = [
    "run",  # name of the run
    "recipe",  # what the run replicates; the run's name if unknown
    "seed",  # NaN or "" if unknown
    "axes",  # the levels of all axes, "key=value, key=value", or ""
    "compute",  # training compute C, in the source's unit
    "value",  # pass rate, a fraction
    "stderr",  # standard error of `value` from sampling, a fraction, NaN if unknown
    "passes",  # graded samples that passed, NaN if unknown
    "trials",  # graded samples, NaN if unknown
    "truth",  # exact ceiling, a fraction, NaN if unknown
    "start",  # the initial policy; runs with the same label share R0
]
OF_SOURCE = ["row", "passes_per_prompt", "samples_per_prompt", "evaluation"]  # not kept
PER_RUN = ("recipe", "seed", "truth", "start")  # one value per run, as the axes and r0
COUNT_TOLERANCE = 0.005  # between a value, rounded by a log, and passes / trials
MOST_TRIALS = 100_000  # of an evaluation, unless the user says scale=percent
LEAST_PERCENT = 20  # smaller values are not taken as per cents unless the user says so
SHAPED = "a shaped or negative reward is not a pass rate: name the pass rate with value="
MOST_COPIES = 3  # groups of duplicate runs to name


@dataclass(frozen=True, eq=False)
class Evals:
    """Evaluations of the runs of a study.

    frame: one row per evaluation, the rows of a run together in order of compute, columns COLUMNS,
        then one per name in `axes` with the run's level, then the column of r0 if requested.
    axes: names of the columns of design choices.
    compute_label, value_label, title: for figures.
    notes: every treatment and inference, one line each, as printed.
    """

    frame: pd.DataFrame
    axes: tuple[str, ...] = ()
    compute_label: str = "compute C"
    value_label: str = "pass rate (held-out)"
    title: str = ""
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self):
        missing = [c for c in (*COLUMNS, *self.axes) if c not in self.frame]
        if missing:
            reason = f"lacks the columns {', '.join(missing)}"
            raise InputError("frame", "", reason, "make Evals with Evals.from_frame")

    @classmethod
    def read(cls, path: Path | str, **options) -> Evals:
        """The curves at `path`.

        Args:
            path: a study or run directory of rlx; a .csv, .jsonl or .parquet file with one
                evaluation per row; the CSV that W&B exports from a chart; a directory of
                TensorBoard event files; trainer_state.json of transformers or TRL, or a directory
                of runs that have one.
            options: fields of `Options`.

        Raises:
            InputError: something is missing, ambiguous or contradictory, compute decreases within
                a run, a value is not a pass rate, or no run has enough points.
        """
        path, notes = Path(path), Notes()
        chosen = Options(**options)
        evals = _build(load(path, chosen, notes), chosen, notes)
        return replace(evals, title=path.resolve().name)

    @classmethod
    def from_frame(cls, table: pd.DataFrame, *, name: str = "frame", **options) -> Evals:
        """The curves of a table with one evaluation per row; `name` identifies it in messages.

        Options and errors are those of `read`.
        """
        notes, chosen = Notes(), Options(**options)
        return _build(long_form(table, name, chosen, notes), chosen, notes)

    @classmethod
    def concat(cls, parts: Sequence[Evals]) -> Evals:
        """Several sources as one study.

        A run that is in several parts with the same rows is kept once. If a part lacks an axis, its
        level there is "default".

        Raises:
            InputError: no part, different compute labels, or one run name with different rows.
        """
        labels = list(dict.fromkeys(part.compute_label for part in parts))
        if len(labels) != 1:
            remedy = "give Evals of one unit of compute"
            raise InputError("concat", ", ".join(labels), "not one unit of compute", remedy)
        seen: dict[str, str] = {}
        frames = []
        for part in parts:
            fresh = [run for run in part.runs if run not in seen]
            for run in part.runs:
                content = part.select([run]).sha256()
                if seen.setdefault(run, content) != content:
                    reason = "is in several parts with different rows"
                    raise InputError("run", run, reason, "rename one of the two")
            frames.append(part.frame[part.frame["run"].isin(fresh)])
        axes = tuple(dict.fromkeys(axis for part in parts for axis in part.axes))
        columns = dict.fromkeys([*COLUMNS, *axes, *(c for frame in frames for c in frame)])
        notes = Notes(note for part in parts for note in part.notes)
        values = dict.fromkeys(part.value_label for part in parts)
        return cls(
            _typed(pd.concat(frames, ignore_index=True)[list(columns)], axes, "concat", notes),
            axes,
            labels[0],
            values.popitem()[0] if len(values) == 1 else "pass rate (held-out)",
            " + ".join(dict.fromkeys(part.title for part in parts if part.title)),
            tuple(notes),
        )

    @property
    def runs(self) -> list[str]:
        """Names of the runs, in the order of the table."""
        return self.frame["run"].unique().tolist()

    def select(self, runs: Sequence[str]) -> Evals:
        """The runs named, in the order of the table. Raises InputError on an unknown name."""
        unknown = [run for run in runs if run not in self.runs]
        if unknown:
            remedy = f"use names among {', '.join(self.runs[:8])}"
            raise InputError("runs", ", ".join(unknown), "no such run", remedy)
        return self.with_rows(self.frame["run"].isin(runs))

    def rename(self, names: Mapping[str, str]) -> Evals:
        """The runs under other names, and with them recipes that are called after a run.

        Raises InputError on a run it lacks, and if two runs would get one name.
        """
        self.select(list(names))
        runs = [names.get(run, run) for run in self.runs]
        if twice := [run for run in runs if runs.count(run) > 1]:
            raise InputError("names", twice[0], "the name of two runs", "give each its own")
        frame = self.frame.replace({"run": dict(names), "recipe": dict(names)})
        return replace(self, frame=frame)

    def until(self, compute: float | None = None, *, share: float | None = None) -> Evals:
        """Each run cut to C <= compute, or to C <= share * (the run's last C).

        A run without evaluations there is left out, and a note says so. Raises InputError if all
        are, or unless one of the two is given.
        """
        early = self.with_rows(self.early(compute, share))
        there, notes = set(early.runs), Notes(self.notes)
        gone = dict.fromkeys([run for run in self.runs if run not in there], 0)
        end = f"C = {compute:g}" if share is None else f"{share:g} of its end"
        notes.say_runs(self.title or "until", gone, f"no evaluation up to {end}: left out")
        return replace(early, notes=tuple(notes))

    def after(self, compute: float | None = None, *, share: float | None = None) -> Evals:
        """The complement of `until`."""
        return self.with_rows(~self.early(compute, share))

    def with_rows(self, keep: pd.Series) -> Evals:
        """The rows where `keep`. Raises InputError if there are none."""
        if not keep.any():
            raise InputError("data", self.title, "no evaluation is left", "cut elsewhere")
        return replace(self, frame=self.frame[keep].reset_index(drop=True))

    def sha256(self) -> str:
        """Hex digest of the frame and the names of the axes, not of labels and notes.

        Numbers count as float64 and other cells as text, so the digest survives saving and loading
        and another process; it changes with the order of rows and columns.
        """
        digest = hashlib.sha256(json.dumps([list(self.frame.columns), self.axes]).encode())
        for column in self.frame:
            cells = self.frame[column]
            if pd.api.types.is_numeric_dtype(cells):
                number_M = cells.to_numpy(np.float64, copy=True) + 0.0  # -0 becomes 0
                number_M[np.isnan(number_M)] = np.nan  # one bit pattern for NaN
                digest.update(number_M.astype("<f8").tobytes())
            else:
                digest.update(json.dumps([str(cell) for cell in cells]).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        count = self.frame["run"].value_counts()
        points = f"{count.min()}" if count.nunique() == 1 else f"{count.min()} to {count.max()}"
        levels = {axis: list(map(str, self.frame[axis].unique())) for axis in self.axes}
        words = [
            f"{len(count)} runs x {points} evaluations",
            f"{self.frame['recipe'].nunique()} recipes",
            *(f"{axis} ({', '.join(x) if len(x) < 7 else len(x)})" for axis, x in levels.items()),
            f"{self.compute_label} up to {self.frame['compute'].max():.3g}",
        ]
        return ", ".join(words)

    def early(self, compute: float | None = None, share: float | None = None) -> pd.Series:
        """Whether `until` keeps a row."""
        if (compute is None) == (share is None):
            reason = "needs exactly one of compute and share"
            raise InputError("share", share, reason, "give compute=C or share=0.5")
        if compute is not None:
            return self.frame["compute"] <= compute
        if share is None or not 0 < share <= 1:
            raise InputError("share", share, "not in (0, 1]", "0.5 keeps the first half")
        last = self.frame.groupby("run")["compute"].transform("max")
        early = self.frame["compute"] <= share * last
        if not early.any():
            begins = (self.frame["compute"] / last).min()
            reason = (
                f"{self.compute_label} starts at {begins:.3g} of its end, after {share:g} of it"
            )
            remedy = "subtract its first value, name another with compute=, or cut later"
            raise InputError("data", self.title, reason, remedy)
        return early


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name without the words (split at - / and space) common to all."""
    words = {name: re.split(r"([-/ ])", name) for name in dict.fromkeys(names)}
    shared = set.intersection(*({w.lower() for w in ws} for ws in words.values()))
    short = {
        name: "-".join(w for w in ws[::2] if w.lower() not in shared) for name, ws in words.items()
    }
    distinct = len(set(short.values())) == len(short) and all(short.values())
    return short if distinct and len(short) > 1 else {name: name for name in words}


# ------------------------------------------------------------------ from a source to Evals


def _build(source: Source, options: Options, notes: Notes) -> Evals:
    """Evals from a source: columns, then rows, then runs are checked and treated."""
    name, r0 = source.name, r0_column(options.r0)
    own = [*source.axes, *([r0] if r0 else [])]
    for key, column in [*(("axes", axis) for axis in source.axes), ("r0", r0)]:
        if column in [*COLUMNS, *OF_SOURCE] or own.count(str(column)) > 1:
            raise InputError(key, column, "a name reserved by Evals", "rename that column")
    table = source.table.reset_index(drop=True)
    table = table.reindex(columns=[*COLUMNS, *own, *OF_SOURCE])
    table = _counted(_scaled(table, name, options, r0, notes), name)
    lost = table["run"].isna()
    _check(~lost | table["value"].isna(), table, name, "the run has no name", "fill it in")
    if lost.any():
        notes.say(f"{name}: {lost.sum()} rows without run and value dropped")
    order = pd.factorize(table.loc[~lost, "run"])[0].argsort(kind="stable")
    table = table[~lost].iloc[order].reset_index(drop=True)  # the rows of a run together
    name_run = ", or name the run with run=" if source.named_runs else ""
    table = _treated(table, name, [*PER_RUN, *own], name_run, notes)
    count = table["run"].map(table["run"].value_counts())
    least = options.min_points
    short = table.loc[count < least, "run"].value_counts(sort=False).to_dict()
    notes.say_runs(name, short, f"{{n}} points, fewer than {least}: left out")
    table = _with_stderr(table[count >= least].reset_index(drop=True))
    if table.empty:
        reason = f"no run has {least} points"
        raise InputError("data", name, reason, "name other columns, or lower min_points")
    _say_copies(table, name, notes)
    _say_offset(table, source, notes)
    if r0:
        _check(table[r0].notna(), table, name, f"{r0} is empty", "give each run one R0")
    for axis in source.axes if source.named_runs else ():
        given = table[axis].notna() | ~(table[axis] == "default").any()
        _check(given, table, name, f"axis {axis} is empty, other runs say default", "fill it in")
    table["run"] = table["run"].astype(str)
    table["recipe"] = table["recipe"].astype(object).fillna(table["run"]).astype(str)
    table = _typed(_with_starts(table, name, notes), source.axes, name, notes)
    labels = {"compute_label": source.compute_label, "value_label": source.value_label}
    return Evals(table[[*COLUMNS, *own]], source.axes, title=name, notes=tuple(notes), **labels)


def _check(ok_M: pd.Series, table: pd.DataFrame, name: str, reason: str, remedy: str) -> None:
    """Raises InputError about the first row that is not ok; `reason` may name its columns."""
    if not ok_M.all():
        row = table[~ok_M].iloc[0]
        where = f"run {row['run']}, {row['row']}: "
        raise InputError("data", name, where + reason.format(**row), remedy)


def _scaled(
    table: pd.DataFrame, name: str, options: Options, r0: str | None, notes: Notes
) -> pd.DataFrame:
    """Numbers given as options filled in; value, stderr, truth and r0 checked, as fractions."""
    entered = {"trials": options.trials, "stderr": options.stderr, r0: options.r0}
    entered["samples_per_prompt"] = options.samples_per_prompt
    for column, option in entered.items():
        number = stated(option)
        if column and number is not None:
            table[column] = number
            notes.say(f"{name}: {column}={number:g} on every row, as given")
    samples, listed = stated(options.samples_per_prompt), table["passes_per_prompt"].notna().any()
    if samples is not None and not listed:
        reason, remedy = f"{name} has no passes_per_prompt", "give trials= or stderr="
        raise InputError("samples_per_prompt", f"{samples:g}", reason, remedy)
    finite = ~np.isinf(table["value"])
    _check(finite, table, name, "value {value:g} is infinite", "fix it, or leave the cell empty")
    scale = options.scale or _inferred_scale(table, name, r0, notes)
    full, remedy = (100, "fix it") if scale == "percent" else (1, "fix it, or give scale=percent")
    if options.scale is None and not table["value"].dropna().between(0, full).all():
        remedy = f"fix it, or give scale=fraction or percent; {SHAPED}"
    for column, most in (("value", full), ("truth", full), ("stderr", full / 2)):
        cells = table[column]  # the sd of numbers in [0, 1] is at most 1/2
        outside = f"{column} {{{column}:g}} is outside [0, {most:g}]"
        _check(cells.isna() | cells.between(0, most), table, name, outside, remedy)
    columns = ["value", "truth", "stderr", *([r0] if r0 else [])]
    if r0:
        wrong = table[table[r0].notna() & ~table[r0].between(0, full, inclusive="left")]
        for _, row in wrong[:1].iterrows():
            reason = f"run {row['run']}: not a pass rate in [0, {full})"
            raise InputError("r0", f"{row[r0]:g}", reason, "give it in the unit of value")
    return table.assign(**{column: table[column] / full for column in columns})


def _inferred_scale(table: pd.DataFrame, name: str, r0: str | None, notes: Notes) -> str:
    """The unit of most values of every run: fractions are at most 1, per cents reach 20.

    Raises:
        InputError: runs disagree, values are neither, or per cents are beside what looks like a
            fraction: an r0 or a ceiling of at most 1, and a tenth of every value, or the standard
            error of more than MOST_TRIALS samples.
    """
    by_run = table.groupby("run", sort=False)["value"]
    top = by_run.max()
    low, high = table["value"].min(), top.max()
    if not high > 1:
        return "fraction"
    middle = by_run.median()
    small, large = middle[middle <= 1], top[top > 1]
    if high < LEAST_PERCENT or low < 0:
        reason = (
            f"{name}: values from {low:.9g} to {high:.9g}: neither fractions nor plainly per cents"
        )
        raise InputError("scale", "", reason, f"give scale=percent if they are; {SHAPED}")
    if len(small):
        reason = (
            f"{name} mixes units: most values of run {small.index[0]} are at most 1, "
            f"run {large.index[0]} goes up to {large.iloc[0]:g}"
        )
        raise InputError("scale", "", reason, "give scale=fraction or percent, or fix the values")
    p = (table["value"] / 100).clip(0, 1)
    least = dict.fromkeys(["truth", *([r0] if r0 else [])], min(1, low / 10))
    for column, bound in {**least, "stderr": 100 * np.sqrt(p * (1 - p) / MOST_TRIALS)}.items():
        cells = table[column]
        other = f"{column} {{{column}:g}} beside values from {low:g} to {high:g}: per cent or not?"
        remedy = "give both in one unit, or scale=percent if they are"
        _check(~((cells > 0) & (cells <= bound)), table, name, other, remedy)
    notes.say(f"{name}: values up to {high:g}: read as scale=percent")
    return "percent"


def _counted(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """passes, trials and value from counts; stderr from the counts of each prompt."""
    listed = table["passes_per_prompt"].map(lambda cell: isinstance(cell, Sequence))
    table = _prompts_counted(table, table.loc[listed, "passes_per_prompt"], name)
    trials, passes, value = table["trials"], table["passes"], table["value"]
    _check(~(trials <= 0), table, name, "trials {trials:g} is not positive", "fix it")
    few = "passes {passes:g} is not between 0 and trials {trials:g}"
    _check(passes.isna() | trials.isna() | passes.between(0, trials), table, name, few, "fix it")
    for key, count in (("passes", passes), ("trials", trials)):
        whole = count.isna() | ((count - count.round()).abs() <= 1e-6 * count.clip(lower=1))
        partial = f"{key} {{{key}:g}} is not a whole number"
        _check(whole, table, name, partial, "give mean scores with value= in place of passes=")
    rate = passes / trials
    other = "value {value:g} is not passes {passes:g} / trials {trials:g}"
    apart = (value - rate).abs() > COUNT_TOLERANCE
    _check(~apart, table, name, other, "name the columns that belong together")
    table["value"] = value.fillna(rate)
    return table


def _prompts_counted(table: pd.DataFrame, cells: pd.Series, name: str) -> pd.DataFrame:
    """passes = sum_n c_n, trials = n k and stderr (see the module) of the rows of `cells`."""
    table, wrong = table.copy(), "passes_per_prompt are not counts of {k:g} samples that agree with"
    for length, rows in cells.groupby(cells.map(len)):
        n = int(length)  # ty: ignore[invalid-argument-type]
        c_MN = np.asarray(rows.to_list(), np.float64).reshape(len(rows), n)
        of = table.loc[rows.index]
        k_M = of["samples_per_prompt"].fillna(of["trials"] / n if n else np.nan).to_numpy()
        trials_M, passes_M = k_M * n, c_MN.sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            counts = ((c_MN >= 0) & (c_MN <= k_M[:, None]) & (c_MN % 1 == 0)).all(axis=1)
            p_MN = c_MN / k_M[:, None]
            var_M = np.sum(p_MN * (1 - p_MN), axis=1) / (n**2 * (k_M - 1))
            fits = (n > 0) & (k_M > 0) & (k_M % 1 == 0) & counts
        for key, count_M in (("trials", trials_M), ("passes", passes_M)):
            fits &= of[key].isna().to_numpy() | (of[key].to_numpy() == count_M)
        remedy = "fix them, or give samples_per_prompt"
        _check(pd.Series(fits, of.index), of.assign(k=k_M), name, f"{wrong} the totals", remedy)
        unknown = (k_M > 1) & ~(of["stderr"].to_numpy() > 0)
        table.loc[rows.index, "trials"], table.loc[rows.index, "passes"] = trials_M, passes_M
        table.loc[rows.index[unknown], "stderr"] = np.sqrt(var_M[unknown])
    return table


def _treated(
    table: pd.DataFrame, name: str, per_run: list[str], name_run: str, notes: Notes
) -> pd.DataFrame:
    """Each run: empty rows dropped, one value of each per_run, compute checked, repeats merged."""
    empty = table["compute"].isna() | table["value"].isna()
    dropped = table.loc[empty, "run"].value_counts(sort=False).to_dict()
    notes.say_runs(name, dropped, "{n} rows with an empty cell dropped")
    table = table[~empty].reset_index(drop=True)
    for column in per_run:
        table[column] = _one_each(table, column, name, name_run)
    compute = table["compute"]
    finite = np.isfinite(compute) & (compute >= 0)
    _check(finite, table, name, "compute {compute:g} is negative or infinite", "fix it")
    before = table.groupby("run", sort=False)["compute"].shift(fill_value=0)
    _check(
        compute >= before,
        table.assign(before=before),
        name,
        "compute falls from {before:g} to {compute:g}",
        "sort the rows, cut what a resumed run repeats, add what it had spent if it counts from 0"
        + name_run,
    )
    return _merged(table, name, notes)


def _one_each(table: pd.DataFrame, column: str, name: str, name_run: str) -> pd.Series:
    """The column, filled with the run's value where it is empty."""
    given = table.loc[table[column].notna(), ["run", column]].drop_duplicates()
    twice = given[given["run"].duplicated(keep=False)]
    if len(twice):
        first, second = twice.loc[twice["run"] == twice["run"].iloc[0], column].iloc[:2]
        reason = f"run {twice['run'].iloc[0]}: several values of {column} ({first}, {second})"
        raise InputError("data", name, reason, f"give each run one{name_run}")
    of_run = table["run"].map(given.set_index("run")[column])
    return table[column].where(table[column].notna() | of_run.isna(), of_run)


def _merged(table: pd.DataFrame, name: str, notes: Notes) -> pd.DataFrame:
    """One row per run and compute: exact copies dropped; counts pooled, else values averaged.

    value = sum w y / sum w,  stderr = sqrt(sum w^2 stderr^2) / sum w,  w = trials, else 1
    """
    copy = table.duplicated(["run", "compute", "value", "trials", "evaluation"])
    copies = table.loc[copy, "run"].value_counts(sort=False).to_dict()
    notes.say_runs(name, copies, "{n} exact copies dropped")
    table = table[~copy].reset_index(drop=True)
    again = table.duplicated(["run", "compute"])
    if not again.any():
        return table
    by = table.groupby(["run", "compute"], sort=False)
    pooled = by["trials"].transform("count") == by["trials"].transform("size")
    for how, of in (("counts pooled", again & pooled), ("averaged", again & ~pooled)):
        repeats = table.loc[of, "run"].value_counts(sort=False).to_dict()
        notes.say_runs(name, repeats, f"{{n}} repeated values of compute: {how}")
    weight = table["trials"].where(pooled, 1.0)
    parts = pd.DataFrame({"w": weight, "wy": weight * table["value"]})
    parts["var"] = (weight * table["stderr"]) ** 2
    parts[["passes", "trials"]] = table[["passes", "trials"]]
    by = parts.groupby([table["run"], table["compute"]], sort=False)
    total = by.transform("sum").where(by.transform("count").eq(by["w"].transform("size"), axis=0))
    merged = table.assign(value=total["wy"] / total["w"], stderr=np.sqrt(total["var"]) / total["w"])
    merged[["passes", "trials"]] = total[["passes", "trials"]]
    several = table.duplicated(["run", "compute"], keep=False)
    return table.where(~several, merged)[~again].reset_index(drop=True)


def _say_copies(table: pd.DataFrame, name: str, notes: Notes) -> None:
    """Name runs with the same evaluations: one run under several names counts several times."""
    names: dict[bytes, list[str]] = {}
    cells = table[["compute", "value"]].to_numpy()
    for run, at in table.groupby("run", sort=False).indices.items():
        names.setdefault(cells[at].tobytes(), []).append(str(run))
    copies = [same for same in names.values() if len(same) > 1]
    for same in copies[:MOST_COPIES]:
        notes.say(f"{name}: runs {some(same)} have the same evaluations; all are kept")
    if copies[MOST_COPIES:]:
        notes.say(f"{name}: {len(copies) - MOST_COPIES} more groups of runs have the same")


def _say_offset(table: pd.DataFrame, source: Source, notes: Notes) -> None:
    """Name runs whose compute starts past the middle of its range: an offset, or a date."""
    by_run = table.groupby("run", sort=False)["compute"]
    share = by_run.first() / by_run.last()
    late = share[share > 0.5]
    if len(late):
        what = f"{source.compute_label} starts at {late.min():.3g} of its end; if it counts from "
        what += "before the run, subtract that"
        notes.say_runs(source.name, dict.fromkeys(late.index, 0), what)


def _with_stderr(table: pd.DataFrame) -> pd.DataFrame:
    """The binomial standard error, p shrunk towards 1/2, if nothing better is known."""
    trials = table["trials"]
    passes = table["passes"].fillna(table["value"] * trials)
    p = (passes + 0.5) / (trials + 1)
    known = table["stderr"].where(table["stderr"] > 0)
    return table.assign(stderr=known.fillna(np.sqrt(p * (1 - p) / trials)))


def _with_starts(table: pd.DataFrame, name: str, notes: Notes) -> pd.DataFrame:
    """A start for runs without one: those with the same evaluation at C = 0 share it."""
    first = table.drop_duplicates("run").set_index("run")
    first = first[first["start"].isna()]
    label, group = {}, {}
    for run, row in first.iterrows():
        prompts = row["passes_per_prompt"]
        prompts = tuple(prompts) if isinstance(prompts, Sequence) else None
        seen = (row["value"], np.nan_to_num(row["trials"]), prompts)
        label[run] = group.setdefault(seen if row["compute"] == 0 else run, f"start of {run}")
    if label:
        shared = f"{len(label)} runs, {len(set(label.values()))} starts"
        notes.say(f"{name}: starts inferred from the evaluations at C = 0: {shared}")
    start = table["start"].astype(object).fillna(table["run"].map(label))
    return table.assign(start=start.astype(str))


def _typed(table: pd.DataFrame, axes: Sequence[str], name: str, notes: Notes) -> pd.DataFrame:
    """Seeds and levels of axes as numbers if all are numbers, else as text; and their label.

    The level None is one of its own; a run without a level has the level "default".
    """
    table = table.assign(seed=_numbers_or_text(table["seed"]))
    for axis in axes:
        table[axis] = table[axis].map(lambda cell: "None" if cell is None else cell)
        if table[axis].isna().any():
            count = table.loc[table[axis].isna(), "run"].nunique()
            notes.say(f"{name}: axis {axis}: {count} runs have no level: level default")
            table[axis] = table[axis].astype(object).fillna("default")
        table[axis] = _numbers_or_text(table[axis])
    label = [table[axis].map(lambda level, a=axis: f"{a}={level}") for axis in axes]
    return table.assign(axes=label[0].str.cat(label[1:], sep=", ") if label else "")


def _numbers_or_text(cells: pd.Series) -> pd.Series:
    """Numbers, also if given as text, unless texts such as 7 and 007 would become equal."""
    distinct = cells.dropna().drop_duplicates()
    number = distinct.map(lambda cell: isinstance(cell, Real) and not isinstance(cell, bool))
    if number.all() or _are_distinct_numbers(distinct):
        cells = cells.astype(np.float64)
        return cells.astype(np.int64) if (cells % 1 == 0).all() else cells
    return cells.map(_text).astype(str)


def _are_distinct_numbers(cells: pd.Series) -> bool:
    if not cells.map(lambda cell: isinstance(cell, str) and bool(NUMBER.fullmatch(cell))).all():
        return False
    number = cells.astype(np.float64)
    return bool(np.isfinite(number).all()) and number.nunique() == len(cells)


def _text(cell: object) -> str:
    """Whole numbers have no decimals: an empty cell makes a column float."""
    return "" if pd.isna(cell) else str(text(cell))
