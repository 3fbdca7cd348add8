"""Files to cells; a file that cannot be read raises InputError with file and line.

Cells of a .csv are text, so that runs 007 and 7 stay distinct; `numbers` parses numeric columns.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable
from decimal import Decimal
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.source import Notes

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.I | re.A)
EMPTY = ("", "-", "nan", "na", "n/a", "#n/a", "<na>", "null", "none")  # in a column of numbers
COUNTER = re.compile(r"([^\W\d_].*?)(?<!\d[.,e_ ])(?<!\de[+-])(\d+)", re.A | re.I)  # step_0100
NOT_JSON = (ValueError, RecursionError, LookupError)  # also: too deep, a duplicate name
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def table_of(path: Path, notes: Notes) -> pd.DataFrame:
    """The cells of a .csv, .tsv, .jsonl or .parquet file; empty cells are NaN, nulls None."""
    kind = path.suffix.lower()
    if kind in (".csv", ".tsv"):
        return _csv(path, notes)
    if kind == ".jsonl":
        return pd.DataFrame(jsonl(path, notes, flat=True), dtype=object)
    if kind != ".parquet":
        raise InputError("data", path, "unknown kind of file", "use .csv, .jsonl or .parquet")
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise lacking("Parquet files", path, "pyarrow") from error
    except Exception as error:  # pyarrow raises many kinds on damaged files
        raise InputError("data", path, f"unreadable ({error})", "give a table") from error


def text_of(file: Path) -> str:
    """Text in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        data = file.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError("data", file, reason, "give a file that can be read") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError("data", f"{file}:{line}", "not UTF-8 text", "save it as UTF-8") from error


def json_of(file: Path) -> Any:
    text = text_of(file)
    try:
        return _parsed(text)
    except NOT_JSON as error:
        raise InputError("data", file, f"not JSON ({error})", "restore or remove it") from error


