"""From the bytes of a file to rows; what cannot be read raises InputError with file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rlx.errors import InputError
from rlx.scaling.source import Notes


def json_of(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise InputError("data", file, f"not JSON ({error})", "restore or remove it") from error


def jsonl(file: Path, notes: Notes) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a torn last line, as an interrupted writer leaves it, is dropped."""
    if not file.exists():
        raise InputError("data", file, "no such file", "give a directory that a run wrote")
    lines = file.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise InputError(
                    "data", file, f"line {number} is not JSON", "restore or remove that line"
                ) from error
            notes.say(f"{file}: torn last line dropped")
    return rows


def lacking(what: str, path: Path, package: str) -> InputError:
    return InputError("data", path, f"{what} need {package}", "pip install 'rlx[logs]'")


def listed(cell: object) -> object:
    """The numbers that a cell lists, as a list or JSON text; [NaN] if they are none."""
    if cell is None or isinstance(cell, float):  # an empty cell is NaN
        return np.nan if cell is None or cell != cell else [np.nan]
    try:
        listed = np.asarray(json.loads(cell) if isinstance(cell, str) else cell, np.float64)
    except (ValueError, TypeError):
        return [np.nan]
    return listed.tolist() if listed.ndim == 1 else [np.nan]
