"""Evaluations as the padded arrays of the model, with the names along their axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.model import FIRST_GAP, Options, Study
from rlx.scaling.priors import LATE_RISE, NEAR_START, Priors

Floats = NDArray[np.float64]

MAX_POINTS = 128  # evaluations of a run; longer ones pool neighbours
KNOWN_R0_SD = 0.01  # logit: a given R0 is treated as exact
LATEST_FIRST = 0.9  # latest first evaluation, as a share of a run's last compute
START_STDERR = 0.01  # of an evaluation at C = 0 of unknown error, where no noise is fitted


@dataclass(frozen=True)
class Labels:
    """Names along the model's axes, and constants of the study."""

    runs: list[str]
    recipes: list[str]  # a recipe at one level of every axis
    starts: list[str]
    recipe_R: NDArray[np.int64]
    start_R: NDArray[np.int64]
    levels: pd.DataFrame  # of each axis, one row per recipe
    effects: list[str]  # columns of the design
    C_ref: float  # median compute of the fitted evaluations
    C_max_R: Floats  # last fitted compute
    truth_R: Floats  # exact ceiling, NaN where unknown


def cell_names(frame: pd.DataFrame) -> pd.Series:
    """Recipe with the levels of its axes: the unit that seeds replicate."""
    axes = frame["axes"].astype(str)
    return frame["recipe"].astype(str).where(axes == "", frame["recipe"].astype(str) + ", " + axes)