def jsonl(file: Path, notes: Notes, *, flat: bool = False) -> list[dict[str, Any]]:
    """Rows of a JSONL file; an incomplete last line, left by an interrupted writer, is dropped.

    flat: nested objects become names, {"eval": {"acc": 1}} eval/acc; the keys of a single object
        beside a step, {"step": 1, "data": {"acc": 1}}, keep their names.
    """
    if not file.exists():
        raise InputError("data", file, "no such file", "give a directory that a run wrote")
    rows, lines = [], text_of(file).split("\n")  # splitlines would split at U+2028 in a string
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parsed(line)
            rows.append(_flat(row) if flat and isinstance(row, dict) else row)
        except NOT_JSON as error:
            if number < len(lines):  # a complete line
                what = error.args[0] if isinstance(error, LookupError) else "is not JSON"
                remedy = "restore or remove that line"
                raise InputError("data", file, f"line {number} {what}", remedy) from error
            notes.say(f"{file}: incomplete last line dropped")
        else:
            if not isinstance(row, dict):
                reason, remedy = f"line {number} is not an object", "write one object per line"
                raise InputError("data", file, reason, remedy)
    return rows


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    if len(found := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise LookupError(f"has {next(n for n in names if names.count(n) > 1)} twice")
    return found


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    nested = {key: _flat(cell) for key, cell in row.items() if isinstance(cell, dict)}
    alone = len(nested) == 1 and len(row) == 2
    pairs = []
    for key, cell in row.items():
        inner = nested.get(key)
        if inner is None:
            pairs.append((key, cell))
        else:
            own = {n: n if alone and n not in row else f"{key}/{n}" for n in inner}
            pairs += [(own[name], x) for name, x in inner.items()]
    return _once(pairs)


def _csv(path: Path, notes: Notes) -> pd.DataFrame:
    text = text_of(path)
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError("data", f"{path}:{line}", "holds NUL characters", "remove them")
    separator, ((head, names), *rows) = _split(path, text)
    if separator != ",":
        notes.say(f"{path.name}: cells are separated by {SEPARATORS[separator]}")
    names = [name.strip() for name in names]
    while names and not names[-1] and not any("".join(row[len(names) - 1 :]) for _, row in rows):
        names.pop()  # every line ends with a separator
    names = [name or f"column {i}" for i, name in enumerate(names, start=1)]
    refuse_twice(names, f"{path}:{head}")
    torn = rows and len(rows[-1][1]) < len(names) and not text.endswith(("\n", "\r"))
    if torn:
        notes.say(f"{path}: incomplete last line dropped")
        del rows[-1]
    for line, row in rows:
        if len(row) < len(names) or "".join(row[len(names) :]):
            reason = f"{len(row)} cells under a header of {len(names)}"
            remedy = "fix that line; quote a cell that holds the separator"
            raise InputError("data", f"{path}:{line}", reason, remedy)
    cells = [[cell if cell.strip() else np.nan for cell in row[: len(names)]] for _, row in rows]
    return pd.DataFrame(cells, columns=names, dtype=object)


def refuse_twice(names: list[str], where: object) -> None:
    """Raises InputError about a name of two columns."""
    twice = pd.Series(names, dtype=object)
    if twice := twice[twice.duplicated()].tolist():
        reason = f"the column {twice[0]} appears twice"
        raise InputError("data", where, reason, "rename or remove one (of two runs, too)")


def _split(path: Path, text: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """The separator, and (line, cells) of each line that is not blank.

    The first separator that gives every line the same number of cells, more than one; else the
    one that splits the header into the most cells.
    """
    found = {}
    for separator in SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        lines: list[tuple[int, list[str]]] = []
        try:
            lines += ((reader.line_num, row) for row in reader if "".join(row).strip())
        except csv.Error as error:
            failure = InputError("data", f"{path}:{reader.line_num}", error, "fix the quotes")
        else:
            failure = None
            if lines and len(lines[0][1]) > 1 and len({len(row) for _, row in lines}) == 1:
                return separator, lines
        found[separator] = lines, failure
    separator = max(found, key=lambda s: len(found[s][0][0][1]) if found[s][0] else 0)
    lines, failure = found[separator]
    if failure:
        raise failure
    if not lines:
        raise InputError("data", path, "is empty", "give a table with a header")
    return separator, lines


def numbers(
    cells: pd.Series, name: str, key: str, column: str, *, counter: bool = False
) -> np.ndarray:
    """Cells as float64, NaN if empty. True and false are not numbers.

    counter: `step_0100`, `checkpoint-200` count as 100 and 200 if all prefixes are equal.

    Raises:
        InputError: a cell is not a number.
    """
    if cells.dtype.kind in "iuf":
        return cells.to_numpy(np.float64, na_value=np.nan)
    places, texts = cells.index + 1, cells.to_list()
    if counter:
        counted = [COUNTER.fullmatch(text) for text in texts if isinstance(text, str)]
        words = {match and match[1] for match in counted}
        if len(counted) == len(texts) and len(words) == 1 and None not in words:
            texts = [match[2] for match in counted if match]
    read = []
    for place, cell in zip(places, texts, strict=True):
        try:
            read.append(_number(cell))
        except (ValueError, OverflowError) as error:
            shown = repr(cell) if isinstance(cell, str) else cell
            reason = f"{name}: not a column of numbers (row {place}: {shown})"
            another = "" if key == "wide" else f"name another with {key}=, or "
            raise InputError(key, column, reason, f"{another}write plain numbers") from error
    return np.asarray(read, np.float64)


def _number(cell: object) -> float:
    if isinstance(cell, str):
        text = cell.strip()
        if NUMBER.fullmatch(text):
            return float(text)
        if text.lower() in EMPTY:
            return np.nan
    elif cell is None or cell is pd.NA or cell is pd.NaT:
        return np.nan
    elif isinstance(cell, Real | Decimal) and not isinstance(cell, bool | np.bool_):
        return float(cell)
    raise ValueError("not a number")


def text(cell: object) -> object:
    """The text of a cell, NaN if it is empty; whole numbers have no decimals."""
    if isinstance(cell, float):
        return np.nan if np.isnan(cell) else str(int(cell) if cell % 1 == 0 else cell)
    return np.nan if cell is None or cell is pd.NA or cell is pd.NaT else str(cell)


def texts(cells: pd.Series) -> pd.Series:
    return pd.Series([text(cell) for cell in cells], cells.index, dtype=object)


def listed(cell: object) -> object:
    """A list of numbers, from a list or JSON text; [NaN] if it is something else."""
    if cell is None or isinstance(cell, float):  # an empty cell is NaN
        return np.nan if cell is None or cell != cell else [np.nan]
    try:
        listed = np.asarray(json.loads(cell) if isinstance(cell, str) else cell, np.float64)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return [np.nan]
    return listed.tolist() if listed.ndim == 1 else [np.nan]


def lacking(what: str, path: Path, package: str) -> InputError:
    return InputError("data", path, f"{what} need {package}", "pip install 'rlx[logs]'")
