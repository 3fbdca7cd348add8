"""Rows of a file or of a dataset hub, and their division into training and held-out problems.

path=questions.jsonl | questions.parquet      a file
path=package:NAME/data/test.jsonl             a file inside an installed package
dataset=OWNER/NAME                            the hub, through the `datasets` library
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlx.errors import InputError
from rlx.problem import Problem

Row = tuple[str, dict[str, Any]]  # (place in the file, for messages; values)
PATH = "env.kwargs.path"


def bad_row(where: str, reason: str, remedy: str) -> InputError:
    """The error of the row at `where`, `KEY=FILE: line 3`, the first part of a `Row`."""
    key, _, rest = where.partition("=")
    value, _, place = rest.rpartition(": ")
    return InputError(key, value, f"{place} {reason}", remedy)


def locate(path: str, key: str = PATH) -> Path:
    """The path of a file; `package:` locates it in an installed package without importing that."""
    if not path.startswith("package:"):
        return Path(path)
    name, _, rest = path.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() and name != "__main__" else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(key, path, f"{name} is not installed", "pip install it")
    return Path(spec.submodule_search_locations[0]) / rest


def rows(path: str, key: str = PATH) -> list[Row]:
    """Every row of a JSONL or Parquet file. Raises InputError naming the file and the line.

    key: the option that names the file.
    """
    file = locate(path, key)
    try:
        if not file.is_file():
            reason = "not a file" if file.exists() else "no such file"
            raise InputError(key, path, reason, "give a .jsonl or .parquet file")
        if file.suffix == ".parquet":
            found = _parquet_rows(file, path, key)
        elif file.suffix in (".jsonl", ".json"):
            found = list(_json_rows(file, f"{key}={path}"))
        else:
            raise InputError(key, path, "neither .jsonl nor .parquet", "convert it")
    except OSError as error:
        raise InputError(key, path, error.strerror or error, "give a file to read") from None
    if not found:
        raise InputError(key, path, "it holds no rows", "give another file")
    return found


def _json_rows(file: Path, where: str) -> Iterator[Row]:
    with file.open("rb") as f:
        for number, line in enumerate(f, 1):
            place = f"{where}: line {number}"
            try:
                text = line.decode("utf-8-sig")
                if not text.strip():
                    continue
                row = json.loads(text, parse_constant=_refused, object_pairs_hook=_distinct)
            except json.JSONDecodeError as error:
                reason = f"is not JSON ({error.msg} at character {error.pos + 1})"
                raise bad_row(place, reason, "fix that line") from None
            except (ValueError, RecursionError) as error:
                raise bad_row(place, f"is not JSON ({error})", "fix that line") from None
            if not isinstance(row, dict):
                raise bad_row(place, "is not a JSON object", "write one object per line")
            yield place, row


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} twice")
    return row


def _parquet_rows(file: Path, path: str, key: str) -> list[Row]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        reason = f"cannot import pyarrow ({error})"
        raise InputError(key, path, reason, "pip install pyarrow") from error
    try:
        table = parquet.read_table(file).to_pylist()
    except Exception as error:  # on damaged files the library raises many kinds
        raise InputError(key, path, f"not Parquet ({error})", "give another file") from error
    return [(f"{key}={path}: row {i}", row) for i, row in enumerate(table)]


def hub_rows(dataset: str, subset: str | None, split: str) -> list[Row]:
    """Every row of a split. Raises InputError if it cannot be loaded."""
    key = "env.kwargs.dataset"
    try:
        import datasets
    except ImportError as error:
        reason = f"cannot import datasets ({error})"
        raise InputError(key, dataset, reason, "pip install datasets") from None
    try:
        table = [dict(row) for row in datasets.load_dataset(dataset, subset, split=split)]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        remedy = "check the name, or give env.kwargs.path=FILE instead"
        raise InputError(key, dataset, reason, remedy) from error
    return [(f"{key}={dataset}: row {i}", row) for i, row in enumerate(table)]


def source_rows(path: str | None, dataset: str | None, subset: str | None, split: str) -> list[Row]:
    """Every row of the file or of the dataset; InputError unless one of the two is given."""
    if (path is None) == (dataset is None):
        remedy = "give one of the two, a .jsonl or .parquet file or a name on the hub"
        raise InputError(PATH, path, f"and dataset={dataset}", remedy)
    return rows(path) if path else hub_rows(str(dataset), subset, split)


def field(row: Row, names: Sequence[str], option: str) -> Any:
    """The first of `names` for which the row has a value; `option` lets the user choose another."""
    where, values = row
    for name in names:
        value = values.get(name)
        if value is not None and value != [] and not (isinstance(value, str) and not value.strip()):
            return value
    has = ", ".join(values) or "none"
    reason = f"has no {' or '.join(names)} (fields: {has})"
    raise bad_row(where, reason, f"set env.kwargs.{option} or fix it")


def texts(row: Row, names: Sequence[str]) -> list[str]:
    """The row's texts under all of `names`; the first, a prompt, must not be empty."""
    where, values = row
    for name in names:
        if not isinstance(values.get(name), str) or name == names[0] and not values[name]:
            form = ", ".join(f'"{name}": TEXT' for name in names)
            raise bad_row(where, f"has no text under {name}", f"write {{{form}}}")
    return [encodable(where, values[name]) for name in names]


