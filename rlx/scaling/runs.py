"""Study and run directories written by rlx: manifest.json, evals.jsonl and clock.jsonl."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlx.config import options as options_of
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

    Of each run the rows of one evaluation set; runs without the requested set are left out. Runs
    share a start if model, environment, warm start, evaluation set and generation limits agree.
    """
    refuse(options, f"the manifests of {path} define it", but="r0", also="value")
    records = _records(path, notes)
    if not records:
        raise InputError("data", path, "no run has an evaluation yet", "wait until one has")
    there = sorted({name for _, _, sets in records for name in sets})
    if options.eval_set is not None:
        chosen_set(there, path, options)
    parts, samples, chosen, read = [], set(), set(), []
    for run_dir, manifest, sets in records:
        run = str(manifest.get("run_id", run_dir.name))
        if options.eval_set not in (None, *sets):
            notes.say(f"{path}: run {run}: no rows of eval_set={options.eval_set}: left out")
            continue
        eval_set = chosen_set(sets, run_dir / "evals.jsonl", options)
        rows = sets[eval_set]
        one: dict[str, Any] = {"run": run, "recipe": str(manifest.get("recipe") or run)}
        one |= {"seed": manifest.get("seed"), "truth": _ceiling(manifest, eval_set)}
        one |= {"start": _start(manifest, eval_set)}
        parts.append((_columns(run_dir, rows, options, notes), one))
        read.append(manifest)
        samples |= {row["trials"] // len(row["passes_per_prompt"]) for row in rows if _k(row)}
        chosen.add(eval_set)
    if len(there) > 1:
        sets_read = ", ".join(sorted(chosen))
        notes.say(f"{path}: evaluation sets {', '.join(there)}: using eval_set={sets_read}")
    axes, levels = axes_of(read, path, notes)
    table = pd.DataFrame(
        {name: [x for columns, _ in parts for x in columns[name]] for name in parts[0][0]}
    )
    for (_, one), level in zip(parts, levels, strict=True):
        one |= level
    count = [len(columns["row"]) for columns, _ in parts]
    for name in parts[0][1]:
        of_runs = pd.Series([one[name] for _, one in parts], dtype=object)
        table[name] = of_runs.repeat(count).array
    compute = options.compute or "compute"
    k = f", mean@{samples.pop()}" if len(samples) == 1 else ""
    return Source(
        str(path),
        table.astype({"truth": np.float64}),
        COMPUTE_LABELS.get(compute, compute),
        axes,
        value_label(chosen, k),
    )


def axes_of(
    manifests: Sequence[dict[str, Any]], path: Path, notes: Notes
) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """(axes, the level of each run): the differences between runs besides the seed.

    First the axes named in the manifests; for an option that a run does not name, the level is that
    of its configuration. Then anything else in which runs of one recipe at the same levels differ,
    until the rest differ in the seed alone; each is noted. Axes with one level are left out.
    """
    configs = [_computed(manifest) for manifest in manifests]
    names = list(dict.fromkeys(axis for m in manifests for axis in m.get("axes") or {}))
    levels = [_declared(names, m, c) for m, c in zip(manifests, configs, strict=True)]
    shared: dict[str, dict[str, Any]] = {}  # levels of runs of one configuration
    keys = [json.dumps(config, sort_keys=True) if config else "" for config in configs]
    for key, level in zip(keys, levels, strict=True):
        shared[key] = level | shared.get(key, {}) if key else {}
    for key, level in zip(keys, levels, strict=True):
        level |= {axis: x for axis, x in shared[key].items() if axis not in level}
    while other := _mixed(manifests, levels, configs):
        recipe, differing = other
        notes.say(
            f"{path}: runs of {recipe} differ in {', '.join(differing)} besides the seed: "
            f"axis {differing[0]}"
        )
        names.append(differing[0])
        for level, config in zip(levels, configs, strict=True):
            if differing[0] in config:
                level[differing[0]] = _plain(config[differing[0]])
    several = [a for a in names if len({str(level.get(a, _Missing)) for level in levels}) > 1]
    axes = several if all(configs) else names
    for axis in axes:
        without = [level for level in levels if axis not in level]
        if without:
            name = _missing(axis, levels)
            notes.say(f"{path}: axis {axis}: {len(without)} runs have no level: level {name}")
        for level in without:
            level[axis] = name
    return tuple(axes), [{axis: level[axis] for axis in axes} for level in levels]


def _computed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Options of a run without its seed; empty if the manifest has no configuration."""
    config = manifest.get("config")
    if not config or not isinstance(config, dict):
        return {}
    made = options_of(config, int(manifest.get("migrations") or 0))
    return {key: x for key, x in made.items() if key != "seed"}


def _declared(names: Sequence[str], manifest: dict[str, Any], config: dict[str, Any]):
    known = {**config, **{k: x for k, x in (manifest.get("axes") or {}).items() if k not in config}}
    return {axis: _plain(known[axis]) for axis in names if axis in known}


def _mixed(manifests, levels, configs) -> tuple[str, list[str]] | None:
    """(recipe, options) of the first runs that would be pooled although their options differ."""
    first: dict[str, dict[str, Any]] = {}
    for manifest, level, config in zip(manifests, levels, configs, strict=True):
        recipe = str(manifest.get("recipe") or manifest.get("run_id"))
        before = first.setdefault(json.dumps([recipe, level], sort_keys=True, default=str), config)
        if before and config and before != config:
            both = [*before, *(key for key in config if key not in before)]
            apart = [key for key in both if before.get(key, _Missing) != config.get(key, _Missing)]
            if apart := [key for key in apart if key not in level]:  # a NaN differs from itself
                return recipe, apart
    return None


class _Missing:
    """The level of a run without one."""


def _missing(axis: str, levels: Sequence[dict[str, Any]]) -> str:
    """A name for the missing level that is not a level."""
    name, there = "default", {str(level.get(axis)) for level in levels}
    while name in there:
        name = f"({name})"
    return name


def _plain(value: Any) -> Any:
    """A level in a form that can be compared and shown; a text like a list is not a list."""
    like = isinstance(value, str) and value[:1] in ("[", "{")
    return json.dumps(value) if like or isinstance(value, list | dict) else value


Sets = dict[str, list[dict[str, Any]]]  # rows of evals.jsonl, by evaluation set


def _records(path: Path, notes: Notes) -> list[tuple[Path, dict[str, Any], Sets]]:
    """(directory, manifest, evaluations) of every run that has an evaluation.

    `row` of an evaluation is its place in the file.
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
    """The exact ceiling of an evaluation set; old manifests have only that of the held-out set."""
    return manifest.get("ceilings", {HELDOUT: manifest.get("ceiling")}).get(eval_set)


def _k(row: dict[str, Any]) -> bool:
    return bool(row.get("trials") and row.get("passes_per_prompt"))


def _start(manifest: dict[str, Any], eval_set: str) -> str | None:
    """A name for everything that determines R0, equal for runs that share it."""
    config = manifest.get("config") or {}
    limits = config.get("rollout", {})
    parts = [config.get(key) for key in ("model", "env", "warm_start")]
    parts += [limits.get(key) for key in ("max_new_tokens", "temperature")]
    if None in parts:
        return None
    text = json.dumps([*parts, eval_set], sort_keys=True)
    return "start " + hashlib.sha256(text.encode()).hexdigest()[:12]


def _columns(
    run_dir: Path, rows: list[dict[str, Any]], options: Options, notes: Notes
) -> dict[str, list[Any]]:
    """compute, value and counts of one run's evaluations (and the column named by r0)."""
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
    made = {name: np.array(cells, np.float64).tolist() for name, cells in columns.items()}
    made["passes_per_prompt"] = [listed(row.get("passes_per_prompt")) for row in rows]
    return made | {"row": [row["row"] for row in rows]}


def _column(rows: list[dict[str, Any]], key: str, column: str, file: Path) -> list[float]:
    numeric = [name for name, cell in rows[0].items() if isinstance(cell, int | float)]
    if column not in numeric:
        remedy = f"use one of {', '.join(numeric)}"
        raise InputError(key, column, f"not a numeric column of {file}", remedy)
    return [row.get(column, np.nan) for row in rows]
