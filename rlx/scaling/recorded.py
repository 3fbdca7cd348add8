"""What a source records besides its curves: other measures of compute, configurations of runs."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

from rlx.errors import InputError
from rlx.scaling.columns import SPENT, STEPS
from rlx.scaling.data import Evals
from rlx.scaling.files import json_of, table_of
from rlx.scaling.source import Notes

OF_STUDIES = ("compute", "step", "tokens_generated", "samples", "modelled_device_s", "wall_s")


def other_axes(path: Path, data: Evals, **options) -> dict[str, list[float]]:
    """Other measures of compute, by label: one number per row of `data`.

    They are those that every run records and that `Evals.read` accepts as compute.

    Args:
        path: where `data` was read from: a study or run directory, or a table.
        data: its evaluations.
        options: those with which `data` was read.
    """
    found = {}
    rows = data.frame[["run", "value"]]
    for name in _candidates(path):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                other = Evals.read(path, **(options | {"compute": name}))
        except InputError:
            continue
        if other.compute_label != data.compute_label and other.frame[["run", "value"]].equals(rows):
            found[other.compute_label] = other.frame["compute"].tolist()
    return found


def _candidates(path: Path) -> list[str]:
    """Names that may be measures of compute; none if the source can have only one."""
    if path.is_dir():
        return list(OF_STUDIES) if _manifests(path) else []
    if path.suffix == ".json":
        return []
    with contextlib.redirect_stdout(io.StringIO()):
        columns = map(str, table_of(path, Notes()))
    return [c for c in columns if any(re.fullmatch(p, c, re.I) for p in (*SPENT, *STEPS))]


def configurations(path: Path) -> dict[str, dict[str, Any]]:
    """Options of each run of a study or run directory, by dotted name; {} for other sources."""
    made = {}
    for file in _manifests(path):
        manifest = json_of(file)
        run = str(manifest.get("run_id", file.parent.name))
        made[run] = dict(_flat(manifest.get("config") or {}))
    return {run: options for run, options in made.items() if options}


def _manifests(path: Path) -> list[Path]:
    one = path / "manifest.json"
    return [one] if one.exists() else sorted(path.glob("runs/*/manifest.json"))


def _flat(options: dict[str, Any], prefix: str = ""):
    """(dotted name, value) of every leaf of nested options."""
    for key, value in options.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
