"""One function per kind of source, from what stands on disk to a `Source`.

    long_form    a table with one evaluation per row: a frame, .csv, .jsonl, .parquet
    wandb        the CSV that W&B exports from a chart
    tensorboard  a directory of event files
    trainer      trainer_state.json of transformers' Trainer, which TRL's trainers write

Directories that rlx writes are read in rlx.scaling.runs. Nothing is cleaned here: rows, runs and
units are treated in rlx.scaling.data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.files import json_of, jsonl, lacking, listed
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
    stated,
    value_label,
)

NAMES = {  # patterns that a column's whole name is compared with, most telling first
    "run": ("run", "run_id", "run_name", "experiment"),
    "recipe": ("recipe", "algo", "algorithm", "method"),
    "seed": ("seed",),
    "compute": (
        "compute|c",
        ".*flops",
        r".*gpu_?h(ou)?rs?",
        ".*(device_s|wall_s|seconds|hours)",
        ".*tokens",
        ".*steps?",
    ),
    "value": ("value", "pass_?rate", r"mean(@\d+)?", "acc(uracy)?", "score"),
    "passes": ("passes",),
    "trials": ("trials",),
    "passes_per_prompt": ("passes_per_prompt",),
    "samples_per_prompt": ("samples_per_prompt",),
    "stderr": ("stderr|std_?err(or)?|standard_error",),
    "truth": ("truth|ceiling",),
    "start": (),
}
TEXT = ("run", "recipe", "seed", "start", "passes_per_prompt")  # columns not of numbers
SCORE = re.compile(
    r"(.*[/_])?(rewards?|acc(uracy)?|score|pass_?rate|(pass|mean)@\d+)", re.IGNORECASE
)
HELD_OUT = re.compile(r"(eval|val|valid|test|held_?out)([/_-].*)", re.IGNORECASE)


def load(path: Path, options: Options, notes: Notes) -> Source:
    """The source at `path`, read by the function for its kind."""
    if not path.exists():
        raise InputError("data", path, "no such file or directory", "give a study, run or file")
    if path.is_file() and path.suffix != ".json":
        table = _table(path, notes)
        if not _is_wandb(table):
            return long_form(table, path.name, options, notes)
        refuse(options, f"{path.name} is a W&B export, one column per run", also="eval_set")
        return wandb(table, path, options, notes)
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


def _table(path: Path, notes: Notes) -> pd.DataFrame:
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path)
        if path.suffix == ".jsonl":
            return pd.DataFrame(jsonl(path, notes))
        if path.suffix == ".parquet":
            return pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise lacking("Parquet files", path, "pyarrow") from error
    except (ValueError, OSError) as error:  # those of pandas and pyarrow among them
        if isinstance(error, InputError):
            raise
        reason = " ".join(str(error).split())
        raise InputError("data", path, f"unreadable ({reason})", "give a table") from error
    raise InputError("data", path, "unknown kind of file", "use .csv, .jsonl or .parquet")


def long_form(table: pd.DataFrame, name: str, options: Options, notes: Notes) -> Source:
    """One row per evaluation, columns named by the user or inferred from their names.

    Of a table with a column eval_set one set is read, unless that column is an axis.
    """
    table = table.reset_index(drop=True).rename(columns=str)
    table, eval_set = _of_set(table, name, options, notes)
    named = {key: getattr(options, key, None) for key in NAMES}
    r0 = None if stated(options.r0) is not None else r0_column(options.r0)
    counted = bool(options.passes or options.passes_per_prompt)
    picked = {key: _pick(table, name, key, named[key]) for key in NAMES}
    if named["value"] is None and counted:
        picked["value"] = None
    for key, column in [*(("axes", a) for a in options.axes), ("r0", r0)]:
        if column is not None and column not in table:
            raise _missing(table, name, key, column)
    if picked["compute"] is None:
        raise _missing(table, name, "compute", "")
    totals = picked["passes"] and (picked["trials"] or stated(options.trials))
    if not (picked["value"] or picked["passes_per_prompt"] or totals):
        raise _missing(table, name, "value", "")
    inferred = [f"{k}={c}" for k, c in picked.items() if c and named[k] is None]
    if inferred:
        notes.say(f"{name}: inferred {' '.join(inferred)}")
    frame = pd.DataFrame({"row": [f"row {i + 1}" for i in table.index]}, index=table.index)
    for key, column in picked.items():
        if column:
            frame[key] = table[column] if key in TEXT else _numeric(table, column, key, name)
    for axis in options.axes:
        frame[axis] = table[axis]
    if r0 is not None:
        frame[r0] = _numeric(table, r0, "r0", name)
    if not picked["run"]:
        parts = [c for c in (picked["recipe"], *options.axes, picked["seed"]) if c]
        notes.say(f"{name}: no run column: {'+'.join(parts) or 'the whole table'} is a run")
        cells = [table[c].astype(str) for c in parts]
        frame["run"] = cells[0].str.cat(cells[1:], sep="-") if cells else Path(name).stem
    for key in ("run", "recipe", "start"):
        if key in frame:
            frame[key] = frame[key].map(_text)
    if "passes_per_prompt" in frame:
        frame["passes_per_prompt"] = frame["passes_per_prompt"].map(listed)
    label = value_label([eval_set])
    return Source(name, frame, str(picked["compute"]), tuple(options.axes), label)


def _of_set(
    table: pd.DataFrame, name: str, options: Options, notes: Notes
) -> tuple[pd.DataFrame, str]:
    """The rows of one evaluation set, and its name."""
    if "eval_set" not in table:
        if options.eval_set is not None:
            raise _missing(table, name, "eval_set", options.eval_set)
        return table, HELDOUT
    if "eval_set" in options.axes:
        return table, HELDOUT
    of_row = table["eval_set"].astype(str)
    eval_set = chosen_set(of_row, name, options)
    if of_row.nunique() > 1:
        there = ", ".join(sorted(of_row.unique()))
        notes.say(f"{name}: evaluation sets {there}: eval_set={eval_set} is read")
    return table[of_row == eval_set], eval_set


def _text(cell: object) -> object:
    return cell if cell is None or cell != cell else str(cell)


def _pick(table: pd.DataFrame, name: str, key: str, option: str | float | None) -> str | None:
    """The column for `key`: the named one, or the one whose name matches the first of NAMES."""
    if option is not None:
        if option in table:
            return str(option)
        if stated(option) is not None and key not in TEXT:
            return None
        raise _missing(table, name, key, str(option))
    for pattern in NAMES[key]:
        found = [c for c in table.columns if re.fullmatch(pattern, c, flags=re.IGNORECASE)]
        if len(found) > 1:
            reason = f"{name} has columns {', '.join(found)}"
            raise InputError(key, "", reason, f"name one with {key}=")
        if found:
            return found[0]
    return None


def _missing(table: pd.DataFrame, name: str, key: str, column: str) -> InputError:
    have = ", ".join(map(str, table.columns))
    return InputError(key, column, f"{name} has no such column", f"use one of {have}")


def _numeric(table: pd.DataFrame, column: str, key: str, name: str) -> pd.Series:
    try:
        return pd.to_numeric(table[column]).astype(np.float64)
    except (ValueError, TypeError) as error:
        reason = f"{name}: not a column of numbers ({error})"
        raise InputError(key, column, reason, f"name another with {key}=") from error


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
        reason = f"{path.name} has metrics {', '.join(metrics)}"
        raise InputError("value", value, reason, "name one of them")
    first = str(table.columns[0])
    axis = options.compute or first
    if axis not in (first, *metrics):
        remedy = f"use one of {', '.join([first, *metrics])}"
        raise InputError("compute", axis, f"{path.name} has no such column", remedy)
    frames = []
    for name in (n for n in names if metric_of[n] == value):
        run = name.rsplit(" - ", 1)[0]
        column = axis if axis == first else f"{run} - {axis}"
        if column not in table:
            raise InputError("compute", axis, f"{path.name}: run {run} lacks it", "use another")
        pair = {
            "compute": _numeric(table, column, "compute", path.name),
            "value": _numeric(table, name, "value", path.name),
            "row": [f"row {i + 1}" for i in range(len(table))],
        }
        frames.append(pd.DataFrame(pair).dropna(subset="value").assign(run=run))
    notes.say(
        f"{path.name}: a W&B export of {len(frames)} runs, compute={axis}, value={value}; "
        "empty cells dropped"
    )
    return Source(path.name, pd.concat(frames), COMPUTE_LABELS.get(axis, axis))


# ------------------------------------------------------------------ logs of other trainers


def tensorboard(path: Path, options: Options, notes: Notes) -> Source:
    """Scalars of every directory below `path` that holds event files; each is a run.

    `value` is a tag. `compute` is "step" (default), "wall_time" (seconds since the run's first
    event) or another tag, read at the same step.
    """
    try:
        from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError as error:
        raise lacking("TensorBoard logs", path, "tensorboard") from error
    logs = {}
    for directory in sorted({file.parent for file in path.rglob("*tfevents*")}):
        events = EventAccumulator(str(directory), size_guidance={"tensors": 0})  # 0 keeps all
        events.Reload()
        tags = "scalars" in events.ActivePlugins() and events.PluginTagToContent("scalars")
        logs[_relative(directory, path)] = [
            {
                "step": event.step,
                "wall_time": event.wall_time - events.FirstEventTimestamp(),
                tag: make_ndarray(event.tensor_proto).item(),
            }
            for tag in tags or ()
            for event in events.Tensors(tag)
        ]
    return _logged(logs, path, options, notes)


def trainer(path: Path, options: Options, notes: Notes) -> Source:
    """`log_history` of a trainer_state.json, or of the last checkpoint of every run below `path`.

    `value` and `compute` (default "step") are keys of its rows; a row without the compute takes
    that of another row of its step. total_flos, which the rows leave out, is the state's total
    times step / global_step.
    """
    states: dict[str, dict[str, Any]] = {}
    for file in [path] if path.is_file() else sorted(path.rglob("trainer_state.json")):
        state = json_of(file)
        if not isinstance(state, dict) or "log_history" not in state:
            raise InputError("data", file, "no log_history in it", "give a trainer_state.json")
        directory = file.parent
        if re.fullmatch(r"checkpoint-\d+", directory.resolve().name):
            directory = directory.resolve().parent
        run = _relative(directory, path)
        if run not in states or state.get("global_step", 0) > states[run].get("global_step", 0):
            states[run] = state
    logs = {run: state["log_history"] for run, state in states.items()}
    if options.compute == "total_flos":
        notes.say(f"{path.name}: total_flos taken to be proportional to step")
        for run, state in states.items():
            if not state.get("total_flos") or not state.get("global_step"):
                reason = f"run {run}: the state does not count it"
                raise InputError("compute", "total_flos", reason, "use step or a key of the rows")
            per_step = state["total_flos"] / state["global_step"]
            logs[run] = [row | {"total_flos": per_step * row["step"]} for row in logs[run]]
    return _logged(logs, path, options, notes)


def _relative(directory: Path, root: Path) -> str:
    """A run's name: its path below `root`, or the name of the directory where it is not below."""
    directory, root = directory.resolve(), root.resolve()
    below = directory != root and directory.is_relative_to(root)
    return directory.relative_to(root).as_posix() if below else directory.name


