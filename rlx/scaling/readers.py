"""One function per kind of source, each returning a `Source`.

    long_form    a table with one evaluation per row: a frame, .csv, .jsonl, .parquet
    wandb        the CSV that W&B exports from a chart
    tensorboard  a directory of event files
    trainer      trainer_state.json of transformers' Trainer, also written by TRL's trainers

rlx.scaling.runs reads directories written by rlx. Nothing is cleaned here: rlx.scaling.data treats
rows, runs and units.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.columns import (
    NAMES,
    SCORE,
    compute_column,
    counters,
    missing,
    named,
    pick,
    refuse_turns,
    score_key,
    told_apart,
    value_column,
)
from rlx.scaling.files import json_of, lacking, listed, numbers, refuse_twice, table_of, texts
from rlx.scaling.runs import study
from rlx.scaling.source import (
    COMPUTE_LABELS,
    HELDOUT,
    Notes,
    Options,
    Source,
    chosen_set,
    r0_column,
    refuse,
    some,
    stated,
    value_label,
)

CELLS = {
    "recipe": texts,
    "start": texts,
    "seed": lambda cells: cells.map(lambda c: c if isinstance(c, Hashable) else str(c)),
    "passes_per_prompt": lambda cells: cells.map(listed),
}
TEXT = ("run", *CELLS)  # columns of a table that are not numeric


def load(path: Path, options: Options, notes: Notes) -> Source:
    """The source at `path`, read by the function for its kind."""
    try:
        if not path.exists():
            raise InputError("data", path, "no such file or directory", "give a study, run or file")
    except OSError as error:
        reason = error.strerror or error
        raise InputError("data", path, reason, "give a study, run or file") from error
    if path.is_file() and path.suffix != ".json":
        table = table_of(path, notes)
        if not _is_wandb(table):
            return long_form(table, path.name, options, notes)
        reason = f"{path.name} is a W&B export, one column per run"
        refuse(replace(options, wide=False), reason, also="eval_set")
        return wandb(table, path, options, notes)
    if not path.is_file() and not path.is_dir():
        raise InputError("data", path, "neither a file nor a directory", "give a study or table")
    if (path / "manifest.json").exists() or any(path.glob("runs/*/manifest.json")):
        return study(path, options, notes)
    refuse(options, f"{path.name} holds logs, not a table", also="eval_set")
    if path.is_file() or any(path.rglob("trainer_state.json")):
        return trainer(path, options, notes)
    if any(path.rglob("*tfevents*")):
        return tensorboard(path, options, notes)
    reason = "holds no manifest.json, runs/*/manifest.json, trainer_state.json or event files"
    raise InputError("data", path, reason, "give a study, a run or a table")


# ------------------------------------------------------------------ tables


def long_form(table: pd.DataFrame, name: str, options: Options, notes: Notes) -> Source:
    """One row per evaluation, columns named by the user or inferred from their names.

    Of a table with a column eval_set one set is used, unless that column is an axis. With the
    option `wide`, one row per compute and a column per run.
    """
    table = table.reset_index(drop=True).rename(columns=str)
    refuse_twice(list(table), name)
    if table.empty:
        raise InputError("data", name, "holds no rows", "give a table with evaluations")
    if options.wide:
        return _wide(table, name, options, notes)
    table, eval_set = _of_set(table, name, options, notes)
    r0 = None if stated(options.r0) is not None else r0_column(options.r0)
    for key, column in [*(("axes", a) for a in options.axes), ("r0", r0)]:
        if column is not None:
            named(table, name, key, column)
    picked = _texts_and_counts(table, name, options)
    parts = [c for c in (picked["recipe"], *options.axes, picked["seed"]) if c]
    frame = pd.DataFrame({"row": [f"row {i + 1}" for i in table.index]}, index=table.index)
    frame["run"] = _run_names(table, name, picked["run"], parts)
    if options.compute is None:
        picked["compute"] = compute_column(table, name, frame["run"])
    else:
        picked["compute"] = named(table, name, "compute", options.compute)
    picked["value"] = _value(table, name, options, picked, r0)
    inferred = [f"{k}={c}" for k, c in picked.items() if c and getattr(options, k, None) is None]
    if inferred:
        notes.say(f"{name}: inferred {' '.join(inferred)}")
    if not picked["run"]:
        notes.say(f"{name}: no run column: runs are {'+'.join(parts) or 'the whole table'}")
    for key, column in picked.items():
        if key in CELLS and column:
            frame[key] = CELLS[key](table[column])
        elif key != "run" and column:
            frame[key] = _numeric(table[column], name, key, counter=key == "compute")
    first = table[picked["compute"]].iloc[0], frame["compute"].iloc[0]
    if isinstance(first[0], str) and first[0][:1].isalpha() and np.isfinite(first[1]):
        notes.say(f"{name}: compute {first[0]} is read as {first[1]:g}")
    used = {*picked.values(), *options.axes, r0, "eval_set"}
    unused = [column for column in table if column not in used]
    frame["evaluation"] = told_apart(table, name, frame["run"], frame["compute"], unused)
    refuse_turns(table, name, frame, unused)
    for axis in options.axes:
        frame[axis] = _levels(table[axis])
    if r0 is not None:
        frame[r0] = _numeric(table[r0], name, "r0")
    compute, label = str(picked["compute"]), value_label([eval_set])
    return Source(name, frame, compute, options.axes, label, named_runs=True)


def _texts_and_counts(table: pd.DataFrame, name: str, options: Options) -> dict[str, str | None]:
    """The columns of everything but compute and value; None for numbers given as options."""
    picked = {}
    for key in NAMES:
        option = getattr(options, key, None)
        number = stated(option) is not None and key not in TEXT and option not in table
        picked[key] = None if number else pick(table, name, key, option)
    return picked


def _run_names(table: pd.DataFrame, name: str, run: str | None, parts: list[str]) -> pd.Series:
    """The run of each row: the column, else the parts that together identify a run."""
    if run:
        return texts(table[run])
    if not parts:
        return pd.Series(Path(name).stem, table.index, dtype=object)
    cells = [texts(_levels(table[part])).fillna("default") for part in parts]
    return cells[0].str.cat(cells[1:], sep="-")


def _value(
    table: pd.DataFrame, name: str, options: Options, picked: dict[str, str | None], r0: str | None
) -> str | None:
    """The column of values, named or inferred; None if counts take its place."""
    if options.value is not None:
        return named(table, name, "value", options.value)
    totals = bool(picked["passes"] and (picked["trials"] or stated(options.trials)))
    column = None
    if not (options.passes or options.passes_per_prompt):  # which give the value
        other = [column for column in (*picked.values(), *options.axes, r0) if column]
        column = value_column(table, name, other, totals)
    if not (column or picked["passes_per_prompt"] or totals):
        rest = [c for c in table if c not in picked.values()]
        wide = ", or wide=true if each column is a run" if len(rest) > 1 else ""
        raise missing(table, name, "value", also=wide)
    return column


def _numeric(cells: pd.Series, name: str, key: str, **how: bool) -> np.ndarray:
    return numbers(cells, name, key, str(cells.name), **how)


def _levels(cells: pd.Series) -> pd.Series:
    """Levels as text: None is a level of its own, an empty cell is not."""
    levels = ["None" if c is None else c if isinstance(c, Hashable) else str(c) for c in cells]
    return pd.Series(levels, cells.index, dtype=object)


def _of_set(
    table: pd.DataFrame, name: str, options: Options, notes: Notes
) -> tuple[pd.DataFrame, str]:
    """The rows of one evaluation set, and its name."""
    if "eval_set" not in table:
        if options.eval_set is not None:
            raise missing(table, name, "eval_set", options.eval_set)
        return table, HELDOUT
    if "eval_set" in options.axes:
        return table, HELDOUT
    of_row = texts(table["eval_set"])
    if of_row.isna().any():
        if of_row.notna().any():
            row = of_row.index[of_row.isna()][0] + 1
            raise InputError("data", name, f"row {row}: eval_set is empty", "fill it in")
        of_row = of_row.fillna(HELDOUT)
    eval_set = chosen_set(of_row, name, options)
    if of_row.nunique() > 1:
        there = some(sorted(of_row.unique()))
        notes.say(f"{name}: evaluation sets {there}: using eval_set={eval_set}")
    return table[of_row == eval_set], eval_set


def _wide(table: pd.DataFrame, name: str, options: Options, notes: Notes) -> Source:
    """A column of compute, the first unless named, and a column of values per run."""
    reason = f"each column of {name} is a run"
    refuse(replace(options, wide=False), reason, also="value")
    refuse(replace(options, wide=False), reason, also="eval_set")
    first = str(table.columns[0]) if options.compute is None else options.compute
    compute = _numeric(table[named(table, name, "compute", first)], name, "compute", counter=True)
    if found := counters(run for run in table if run != first):
        what = f"{name}: beside compute={first}, {some(found)} cannot be a run"
        remedy = "remove it, or name the column of compute with compute="
        raise InputError("wide", "true", what, remedy)
    values = {run: _numeric(table[run], name, "wide") for run in table if run != first}
    if not values:
        raise missing(table, name, "value")
    notes.say(f"{name}: {len(values)} runs, one per column, compute={first}; empty cells dropped")
    return _columns_of_runs(name, first, {run: (compute, cells) for run, cells in values.items()})


def _columns_of_runs(
    name: str, compute: str, runs: dict[str, tuple[np.ndarray, np.ndarray]]
) -> Source:
    """(compute, value) of the rows of each run; rows without a value belong to other runs."""
    count = [len(value) for _, value in runs.values()]
    row = [f"row {i}" for n in count for i in range(1, n + 1)]
    cells = {"run": np.repeat(list(runs), count), "row": row}
    for i, key in enumerate(("compute", "value")):
        cells[key] = np.concatenate([pair[i] for pair in runs.values()])
    frame = pd.DataFrame(cells).dropna(subset="value")
    return Source(name, frame, COMPUTE_LABELS.get(compute, compute))


def _is_wandb(table: pd.DataFrame) -> bool:
    """Whether the header is that of a W&B chart: "RUN - METRIC" beside "RUN - METRIC__MIN"."""
    names = set(map(str, table.columns))
    return any(" - " in name and f"{name}__MIN" in names for name in names)


def wandb(table: pd.DataFrame, path: Path, options: Options, notes: Notes) -> Source:
    """The wide table of a W&B export: one pair of columns (compute, value) per run."""
    names = [c for c in table.columns if " - " in c and not c.endswith(("__MIN", "__MAX"))]
    metric_of = {name: name.rsplit(" - ", 1)[1] for name in names}
    metrics = list(dict.fromkeys(metric_of.values()))
    shown = [m for m in metrics if not m.startswith("_")]
    value = options.value or (shown[0] if len(shown) == 1 else "")
    if value not in metrics:
        reason = f"{path.name} has metrics {some(metrics)}"
        raise InputError("value", value, reason, "name one of them")
    first = str(table.columns[0])
    axis = options.compute or first
    if axis not in (first, *metrics):
        remedy = f"use one of {some([first, *metrics])}"
        raise InputError("compute", axis, f"{path.name} has no such column", remedy)
    runs = {}
    for name in (n for n in names if metric_of[n] == value):
        run = name.rsplit(" - ", 1)[0]
        column = axis if axis == first else f"{run} - {axis}"
        if column not in table:
            raise InputError("compute", axis, f"{path.name}: run {run} lacks it", "use another")
        both = (column, "compute"), (name, "value")
        compute, cells = (_numeric(table[c], path.name, key) for c, key in both)
        runs[run] = (compute, cells)
    notes.say(
        f"{path.name}: a W&B export of {len(runs)} runs, compute={axis}, value={value}; "
        "empty cells dropped"
    )
    return _columns_of_runs(path.name, axis, runs)


# ------------------------------------------------------------------ logs of other trainers


def tensorboard(path: Path, options: Options, notes: Notes) -> Source:
    """Scalars of every directory below `path` that holds event files; each is a run.

    `value` is a tag. `compute` is "step" (default), "wall_time" (seconds since the run's first
    event) or another tag, at the same step. If a run was resumed, an earlier file is used up to the
    first step of a later one.
    """
    logs, cut = {}, {}
    for directory in sorted({file.parent for file in path.rglob("*tfevents*")}):
        scalars = pd.concat(map(_scalars, sorted(directory.glob("*tfevents*"))))
        scalars = scalars.sort_values("begin", kind="stable", ignore_index=True)
        kept, run = _resumed(scalars, directory), _relative(directory, path)
        if len(kept) < len(scalars):
            cut[run] = len(scalars) - len(kept)
        seconds = kept["wall_time"] - kept["begin"].min()
        cells = zip(kept["step"], seconds, kept["tag"], kept["value"], strict=True)
        logs[run] = [{"step": s, "wall_time": wall, tag: x} for s, wall, tag, x in cells]
    notes.say_runs(path.name, cut, "resumed: {n} numbers replaced by those of a later event file")
    return _logged(logs, path, options, notes)


def _scalars(file: Path) -> pd.DataFrame:
    """wall_time, step, tag, value of each scalar of an event file, in file order by tag."""
    try:
        from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise lacking("TensorBoard logs", file.parent, "tensorboard") from error
    events = EventAccumulator(str(file), {"tensors": 0}, purge_orphaned_data=False)  # 0 keeps all
    try:
        events.Reload()
        tags = "scalars" in events.ActivePlugins() and events.PluginTagToContent("scalars")
        rows = [
            (event.wall_time, event.step, tag, make_ndarray(event.tensor_proto).item())
            for tag in tags or ()
            for event in events.Tensors(tag)
        ]
        begin = events.FirstEventTimestamp() if rows else np.nan
    except Exception as error:  # tensorboard raises many kinds on damaged files
        raise InputError("data", file, f"unreadable ({error})", "restore or remove it") from error
    scalars = pd.DataFrame(rows, columns=["wall_time", "step", "tag", "value"])
    return scalars.assign(file=file.name, begin=begin)


def _resumed(scalars: pd.DataFrame, directory: Path) -> pd.DataFrame:
    """Scalars without those replaced after a resume: a file is used up to the start of the next."""
    kept = [scalars[:0]]
    for tag, rows in scalars.groupby("tag", sort=False):
        files = [mine for _, mine in rows.groupby("file", sort=False)]
        step = wall = np.inf
        for mine in reversed(files):
            if mine["step"].max() >= step and mine["wall_time"].max() > wall:
                reason = f"event files that write {tag} at the same time"
                raise InputError("data", directory, reason, "give each run its own directory")
            kept.append(mine[mine["step"] < step])
            step, wall = min(step, mine["step"].min()), min(wall, mine["wall_time"].min())
    return pd.concat(kept).sort_index()


def trainer(path: Path, options: Options, notes: Notes) -> Source:
    """`log_history` of a trainer_state.json, or of the last checkpoint of every run below `path`.

    `value` and `compute` (default "step") are keys of its rows; a row without the compute takes
    that of another row of its step. total_flos, which is not in the rows, is the state's total
    times step / global_step.
    """
    states: dict[str, dict[str, Any]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("trainer_state.json")):
        state = json_of(file)
        if not isinstance(state, dict) or "log_history" not in state:
            raise InputError("data", file, "no log_history in it", "give a trainer_state.json")
        history, steps = state["log_history"], state.setdefault("global_step", 0)
        rows = isinstance(history, list) and all(isinstance(row, dict) for row in history)
        if not rows or not all(map(_is_number, (steps, *(row.get("step") for row in history)))):
            reason = "log_history is not a list of objects with a step"
            raise InputError("data", file, reason, "give what transformers wrote")
        directory = file.parent
        if re.fullmatch(r"checkpoint-\d+", directory.resolve().name):
            directory = directory.resolve().parent
        run = _relative(directory, path)
        if run not in states or steps > states[run]["global_step"]:
            states[run] = state
    logs = {run: state["log_history"] for run, state in states.items()}
    if options.compute == "total_flos":
        notes.say(f"{path.name}: total_flos is assumed to be proportional to step")
        for run, state in states.items():
            flos, steps = state.get("total_flos"), state["global_step"]
            if not _is_number(flos) or not flos or not steps:
                reason = f"run {run}: the state has none"
                raise InputError("compute", "total_flos", reason, "use step or a key of the rows")
            logs[run] = [row | {"total_flos": flos / steps * row["step"]} for row in logs[run]]
    return _logged(logs, path, options, notes)


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool) and not abs(cell) > 1e300


def _relative(directory: Path, root: Path) -> str:
    """A run's name: its path below `root`, or the name of the directory if it is not below."""
    directory, root = directory.resolve(), root.resolve()
    below = directory != root and directory.is_relative_to(root)
    return directory.relative_to(root).as_posix() if below else directory.name


