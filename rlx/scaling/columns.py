"""Inferring the columns of a table; what cannot be inferred safely is an error.

Compute is cumulative from the start of training: a column of that name, or one in FLOPs, device
hours, seconds, tokens, steps, ..., in this order. In a run it must never fall and must rise; if
there are steps, it must be roughly proportional to them, which the length of answers, throughput or
the time per step are not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.files import numbers
from rlx.scaling.source import some

NAMES = {  # patterns of a column's whole name, the most specific first
    "run": ("run", "run_id", "run_name", "experiment"),
    "recipe": ("recipe", "algo", "algorithm", "method"),
    "seed": ("seed",),
    "passes": ("passes",),
    "trials": ("trials",),
    "passes_per_prompt": ("passes_per_prompt",),
    "samples_per_prompt": ("samples_per_prompt",),
    "stderr": ("stderr|std_?err(or)?|standard_error",),
    "truth": ("truth|ceiling",),
    "start": (),
}
SPENT = (".*flops?|.*flos", r".*gpu_?h(ou)?rs?", ".*(device_s|wall_s|seconds|hours)", ".*tokens")
STEPS = (".*steps?", ".*(updates?|iterations?|iters?)", ".*epochs?", ".*(checkpoint|ckpt)s?")
STATISTICS = set(
    "mean avg average max min median std per rate length len throughput achieved new limit".split()
)
SINCE_THE_START = set(  # words that are unambiguous together with a unit
    "total cumulative cum num train training trained rl gpu device wall s elapsed used spent "
    "consumed processed seen global modelled generated input compute optimizer policy".split()
)
UNIT = "(exa|peta|tera|giga|mega|[kmgtpez])?flops?|flos|gpuh(ou)?rs?|h(ou)?rs?|seconds|tokens"
STEP = "steps?|updates?|iterations?|iters?|epochs?|checkpoints?|ckpts?"
VALUE = r"(value|pass_?rate|mean(@\d+)?|acc(uracy)?|score)(\.\d+)?"  # acc.1: pandas' second acc
SCORE = re.compile(
    r"(.*[/_])?(rewards?|acc(uracy)?|score|pass_?rate|pass_?\d+|(pass|mean)@\d+)", re.I
)
HELD_OUT = re.compile(r"(eval|val|valid|test|held_?out)([/_-].*)", re.I)
SETS = re.compile(
    ".*(eval_?set|task|bench(mark)?|data_?set|data_?source|split|subset|domain|suite|metric)", re.I
)
REPEATS = re.compile(
    r"(.*[\W_])?(seed|sample|repeat|replicate|trial|attempt|rollout|problem|prompt|question|item|"
    "example|id|idx|index)",
    re.I,
)


def pick(table: pd.DataFrame, name: str, key: str, option: str | float | None) -> str | None:
    """The column for `key`: the named one, or the one whose name matches the first of NAMES."""
    if option is not None:
        return named(table, name, key, str(option))
    for pattern in NAMES[key]:
        if found := _matching(table, pattern):
            return _one(found, name, key)
    return None


def named(table: pd.DataFrame, name: str, key: str, column: str) -> str:
    if column not in table:
        raise missing(table, name, key, column)
    return column


def missing(
    table: pd.DataFrame, name: str, key: str, column: str = "", also: str = ""
) -> Exception:
    remedy = f"use one of {some(table.columns)}{also}"
    return InputError(key, column, f"{name} has no such column", remedy)


def compute_column(table: pd.DataFrame, name: str, run: pd.Series) -> str:
    """The column of compute; `run` names the run of each row."""
    if found := _matching(table, "compute|c"):
        return _one(found, name, "compute")
    cells, failure = {}, None
    for pattern in (*SPENT, *STEPS):
        for column in _matching(table, pattern):
            if column not in cells and not _words(column) & STATISTICS:
                try:
                    cells[column] = numbers(table[column], name, "compute", column, counter=True)
                except InputError as error:
                    failure = failure or error
    if not cells:
        raise failure or missing(table, name, "compute")
    steps = [c for pattern in STEPS for c in _matching(table, pattern) if c in cells]
    step = next((cells[c] for c in steps if _accumulates(cells[c], None, run)), None)
    found = [c for c in cells if _accumulates(cells[c], None if c in steps else step, run)]
    for pattern in (*SPENT, *STEPS):
        best = _distinct([c for c in found if c in _matching(table, pattern)], cells)
        alone = len(cells) == 1 and best == steps
        if len(best) == 1 and (alone or _is_since_the_start(best[0], best[0] in steps)):
            return best[0]
        if best:
            raise _several(best if len(best) > 1 else list(cells), name, "compute")
    fall = [c for c in cells if _is_since_the_start(c, c in steps) and np.ptp(cells[c]) > 0]
    if len(fall) == 1:  # the error about its cells is more specific
        return fall[0]
    raise _several(list(cells), name, "compute")


def _is_since_the_start(column: str, steps: bool) -> bool:
    unit = STEP if steps else UNIT
    return all(word in SINCE_THE_START or re.fullmatch(unit, word) for word in _words(column))


def _accumulates(cells: np.ndarray, step: np.ndarray | None, run: pd.Series) -> bool:
    """Whether no run's cells fall, some rise, and all are roughly proportional to the steps.

    max |x / x_last - s / s_last| <= 1/4, for steps s. Runs of one row are ignored.
    """
    rows = pd.DataFrame({"run": run.to_numpy(), "x": cells, "s": cells if step is None else step})
    rows = rows[np.isfinite(rows["x"]) & np.isfinite(rows["s"])]
    rows = rows[rows["run"].notna() & rows["run"].duplicated(keep=False)]
    by_run = rows.groupby("run", sort=False)
    first, last = by_run["x"].transform("first"), by_run[["x", "s"]].transform("last")
    if rows.empty:
        return True
    if (rows["x"] < 0).any() or (by_run["x"].diff() < 0).any() or not (last["x"] > first).any():
        return False
    apart = rows["x"] / last["x"] - rows["s"] / last["s"]
    return not (apart.abs() > 0.25).any()


def value_column(table: pd.DataFrame, name: str, other: Iterable[str], counted: bool) -> str | None:
    """The column of pass rates, or None if there is none.

    other: columns with another role; counted: whether there are passes and trials.
    """
    found = _matching(table, VALUE)
    if not found and not counted:
        rest = [c for c in table if c not in {*other} and _is_numeric(table[c])]
        best = score_key(rest)
        found = [best] if best else [c for c in rest if SCORE.fullmatch(c)]
    if len(found) > 1:
        found = _distinct(found, {column: table[column] for column in found})
    return _one(found, name, "value") if found else None


def score_key(keys: Sequence[str]) -> str:
    """The only key that names a pass rate, held-out data first; "" if it is not unique."""
    scores = [key for key in keys if SCORE.fullmatch(key)]
    held_out = [key for key in scores if HELD_OUT.fullmatch(key)]
    (best,) = [found[0] for found in (held_out, scores) if len(found) == 1][:1] or [""]
    return best


def told_apart(
    table: pd.DataFrame, name: str, run: pd.Series, compute: pd.Series, unused: Sequence[str]
) -> pd.Series:
    """What distinguishes rows of a run at the same compute; NaN if nothing does.

    Raises:
        InputError: they belong to several tasks, or the reason is unknown; evaluations with several
            seeds or of several prompts are one evaluation.
    """
    point = pd.DataFrame({"run": run, "compute": compute})
    again = point.notna().all(axis=1) & point.duplicated(keep=False)
    apart = pd.Series(np.nan, table.index, dtype=object)
    if not again.any():
        return apart
    cells, repeats = table[again].map(str), False
    for column in unused:
        rows = point[again].assign(label=cells[column])
        varies = rows.drop_duplicates().duplicated(["run", "compute"]).any()
        discrete = not cells[column].str.fullmatch(r"[-+\d]*\.\d*[1-9].*|.*e-.*").any()
        label = not rows.duplicated().any() and 2 * rows["label"].nunique() <= len(rows)
        if varies and REPEATS.fullmatch(column):
            repeats = True
        elif varies and discrete and (SETS.fullmatch(column) or label):
            reason = (
                f"column {column} distinguishes rows at the same compute "
                f"({some(cells[column].unique(), most=3)})"
            )
            remedy = f"rename {column} to eval_set to read one with eval_set=NAME, or average it"
            raise InputError("data", name, reason, remedy)
    several = point[again][~cells.duplicated()].value_counts().gt(1).groupby("run").sum()
    most = several[several > point.drop_duplicates().groupby("run").size()[several.index] / 2]
    if len(most) and not repeats:
        reason = f"run {most.index[0]}: several rows at most values of compute"
        remedy = (
            "number them in a column eval_seed if they are one run, name its runs with run=, or if "
            "a resumed run counts from 0 again, add what it had spent"
        )
        raise InputError("data", name, reason, remedy)
    if len(unused):
        hashes = pd.util.hash_pandas_object(cells[[*unused]], index=False)  # ty: ignore[not-callable]
        apart[again] = hashes.astype(str)
    return apart


def refuse_turns(table: pd.DataFrame, name: str, frame: pd.DataFrame, unused: list[str]) -> None:
    """Raises InputError about a column of tasks that take turns: rows at other computes each.

    In a run of `frame`, in order of compute, a task comes again after another one. Tasks that
    follow each other may be a curriculum.
    """
    scored = frame.columns.intersection(["value", "passes", "passes_per_prompt"])
    rows = frame.loc[frame[scored].notna().any(axis=1), ["run", "compute"]].dropna()
    rows = rows.sort_values("compute", kind="stable")
    for column in (c for c in unused if SETS.fullmatch(c) and not _is_numeric(table[c])):
        task = table.loc[rows.index, column].map(str)
        changes = task != task.groupby(rows["run"]).shift()
        if rows.assign(task=task)[changes].duplicated(["run", "task"]).any():
            reason = f"column {column} takes turns within a run ({some(task.unique(), most=3)})"
            remedy = f"rename {column} to eval_set to read one with eval_set=NAME, or remove it"
            raise InputError("data", name, reason, remedy)


def counters(names: Iterable[str]) -> list[str]:
    """The names that can only be those of computes, or of a table's index."""
    return [
        name
        for name in names
        if re.fullmatch(r"|column \d+|unnamed: \d+|index", name.strip(), re.I)
        or any(
            re.fullmatch(pattern, name, re.I) and _is_since_the_start(name, pattern in STEPS)
            for pattern in (*SPENT, *STEPS)
        )
    ]


def _matching(table: pd.DataFrame, pattern: str) -> list[str]:
    return [c for c in table if re.fullmatch(pattern, c, re.I)]


def _words(column: str) -> set[str]:
    return {word for word in re.split(r"[\W_]+", column.lower()) if word}


def _is_numeric(cells: pd.Series) -> bool:
    try:
        return not np.isnan(numbers(cells, "", "", "")).all()
    except InputError:
        return False


def _distinct(columns: Sequence[str], cells: Mapping[str, Iterable]) -> list[str]:
    """The columns without duplicates; of a single row all are kept."""
    if columns and len(list(cells[columns[0]])) < 2:
        return list(columns)
    return list({str(list(cells[c])): c for c in reversed(columns)}.values())[::-1]


def _one(found: Sequence[str], name: str, key: str) -> str:
    if len(found) > 1:
        raise _several(found, name, key)
    return found[0]


def _several(found: Sequence[str], name: str, key: str) -> InputError:
    columns = (
        f"columns {some(found)}" if len(found) > 1 else f"column {found[0]}, which is uncertain"
    )
    return InputError(key, "", f"{name} has {columns}", f"name one with {key}=")