def _logged(
    logs: dict[str, list[dict[str, Any]]], path: Path, options: Options, notes: Notes
) -> Source:
    """The rows of each run that have the value, with the compute of their step."""
    keys = _numeric_keys(row for rows in logs.values() for row in rows)
    compute = options.compute or "step"
    value = options.value or _score_key(keys)
    if value not in keys:
        remedy = f"name one with value=: {', '.join(keys)}"
        raise InputError("value", value, f"no pass rate is told apart in {path.name}", remedy)
    if compute not in keys:
        remedy = f"use one of {', '.join(keys)}"
        raise InputError("compute", compute, f"not logged in {path.name}", remedy)
    table = []
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
            notes.say(f"{path.name}: run {run}: no {value}: left out")
        table += found
    notes.say(f"{path.name}: {len(logs)} runs, compute={compute}, value={value}")
    frame = pd.DataFrame(table).astype({"compute": np.float64, "value": np.float64})
    if frame["compute"].isna().all():
        reason = f"not logged at the steps of {value}"
        raise InputError("compute", compute, reason, "use step, or another key of the same rows")
    return Source(path.name, frame, COMPUTE_LABELS.get(compute, compute), (), value)


def _numeric_keys(rows: Iterable[dict[str, Any]]) -> list[str]:
    numeric = (k for row in rows for k, x in row.items() if isinstance(x, int | float))
    return list(dict.fromkeys(numeric))


def _score_key(keys: list[str]) -> str:
    """The one key that names a pass rate, those of held-out data first; "" if there is not one."""
    scores = [key for key in keys if SCORE.fullmatch(key)]
    held_out = [key for key in scores if HELD_OUT.fullmatch(key)]
    (best,) = [found[0] for found in (held_out, scores) if len(found) == 1][:1] or [""]
    return best
