"""Curves from records or from other people's logs, as one tidy table.

`read` takes a study or run directory of rlx, a CSV/JSONL/Parquet file in long form, or a CSV
exported from a W&B chart, and returns one row per evaluation:

    run      name of the run
    recipe   what the run is an instance of; the run's own name where unknown
    seed     NaN where unknown
    axes     what else distinguishes the recipe, as a label such as "max_new_tokens=9"; "" if none
    compute  training compute C, in the file's unit
    value    pass rate, a fraction
    trials   graded samples behind the value, NaN where unknown
    truth    exact ceiling, NaN where unknown

Rows of a run follow each other in order of compute. `frame.attrs` carries the labels of the two
plotted axes. Every treatment of the data is printed in one line; data that cannot be used raise
`DataError`, whose text is `key=value: reason; remedy`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ["run", "recipe", "seed", "axes", "compute", "value", "trials", "truth"]
MIN_POINTS = 4  # evaluations a run needs to enter the table
CLOCKS = ("modelled_device_s", "wall_s")  # read from clock.jsonl, by step
COMPUTE_LABELS = {
    "compute": "training compute C (FLOPs)",
    "modelled_device_s": "modelled device time (s)",
    "wall_s": "wall-clock time (s)",
}
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
    "truth": ("truth|ceiling",),
}


class DataError(ValueError):
    """`key=value: reason; remedy`, on one line."""

    def __init__(self, key: str, value: object, reason: str, remedy: str):
        super().__init__(f"{key}={value}: {reason}; {remedy}")


def read(
    path: Path | str,
    *,
    run: str | None = None,
    recipe: str | None = None,
    seed: str | None = None,
    axes: Sequence[str] = (),
    compute: str | None = None,
    value: str | None = None,
    passes: str | None = None,
    trials: str | None = None,
    scale: str = "fraction",
    r0: str | None = None,
) -> pd.DataFrame:
    """The curves at `path` as a tidy table (columns in the module's docstring).

    Args:
        path: study directory (holding runs/*/), run directory, or .csv, .jsonl, .parquet file.
        run, recipe, seed, axes, passes, trials: columns of a long-form file; a column that is not
            named is inferred from its name, and what was inferred is printed.
        compute: column of compute. Directory: a number of evals.jsonl, or one of
            modelled_device_s, wall_s of clock.jsonl; default "compute". W&B export: default its
            first column.
        value: column of pass rates; in a W&B export the metric.
        scale: "fraction" or "percent", the unit of values, of the truth and of r0.
        r0: column with each run's pass rate at C = 0, kept in the table under its own name.

    Raises:
        DataError: a column is missing or ambiguous, compute decreases within a run, a value lies
            outside [0, 1], or no run has enough points.
    """
    path = Path(path)
    if scale not in ("fraction", "percent"):
        raise DataError("scale", scale, "unknown unit", "use fraction or percent")
    if not path.exists():
        raise DataError("data", path, "no such file or directory", "give a study, run or file")
    named = {"run": run, "recipe": recipe, "seed": seed, "passes": passes, "trials": trials}
    named["axes"] = ",".join(axes) or None
    if path.is_dir():
        _refuse(named | {"value": value}, f"the manifests of {path} say it")
        frame = _read_study(path, compute or "compute", r0)
    else:
        table = _read_table(path)
        if _is_wandb(table):
            _refuse(named | {"r0": r0}, f"{path.name} is a W&B export, one column per run")
            frame = _read_wandb(table, path, compute, value)
        else:
            frame = _read_long(table, path, named | {"compute": compute, "value": value}, axes, r0)
    return _treat(frame, path, scale, r0)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Each name without the words (split at - / and space) that all of them share."""
    words = {name: re.split(r"([-/ ])", name) for name in dict.fromkeys(names)}
    shared = set.intersection(*({w.lower() for w in ws} for ws in words.values()))
    short = {
        name: "-".join(w for w in ws[::2] if w.lower() not in shared) for name, ws in words.items()
    }
    distinct = len(set(short.values())) == len(short) and all(short.values())
    return short if distinct and len(short) > 1 else {name: name for name in words}


def _refuse(given: dict[str, str | None], reason: str) -> None:
    for key, value in given.items():
        if value is not None:
            raise DataError(key, value, reason, f"leave out {key}=")


# ------------------------------------------------------------------ directories written by rlx


def _read_study(path: Path, compute: str, r0: str | None) -> pd.DataFrame:
    """Every usable run below `path`, from manifest.json and evals.jsonl."""
    single = (path / "manifest.json").exists()
    manifests = [path / "manifest.json"] if single else sorted(path.glob("runs/*/manifest.json"))
    if not manifests:
        raise DataError(
            "data",
            path,
            "holds neither manifest.json nor runs/*/manifest.json",
            "give a study or run",
        )
    frames, samples = [], set()
    for file in manifests:
        try:
            manifest = json.loads(file.read_text())
        except json.JSONDecodeError as error:
            raise DataError("data", file, f"not JSON ({error})", "restore or remove it") from error
        name = str(manifest.get("run_id", file.parent.name))
        evals = file.parent / "evals.jsonl"
        rows = _read_jsonl(evals) if evals.exists() else []
        if manifest.get("status") != "done":
            left_out = len(rows) < MIN_POINTS
            print(
                f"{path}: run {name}: status {manifest.get('status')}, {len(rows)} evaluations: "
                f"{'left out' if left_out else 'read so far'}"
            )
            if left_out:
                continue
        if not rows:
            raise DataError("data", evals, "no evaluation", "run it again, or remove it")
        frame = _run_frame(file.parent, rows, compute, r0)
        axes = manifest.get("axes") or {}
        frame["run"], frame["recipe"] = name, str(manifest.get("recipe") or name)
        frame["seed"] = manifest.get("seed", np.nan)
        frame["axes"] = ", ".join(f"{key}={value}" for key, value in axes.items())
        ceiling = manifest.get("ceiling")
        frame["truth"] = np.nan if ceiling is None else float(ceiling)
        frames.append(frame)
        for row in rows:
            per_prompt = row.get("passes_per_prompt")
            samples.add(row.get("trials", 0) // len(per_prompt) if per_prompt else 0)
    if not frames:
        raise DataError("data", path, "no run is usable yet", "wait until a run is done")
    frame = pd.concat(frames, ignore_index=True)
    k = samples.pop() if len(samples) == 1 else None
    frame.attrs["compute_label"] = COMPUTE_LABELS.get(compute, compute)
    frame.attrs["value_label"] = "pass rate (held-out" + (f", mean@{k})" if k else ")")
    return frame


def _run_frame(run_dir: Path, rows: list[dict], compute: str, r0: str | None) -> pd.DataFrame:
    """compute, value and trials of one run's evaluations (and the column that r0 names)."""
    file = run_dir / "evals.jsonl"
    sets = sorted({str(row.get("eval_set")) for row in rows})
    if len(sets) > 1:
        raise DataError("data", file, f"mixes evaluation sets {', '.join(sets)}", "keep one")
    if compute in CLOCKS:
        clock = {row["step"]: row.get(compute) for row in _read_jsonl(run_dir / "clock.jsonl")}
        if not any(clock.values()):
            raise DataError("compute", compute, f"not in {run_dir / 'clock.jsonl'}", "use another")
        clock.setdefault(0, 0.0)  # nothing is spent before the first step
        compute_M = [clock.get(row["step"]) for row in rows]
    else:
        compute_M = _numbers(rows, "compute", compute, file)
    columns = {
        "compute": compute_M,
        "value": _numbers(rows, "value", "mean", file),
        "trials": [row.get("trials") for row in rows],
    }
    if r0 is not None:
        columns[r0] = _numbers(rows, "r0", r0, file)
    return pd.DataFrame(columns, dtype=np.float64)


def _numbers(rows: list[dict], key: str, column: str, file: Path) -> list[float]:
    numeric = [name for name, cell in rows[0].items() if isinstance(cell, int | float)]
    if column not in numeric:
        raise DataError(
            key, column, f"no numeric column of {file}", f"use one of {', '.join(numeric)}"
        )
    return [row.get(column, np.nan) for row in rows]


def _read_jsonl(file: Path) -> list[dict]:
    """Rows of a JSONL file; a torn last line, as an interrupted writer leaves it, is dropped."""
    if not file.exists():
        raise DataError("data", file, "no such file", "give a directory that a run wrote")
    lines = file.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(
                    "data", file, f"line {number} is not JSON", "restore or remove that line"
                ) from error
            print(f"{file}: torn last line dropped")
    return rows


# ------------------------------------------------------------------ files


def _read_table(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path)
        if path.suffix == ".jsonl":
            return pd.DataFrame(_read_jsonl(path))
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
    except ImportError as error:
        raise DataError("data", path, "no Parquet reader", "pip install pyarrow") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise DataError("data", path, f"unreadable ({reason})", "give a table") from error
    raise DataError("data", path, "unknown kind of file", "use .csv, .jsonl or .parquet")


def _is_wandb(table: pd.DataFrame) -> bool:
    """Whether the header is that of a W&B chart: "RUN - METRIC" beside "RUN - METRIC__MIN"."""
    names = set(map(str, table.columns))
    return any(" - " in name and f"{name}__MIN" in names for name in names)


def _read_wandb(
    table: pd.DataFrame, path: Path, compute: str | None, value: str | None
) -> pd.DataFrame:
    """The wide table of a W&B export, one pair of columns (compute, value) per run."""
    names = [c for c in table.columns if " - " in c and not c.endswith(("__MIN", "__MAX"))]
    metric_of = {name: name.rsplit(" - ", 1)[1] for name in names}
    metrics = list(dict.fromkeys(metric_of.values()))
    wanted = [m for m in metrics if not m.startswith("_")] if value is None else [value]
    if len(wanted) != 1 or wanted[0] not in metrics:
        key_value = "" if value is None else value
        raise DataError(
            "value", key_value, f"{path.name} has metrics {', '.join(metrics)}", "name one of them"
        )
    axis = table.columns[0] if compute is None else compute
    if axis != table.columns[0] and axis not in metrics:
        options = ", ".join([table.columns[0], *metrics])
        raise DataError("compute", axis, f"{path.name} has no such column", f"use one of {options}")
    frames = []
    for name in (n for n in names if metric_of[n] == wanted[0]):
        run = name.rsplit(" - ", 1)[0]
        column = axis if axis == table.columns[0] else f"{run} - {axis}"
        if column not in table:
            raise DataError("compute", axis, f"{path.name}: run {run} lacks it", "use another")
        pair = {
            "compute": _numeric(table, column, "compute", path),
            "value": _numeric(table, name, "value", path),
        }
        frames.append(pd.DataFrame(pair).dropna(subset="value").assign(run=run, recipe=run))
    print(
        f"{path.name}: a W&B export of {len(frames)} runs, compute={axis}, value={wanted[0]}; "
        "empty cells dropped"
    )
    frame = pd.concat(frames, ignore_index=True).assign(axes="")
    frame["seed"] = frame["trials"] = frame["truth"] = np.nan
    frame.attrs["compute_label"], frame.attrs["value_label"] = axis, "pass rate (held-out)"
    return frame


def _read_long(
    table: pd.DataFrame,
    path: Path,
    named: dict[str, str | None],
    axes: Sequence[str],
    r0: str | None,
) -> pd.DataFrame:
    """One row per evaluation, columns named by the user or inferred from their names."""
    table.columns = [str(c) for c in table.columns]
    picked = {key: _pick(table, path, key, named.get(key)) for key in NAMES}
    for key, column in [*(("axes", a) for a in axes), ("r0", r0)]:
        if column is not None and column not in table:
            raise _missing(table, path, key, column)
    if named["value"] is None and named["passes"] is not None:
        picked["value"] = None
    if picked["compute"] is None:
        raise _missing(table, path, "compute", "")
    if picked["value"] is None and not (picked["passes"] and picked["trials"]):
        raise _missing(table, path, "value", "")
    inferred = [f"{k}={c}" for k, c in picked.items() if c and named.get(k) is None]
    if inferred:
        print(f"{path.name}: inferred {' '.join(inferred)}")

    def numeric(key: str) -> pd.Series | float:
        column = picked[key]
        return np.nan if column is None else _numeric(table, column, key, path)

    frame = pd.DataFrame({"compute": numeric("compute"), "trials": numeric("trials")})
    if picked["value"]:
        frame["value"] = numeric("value")
    else:
        frame["value"] = numeric("passes") / frame["trials"]
    frame["truth"] = numeric("truth")
    frame["seed"] = table[picked["seed"]] if picked["seed"] else np.nan
    labels = [table[a].map(lambda cell, a=a: f"{a}={cell}") for a in axes]
    frame["axes"] = labels[0].str.cat(labels[1:], sep=", ") if labels else ""
    if picked["run"]:
        frame["run"] = table[picked["run"]].astype(str)
    else:
        parts = [c for c in (picked["recipe"], *axes, picked["seed"]) if c]
        print(f"{path.name}: no run column: {'+'.join(parts) or 'the whole file'} is a run")
        cells = [table[c].astype(str) for c in parts]
        frame["run"] = cells[0].str.cat(cells[1:], sep="-") if cells else path.stem
    frame["recipe"] = table[picked["recipe"]].astype(str) if picked["recipe"] else frame["run"]
    if r0 is not None:
        frame[r0] = _numeric(table, r0, "r0", path)
    frame.attrs["compute_label"] = picked["compute"]
    frame.attrs["value_label"] = "pass rate (held-out)"
    return frame


def _pick(table: pd.DataFrame, path: Path, key: str, column: str | None) -> str | None:
    """The column for `key`: the named one, or the one whose name matches the first of NAMES."""
    if column is not None:
        if column not in table:
            raise _missing(table, path, key, column)
        return column
    for pattern in NAMES[key]:
        found = [c for c in table.columns if re.fullmatch(pattern, c, flags=re.IGNORECASE)]
        if len(found) > 1:
            raise DataError(
                key, "", f"{path.name} has columns {', '.join(found)}", f"name one with {key}="
            )
        if found:
            return found[0]
    return None


def _missing(table: pd.DataFrame, path: Path, key: str, column: str) -> DataError:
    have = ", ".join(map(str, table.columns))
    return DataError(key, column, f"{path.name} has no such column", f"use one of {have}")


def _numeric(table: pd.DataFrame, column: str, key: str, path: Path) -> pd.Series:
    try:
        return pd.to_numeric(table[column]).astype(np.float64)
    except (ValueError, TypeError) as error:
        reason = f"{path.name}: not a column of numbers ({error})"
        raise DataError(key, column, reason, f"name another with {key}=") from error


# ------------------------------------------------------------------ treatments


def _treat(frame: pd.DataFrame, path: Path, scale: str, r0: str | None) -> pd.DataFrame:
    """Clean every run, and leave out those that are too short."""
    kept = []
    for run, rows in frame.groupby("run", sort=False):
        rows = _treat_run(rows.copy(), path, str(run), scale, r0)
        if len(rows) < MIN_POINTS:
            print(f"{path}: run {run}: {len(rows)} points, fewer than {MIN_POINTS}: left out")
        else:
            kept.append(rows)
    if not kept:
        raise DataError("data", path, f"no run has {MIN_POINTS} points", "name other columns")
    tidy = pd.concat(kept, ignore_index=True)[COLUMNS + ([r0] if r0 else [])]
    tidy.attrs.update(frame.attrs)
    return tidy


def _treat_run(
    rows: pd.DataFrame, path: Path, run: str, scale: str, r0: str | None
) -> pd.DataFrame:
    finite = np.isfinite(rows["compute"]) & np.isfinite(rows["value"])
    if not finite.all():
        print(f"{path}: run {run}: {(~finite).sum()} rows with an empty cell dropped")
        rows = rows[finite]
    if scale == "percent":
        for column in ["value", "truth", *([r0] if r0 else [])]:
            rows[column] = rows[column] / 100
    where = f"run {run}: "
    bad = rows[(rows["value"] < 0) | (rows["value"] > 1)]
    if len(bad):
        number = bad["value"].iloc[0] * (100 if scale == "percent" else 1)
        remedy = "give scale=percent" if scale == "fraction" else "values are percentages of 100"
        reason = f"{where}value {number:g} at compute {bad['compute'].iloc[0]:g} is outside "
        raise DataError(
            "data", path, reason + ("[0, 1]" if scale == "fraction" else "[0, 100]"), remedy
        )
    compute_M = rows["compute"].to_numpy()
    if (compute_M < 0).any():
        raise DataError("data", path, f"{where}compute {compute_M.min():g} is negative", "fix it")
    drop = np.flatnonzero(np.diff(compute_M) < 0)
    if drop.size:
        i = int(drop[0])
        reason = f"{where}compute falls from {compute_M[i]:g} to {compute_M[i + 1]:g}"
        raise DataError("data", path, reason, "sort the rows, or name the run column with run=")
    if r0 and rows[r0].nunique(dropna=False) > 1:
        raise DataError("r0", r0, f"{where}several values", "give one value per run")
    return _average_duplicates(rows, path, run)


def _average_duplicates(rows: pd.DataFrame, path: Path, run: str) -> pd.DataFrame:
    """One row per compute: the mean value, weighted by trials where every row has them."""
    n_double = len(rows) - rows["compute"].nunique()
    if not n_double:
        return rows
    print(f"{path}: run {run}: {n_double} repeated values of compute averaged")
    weight = rows["trials"] if rows["trials"].notna().all() else pd.Series(1.0, rows.index)
    sums = pd.DataFrame({"wy": weight * rows["value"], "w": weight, "trials": rows["trials"]})
    sums = sums.groupby(rows["compute"]).sum(min_count=1)
    first = rows.drop_duplicates("compute").set_index("compute")
    first["value"], first["trials"] = sums["wy"] / sums["w"], sums["trials"]
    return first.reset_index()