def text_field(row: Row, names: Sequence[str], option: str) -> str:
    """`field` as text; numbers are accepted."""
    value = field(row, names, option)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = type(value).__name__
        raise bad_row(row[0], f"holds a {kind} instead of text", f"set env.kwargs.{option}")
    if isinstance(value, float) and not math.isfinite(value):
        raise bad_row(row[0], f"holds {value} instead of text", "fix it")
    return encodable(row[0], str(value).strip())


def encodable(where: str, text: str) -> str:
    """The text, if it can be encoded: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise bad_row(where, f"holds {half}, a lone surrogate", "fix it") from None
    return text


def divide(
    pool: Iterable[tuple[str, Any]],
    *,
    train_prompts: int,
    heldout_prompts: int,
    seed: int,
    source: str,
    heldout_pool: Iterable[tuple[str, Any]] | None = None,
    longest: int = 0,
) -> tuple[list[Problem], list[Problem]]:
    """(train, heldout) of (prompt, answer) pairs in an order drawn from `seed`, distinct by prompt.

    Held-out problems come first, so they do not depend on `train_prompts`; or from `heldout_pool`,
    whose chosen prompts are then excluded from training. Prompts of more than `longest` characters
    are excluded from both; 0: no limit. Raises InputError if there are too few.
    """
    short = f" of at most {longest} characters" if longest else ""
    mine = _shuffled(pool, seed, longest)
    if heldout_pool is None:
        heldout, rest = mine[:heldout_prompts], mine[heldout_prompts:]
    else:
        heldout = _shuffled(heldout_pool, seed, longest)[:heldout_prompts]
        kept = {prompt for prompt, _ in heldout}
        rest = [pair for pair in mine if pair[0] not in kept]
    if len(heldout) < heldout_prompts:
        reason = f"{source} has only {len(heldout)} distinct prompts{short} to hold out"
        raise InputError("env.heldout_prompts", heldout_prompts, reason, "ask for fewer")
    if len(rest) < train_prompts:
        reason = f"{source} has only {len(rest)} distinct prompts{short}"
        reason += f" besides env.heldout_prompts={heldout_prompts}"
        raise InputError("env.train_prompts", train_prompts, reason, "ask for fewer")
    return numbered(rest[:train_prompts]), numbered(heldout)


def _shuffled(pool: Iterable[tuple[str, Any]], seed: int, longest: int) -> list[tuple[str, Any]]:
    distinct: dict[str, Any] = {}
    for prompt, answer in pool:
        if not longest or len(prompt) <= longest:
            distinct.setdefault(prompt, answer)
    pairs = list(distinct.items())
    return [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]


def numbered(pairs: Iterable[tuple[str, Any]]) -> list[Problem]:
    return [Problem(i, prompt, answer) for i, (prompt, answer) in enumerate(pairs)]
