"""Point fits of every run of a table, and their forecast errors on the rest of the run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.data import Evals
from rlx.scaling.point import PointFit, fit_point
from rlx.scaling.profile import profile_A

MAX_WIDTH = 0.1  # a ceiling with a wider profile interval counts as not determined


@dataclass(frozen=True)
class RunFit:
    """One run of a study: its labels, its fit up to compute `C_fit`, and its forecast's error.

    `fit` is None if too little of the run lies below C_fit; `status` then says so. A_lo and A_hi
    are its `profile_A`; `status` also says if that is wider than MAX_WIDTH.
    """

    run: str
    recipe: str
    seed: object
    axes: str
    truth: float  # exact ceiling, NaN if unknown
    fit: PointFit | None
    A_lo: float  # 90 %, NaN without a fit
    A_hi: float  # inf if the data do not bound A
    C_fit: float  # the last fitted compute
    rmse_heldout: float  # NaN if nothing is held out
    status: str


def fit_study(
    data: Evals | pd.DataFrame,
    *,
    holdout: float = 0.5,
    r0: float | str = "first",
    intervals: bool = True,
) -> list[RunFit]:
    """`fit_point` of every run on C <= (1 - holdout) * C_max, scored on the rest.

        rmse_heldout = sqrt(mean over held-out points of (curve(C) - value)^2)

    Args:
        data: evaluations, or their table (`frame`).
        holdout: share of each run's compute range that is held out, in [0, 1); 0 fits everything.
        r0: a number, "first" or "fit" (see `fit_point`), or the name of a column.
        intervals: whether to profile A, which takes ten times as long as the fit.

    Returns:
        One RunFit per run, in the order of the table.

    Raises:
        InputError: holdout or r0 cannot be used.
    """
    if not 0 <= holdout < 1:
        raise InputError("holdout", holdout, "not in [0, 1)", "0.5 holds out the second half")
    frame = data.frame if isinstance(data, Evals) else data
    groups = frame.groupby("run", sort=False)
    return [_fit_run(str(run), rows, holdout, r0, intervals) for run, rows in groups]


def _fit_run(
    run: str, rows: pd.DataFrame, holdout: float, r0: float | str, intervals: bool
) -> RunFit:
    compute_M, value_M = rows["compute"].to_numpy(), rows["value"].to_numpy()
    seen_M = compute_M <= (1 - holdout) * compute_M.max()
    if not seen_M.any():
        seen_M[0] = True
    C_fit = float(compute_M[seen_M].max())
    start = _start(run, rows, r0)
    A_lo = A_hi = np.nan
    try:
        fit = fit_point(compute_M[seen_M], value_M[seen_M], r0=start)
        if intervals:
            A_lo, A_hi = profile_A(compute_M[seen_M], value_M[seen_M], r0=start)
    except ValueError as error:
        fit, rmse, status = None, np.nan, f"too short: {error}"
    else:
        status = fit.status
        if fit.identified and min(A_hi, 1) - A_lo > MAX_WIDTH:
            status = f"ceiling not determined: {A_lo:.2f} to {min(A_hi, 1):.2f}"
        residual = fit.at(compute_M[~seen_M]) - value_M[~seen_M]
        rmse = float(np.sqrt(np.mean(residual**2))) if residual.size else np.nan
    first = rows.iloc[0]
    return RunFit(
        run=run,
        recipe=str(first["recipe"]),
        seed=first["seed"],
        axes=str(first["axes"]),
        truth=float(first["truth"]),
        fit=fit,
        A_lo=A_lo,
        A_hi=A_hi,
        C_fit=C_fit,
        rmse_heldout=rmse,
        status=status,
    )


def _start(run: str, rows: pd.DataFrame, r0: float | str) -> float | str:
    """`r0` of fit_point for one run: the value of a column if r0 names one."""
    if isinstance(r0, str) and r0 not in ("first", "fit"):
        if r0 not in rows:
            raise InputError("r0", r0, "unknown", "use first, fit, a number or a column's name")
        r0 = float(rows[r0].iloc[0])
    if not isinstance(r0, str) and not 0 <= r0 < 1:
        raise InputError(
            "r0", f"{r0:g}", f"run {run}: not a pass rate in [0, 1)", "give it in the unit of value"
        )
    return r0