def assemble(
    evals: Evals,
    *,
    axes: tuple[str, ...] | None = None,
    r0: float | str | None = None,
    priors: Priors,
    pad_to: int = 0,
) -> tuple[Study, Labels, list[str]]:
    """Arrays and labels of a study, and notes on what was pooled.

    Args:
        evals: the evaluations.
        axes: columns whose levels have effects; default those of the study, and `recipe` if several
            recipes are crossed with axes.
        r0: pass rate at C = 0: a number or a column; default the evaluations at C = 0, or a prior
            from each start's first evaluation.
        priors: for starts without an evaluation at C = 0.
        pad_to: least number of columns of the arrays, so that windows of a study share a program.

    Raises:
        InputError: an axis or r0 is not a column, no evaluation has C > 0, a start has no R0 in
            [0, 1).
    """
    frame = evals.frame.assign(cell=cell_names(evals.frame))
    later = frame[frame["compute"] > 0]
    if later.empty:
        raise InputError("data", evals.title, "no evaluation has C > 0", "train before fitting")
    _check_offset(frame, later)
    C_ref = float(np.median(later["compute"]))
    groups = [(str(run), rows) for run, rows in later.groupby("run", sort=False)]
    notes = []
    pooled = [_pool(run, rows, notes) for run, rows in groups]
    M = max(pad_to, 8 * -(-max(map(len, pooled)) // 8))
    columns = [_row(rows, C_ref, M) for rows in pooled]
    arrays: dict[str, Any] = {n: np.stack([c[n] for c in columns]) for n in columns[0]}
    cells = list(dict.fromkeys(frame["cell"]))
    starts = list(dict.fromkeys(frame["start"].astype(str)))
    first = [rows.iloc[0] for _, rows in groups]
    levels, effects, design_JE = _design(frame, evals.axes, axes, cells)
    fitted = bool(later["stderr"].isna().any())
    mean_S, sd_S, noise_S = _starts(frame, starts, r0, priors, fitted).T
    labels = Labels(
        runs=[run for run, _ in groups],
        recipes=cells,
        starts=starts,
        recipe_R=np.array([cells.index(row["cell"]) for row in first]),
        start_R=np.array([starts.index(str(row["start"])) for row in first]),
        levels=levels,
        effects=effects,
        C_ref=C_ref,
        C_max_R=np.array([rows["compute"].max() for _, rows in groups]),
        truth_R=np.array([float(row["truth"]) for row in first]),
    )
    arrays |= {"recipe_R": labels.recipe_R, "start_R": labels.start_R, "design_JE": design_JE}
    arrays |= {"start_mean_S": mean_S, "start_sd_S": sd_S, "start_noise_S": noise_S}
    return Study(**arrays), labels, notes


def _check_offset(frame: pd.DataFrame, later: pd.DataFrame) -> None:
    """Raises InputError if all runs begin near their end: compute counted from before training."""
    ends = later.groupby("run")["compute"].agg(["min", "max", "size"])
    late = ends["min"] / ends["max"] > LATEST_FIRST
    known = frame.loc[frame["compute"] == 0, "run"].unique()
    if late.all() and not len(known) and (ends["size"] > 1).all():
        reason = f"starts at {(ends['min'] / ends['max']).min():.3g} of its end"
        remedy = "subtract its value at the start of training, or name another column"
        raise InputError("compute", f"{ends['min'].min():.10g}", reason, remedy)


def make_options(evals: Evals, curve: str, noise: str, priors: Priors) -> Options:
    """Static choices of the model for these evaluations.

    Raises:
        InputError: beta-binomial noise without counts.
    """
    later = evals.frame[evals.frame["compute"] > 0]
    if noise == "betabinomial" and later["trials"].isna().any():
        run = later.loc[later["trials"].isna(), "run"].iloc[0]
        raise InputError("noise", noise, f"run {run} has no trials", "use noise=normal")
    return Options(curve, noise, bool(later["stderr"].isna().any()), priors)


def _pool(run: str, rows: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Means of neighbouring evaluations if there are more than MAX_POINTS."""
    if len(rows) <= MAX_POINTS:
        return rows.assign(pooled=1)
    group = np.arange(len(rows)) * MAX_POINTS // len(rows)
    notes.append(f"run {run}: {len(rows)} evaluations pooled into {MAX_POINTS} of neighbours")
    by = rows.groupby(group)
    mean = by[["compute", "value"]].mean()
    mean["stderr"] = np.sqrt((rows["stderr"] ** 2).groupby(group).sum(min_count=1)) / by.size()
    mean["trials"] = by["trials"].sum(min_count=1)
    mean["pooled"] = by.size()
    return mean


def _row(rows: pd.DataFrame, C_ref: float, M: int) -> dict[str, Floats]:
    """One run's row of every padded array."""
    n = len(rows)
    compute_M = rows["compute"].to_numpy(float)
    known_M = rows["stderr"].notna().to_numpy()
    step_M = np.diff(compute_M)

    def padded(values: Floats, fill: float) -> Floats:
        return np.concatenate([np.asarray(values, float), np.full(M - n, fill)])

    return {
        "log_C_RM": padded(np.log(compute_M / C_ref), 0.0),
        "value_RM": padded(rows["value"].to_numpy(float), 0.5),
        "var_RM": padded(np.where(known_M, rows["stderr"].fillna(0) ** 2, 0.0), 1.0),
        "unknown_RM": padded(~known_M / rows["pooled"], 0.0),
        "seen_RM": padded(np.ones(n), 0.0),
        "gap_RM": padded(np.r_[FIRST_GAP, step_M / np.median(step_M) if n > 1 else []], FIRST_GAP),
        "trials_RM": padded(rows["trials"].fillna(0), 0.0),
    }


def _starts(
    frame: pd.DataFrame, starts: list[str], r0: float | str | None, priors: Priors, fitted: bool
) -> Floats:
    """Mean and sd of logit R0 of every start, and its `Study.start_noise_S`, [S, 3].

    fitted: whether the noise of evaluations of unknown error is fitted.
    """
    found = []
    for start in starts:
        rows = frame[frame["start"].astype(str) == start]
        zero = rows[rows["compute"] == 0].drop_duplicates(["value", "trials"])
        if r0 is not None:
            found.append((_stated(rows, start, r0), KNOWN_R0_SD, 0.0))
        elif len(zero):
            found.append(_measured(zero, fitted))
        else:
            found.append(_unmeasured(rows, priors))
    return np.array(found)


def _unmeasured(rows: pd.DataFrame, priors: Priors) -> tuple[float, float, float]:
    """The row of `_starts` of a start without an evaluation at C = 0: `Priors.start`.

    After a late first evaluation the curve may have risen from far below: the mean is lower, and
    the sd larger, by what grows from 0 at a share NEAR_START of the last compute to LATE_RISE.
    """
    first = float(rows.drop_duplicates("run")["value"].mean())
    compute = rows.groupby("run", sort=False)["compute"]
    share = float((compute.min() / compute.max()).mean())
    risen = LATE_RISE * max(1 - NEAR_START / share, 0.0)
    offset, sd = priors.start
    mean = float(logit(np.clip(first, 1e-3, 1 - 1e-3))) + offset
    return mean - risen, float(np.hypot(sd, risen)), 0.0


def _measured(zero: pd.DataFrame, fitted: bool) -> tuple[float, float, float]:
    """The row of `_starts` of a start with evaluations at C = 0.

    Those with equal value and trials are one observation, shared by their runs. If the noise is
    fitted, those of unknown error count where no other one is there.
    """
    known = zero["stderr"].notna()
    if fitted and known.any():
        zero = zero[known]
    var = zero["stderr"].fillna(START_STDERR).to_numpy() ** 2
    value = float(np.clip(np.average(zero["value"], weights=1 / var), 1e-3, 1 - 1e-3))
    if fitted and not known.any():
        return float(logit(value)), 0.0, 1 / np.sqrt(len(zero))
    return float(logit(value)), 1 / np.sqrt((1 / var).sum()) / (value * (1 - value)), 0.0


def _stated(rows: pd.DataFrame, start: str, r0: float | str) -> float:
    if isinstance(r0, str) and r0 not in rows:
        raise InputError("r0", r0, "no such column", "give a number or a column's name")
    values = rows[r0].unique() if isinstance(r0, str) else np.array([r0])
    if len(values) > 1:
        raise InputError(
            "r0", r0, f"start {start} has {len(values)} values", "give each a separate start="
        )
    if not 0 <= values[0] < 1:
        raise InputError(
            "r0", values[0], f"start {start}: not in [0, 1)", "give it in the unit of value"
        )
    return float(logit(max(values[0], 1e-3)))


def _design(
    frame: pd.DataFrame, known: tuple[str, ...], axes: tuple[str, ...] | None, cells: list[str]
) -> tuple[pd.DataFrame, list[str], Floats]:
    """Levels of every recipe; sum-to-zero contrasts scaled to unit variance per level."""
    if axes is None:
        axes = ("recipe", *known) if known else ()
    if isinstance(axes, str):
        raise InputError("axes", axes, "one name, not a tuple", f'write axes=("{axes}",)')
    missing = [axis for axis in axes if axis not in frame]
    if missing:
        have = ", ".join(("recipe", *known))
        raise InputError("axes", missing[0], "no such column", f"use {have}")
    by_cell = frame.drop_duplicates("cell").set_index("cell").loc[cells]
    shown = ["recipe", *(a for a in dict.fromkeys((*known, *axes)) if a != "recipe")]
    levels = by_cell[shown].astype(str)
    names, columns = [], []
    for axis in axes:
        found = list(dict.fromkeys(levels[axis]))
        n = len(found)
        if n < 2 or n == len(cells) > 2 and len(axes) == 1:
            continue  # nothing to compare, or every recipe has its own level
        centred = np.eye(n) - 1 / n
        contrast = np.linalg.svd(centred)[0][:, : n - 1] * np.sqrt(n / (n - 1))
        index = [found.index(level) for level in levels[axis]]
        columns.append(contrast[index])
        names += [f"{axis}[{k}]" for k in range(n - 1)]
    return levels, names, np.concatenate(columns, 1) if columns else np.zeros((len(cells), 0))