def _logged(
    logs: dict[str, list[dict[str, Any]]], path: Path, options: Options, notes: Notes
) -> Source:
    """The rows of each run that have the value, with the compute of their step."""
    cells = (pair for rows in logs.values() for row in rows for pair in row.items())
    keys = list(dict.fromkeys(key for key, cell in cells if _is_number(cell)))
    if not keys:
        raise InputError("data", path, "holds no numbers", "give a log with evaluations")
    compute = options.compute or "step"
    value = options.value or score_key(keys)
    if value not in keys:
        scores = [key for key in keys if SCORE.fullmatch(key)]
        remedy = f"name one with value=: {some(scores if len(keys) > 20 and scores else keys)}"
        raise InputError("value", value, f"no unique pass rate in {path.name}", remedy)
    if compute not in keys:
        raise InputError(
            "compute", compute, f"not logged in {path.name}", f"use one of {some(keys)}"
        )
    table, lacking_it = [], {}
    for run, rows in logs.items():
        at_step = {row.get("step"): row[compute] for row in rows if compute in row}
        found = [
            {
                "run": run,
                "row": f"step {row.get('step')}",
                "compute": row.get(compute, at_step.get(row.get("step"))),
                "value": row[value],
            }
            for row in rows
            if value in row
        ]
        if not found:
            lacking_it[run] = 0
        table += found
    notes.say_runs(path.name, lacking_it, f"no {value}: left out")
    notes.say(f"{path.name}: {len(logs)} runs, compute={compute}, value={value}")
    frame = pd.DataFrame(table)
    for key, column in (("compute", compute), ("value", value)):
        frame[key] = numbers(frame[key], path.name, key, column)
    if frame["compute"].isna().all():
        reason = f"not logged at the steps of {value}"
        raise InputError("compute", compute, reason, "use step, or another key of the same rows")
    return Source(path.name, frame, COMPUTE_LABELS.get(compute, compute), (), value)
