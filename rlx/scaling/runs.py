"""Study and run directories that rlx writes: manifest.json, evals.jsonl and clock.jsonl."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.files import json_of, jsonl, listed
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

CLOCKS = ("modelled_device_s", "wall_s")  # read from clock.jsonl, by step


def study(path: Path, options: Options, notes: Notes) -> Source:
    """Every run of a study, or the run at `path`, from manifest.json and evals.jsonl.

    Of each run the rows of one evaluation set; runs without the set that is asked for are left out.
    Runs start alike where model, environment, warm start, evaluation set and generation limits do.
    """
    refuse(options, f"the manifests of {path} say it", but="r0", also="value")
    records = _records(path, notes)
    if not records:
        raise InputError("data", path, "no run has an evaluation yet", "wait until one has")
    there = sorted({name for _, _, sets in records for name in sets})
    if options.eval_set is not None:
        chosen_set(there, path, options)
    frames, axes, samples, chosen = [], {}, set(), set()
    for run_dir, manifest, sets in records:
        run = str(manifest.get("run_id", run_dir.name))
        if options.eval_set not in (None, *sets):
            notes.say(f"{path}: run {run}: no rows of eval_set={options.eval_set}: left out")
            continue
        eval_set = chosen_set(sets, run_dir / "evals.jsonl", options)
        rows = sets[eval_set]
        frame = _run_frame(run_dir, rows, options, notes)
        levels = manifest.get("axes") or {}
        axes |= levels
        frame["run"], frame["recipe"] = run, str(manifest.get("recipe") or run)
        frame["seed"], frame["truth"] = manifest.get("seed"), _ceiling(manifest, eval_set)
        frame["start"] = _start(manifest, eval_set)
        frames.append(frame.assign(**levels).astype({"truth": np.float64}))
        samples |= {row["trials"] // len(row["passes_per_prompt"]) for row in rows if _k(row)}
        chosen.add(eval_set)
    if len(there) > 1:
        read = ", ".join(sorted(chosen))
        notes.say(f"{path}: evaluation sets {', '.join(there)}: eval_set={read} is read")
    compute = options.compute or "compute"
    k = f", mean@{samples.pop()}" if len(samples) == 1 else ""
    return Source(
        str(path),
        pd.concat(frames, ignore_index=True),
        COMPUTE_LABELS.get(compute, compute),
        tuple(axes),
        value_label(chosen, k),
    )


Sets = dict[str, list[dict[str, Any]]]  # rows of evals.jsonl, by evaluation set


def _records(path: Path, notes: Notes) -> list[tuple[Path, dict[str, Any], Sets]]:
    """(directory, manifest, evaluations) of every run that has an evaluation.

    `row` of an evaluation says where it stands in the file.
    """
    single = (path / "manifest.json").exists()
    records = []
    for file in [path / "manifest.json"] if single else sorted(path.glob("runs/*/manifest.json")):
        manifest, evals = json_of(file), file.parent / "evals.jsonl"
        sets: Sets = {}
        for number, row in enumerate(jsonl(evals, notes) if evals.exists() else [], start=1):
            eval_set = str(row.get("eval_set", HELDOUT))
            sets.setdefault(eval_set, []).append(row | {"row": f"row {number}"})
        if manifest.get("status") != "done":
            run, status = manifest.get("run_id", file.parent.name), manifest.get("status")
            count = max(map(len, sets.values()), default=0)
            notes.say(f"{path}: run {run}: status {status}, {count} evaluations so far")
        elif not sets:
            raise InputError("data", evals, "no evaluation", "run it again, or remove it")
        if sets:
            records.append((file.parent, manifest, sets))
    return records


def _ceiling(manifest: dict[str, Any], eval_set: str) -> float | None:
    """The exact one of an evaluation set; a manifest may know that of the held-out set alone."""
    return manifest.get("ceilings", {HELDOUT: manifest.get("ceiling")}).get(eval_set)


def _k(row: dict[str, Any]) -> bool:
    return bool(row.get("trials") and row.get("passes_per_prompt"))


def _start(manifest: dict[str, Any], eval_set: str) -> str | None:
    """A name for what decides R0, the same in every run that shares it."""
    config = manifest.get("config") or {}
    limits = config.get("rollout", {})
    parts = [config.get(key) for key in ("model", "env", "warm_start")]
    parts += [limits.get(key) for key in ("max_new_tokens", "temperature")]
    if None in parts:
        return None
    text = json.dumps([*parts, eval_set], sort_keys=True)
    return "start " + hashlib.sha256(text.encode()).hexdigest()[:12]


def _run_frame(
    run_dir: Path, rows: list[dict[str, Any]], options: Options, notes: Notes
) -> pd.DataFrame:
    """compute, value and counts of one run's evaluations (and the column that r0 names)."""
    file, compute = run_dir / "evals.jsonl", options.compute or "compute"
    if compute in CLOCKS:
        clock_rows = jsonl(run_dir / "clock.jsonl", notes)
        clock = {row["step"]: row.get(compute) for row in clock_rows}
        if not any(clock.values()):
            raise InputError("compute", compute, f"not in {run_dir / 'clock.jsonl'}", "use another")
        clock.setdefault(0, 0.0)  # nothing is spent before the first step
        compute_M = [clock.get(row["step"]) for row in rows]
    else:
        compute_M = _column(rows, "compute", compute, file)
    columns = {
        "compute": compute_M,
        "value": _column(rows, "value", "mean", file),
        "passes": [row.get("passes") for row in rows],
        "trials": [row.get("trials") for row in rows],
    }
    r0 = r0_column(options.r0)
    if r0 is not None and stated(options.r0) is None:
        columns[r0] = _column(rows, "r0", r0, file)
    frame = pd.DataFrame(columns, dtype=np.float64)
    frame["passes_per_prompt"] = [listed(row.get("passes_per_prompt")) for row in rows]
    return frame.assign(row=[row["row"] for row in rows])


def _column(rows: list[dict[str, Any]], key: str, column: str, file: Path) -> list[float]:
    numeric = [name for name, cell in rows[0].items() if isinstance(cell, int | float)]
    if column not in numeric:
        remedy = f"use one of {', '.join(numeric)}"
        raise InputError(key, column, f"no numeric column of {file}", remedy)
    return [row.get(column, np.nan) for row in rows]
