"""Training curves of other people, as `Evals`: what stands beside the checkout, never in it.

retu       RL branches of SFT checkpoints, arXiv 2512.11470
deep_grpo  two W&B exports, by seconds and by steps
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from rlx.errors import InputError
from rlx.scaling.data import Evals, short_names

POOLED = (
    128  # evaluations per run; the W&B exports have up to 1,075 of one pass over 1,319 problems
)


def read_retu(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The curves of arXiv 2512.11470 and what was published of them.

    Args:
        folder: with curves.csv, published_fits.csv and fit_settings.csv (in percent, EFLOPs).

    Returns:
        points: run, recipe (the scene), compute, value, and whether the authors fitted it (window).
            The pure-RL run, which stands there under three names, comes once.
        published: of each fitted run P_sft, R0 = P_sft + eps, A = P_sft + PL, B, C_mid, A_printed,
            tau and alpha of the robust fit (NaN: no trimming). A_printed differs from the sum in
            three rows, where the curves show the sum.

    Pass rates are fractions. The authors count the checkpoint itself as point 0 of a curve, and
    curves.csv starts at point 1.

    Raises:
        InputError: a file is missing.
    """
    points, fits, settings = (
        _named(_table(folder / f"{name}.csv"))
        for name in ("curves", "published_fits", "fit_settings")
    )
    points = points[~points["run"].isin(("s1K-0", "uniform102K-0"))]
    windows = settings.set_index("run")[["train_split", "fit_points_num"]]
    fitted = pd.concat(_fitted(rows, windows) for _, rows in points.groupby("run", sort=False))
    points = pd.DataFrame(
        {
            "run": points["run"],
            "recipe": points["scene"],
            "compute": points["rl_exaflops"],
            "value": points["overall_weighted"] / 100,
            "window": fitted,
        }
    )
    published = pd.DataFrame(
        {
            "P_sft": fits["P_sft"] / 100,
            "R0": (fits["P_sft"] + fits["eps"]) / 100,
            "A": (fits["P_sft"] + fits["PL_rl"]) / 100,
            "B": fits["B_rl"],
            "C_mid": fits["C_mid_rl_exaflops"],
            "A_printed": fits["A_post"] / 100,
            "tau": fits["outlier_tau"],
            "alpha": fits["lts_alpha"].where(fits["use_lts"]),
        }
    )
    return points.reset_index(drop=True), published.set_index(fits["run"])


def _table(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise InputError("data", path, "no such file", "give the folder of that paper's curves")
    return pd.read_csv(path)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """With a column `run`, scene-checkpoint; the run without a checkpoint is pure_rl-0."""
    checkpoint = table["sft_ckpt" if "sft_ckpt" in table else "sft_step"]
    scene = table["scene"].where((checkpoint > 0) | (table["scene"] != "easy102K"), "pure_rl")
    return table.assign(scene=scene, run=scene + "-" + checkpoint.astype(str))


def _fitted(rows: pd.DataFrame, windows: pd.DataFrame) -> pd.Series:
    """Whether the authors fitted a run's points; a run without settings was not."""
    run = rows["run"].iloc[0]
    if run not in windows.index:
        return pd.Series(False, rows.index)
    split, n = windows.loc[run]
    first, end = map(int, split.split()) if isinstance(split, str) else (0, n)
    number = np.arange(1, len(rows) + 1)
    return pd.Series((number >= first) & (number < end), rows.index)


def retu(folder: Path) -> Evals:
    """All runs of `read_retu`, with the checkpoint's P_sft as the evaluation at C = 0."""
    points, published = read_retu(folder)
    starts = pd.DataFrame({"run": published.index, "compute": 0.0, "value": published["P_sft"]})
    recipe = points.groupby("run")["recipe"].first()
    table = pd.concat([starts.assign(recipe=starts["run"].map(recipe)), points])
    table = table.assign(start=table["run"])
    return Evals.from_frame(
        table, name="RETU", recipe="recipe", start="start", compute="compute", scale="fraction"
    )


def deep_grpo(folder: Path) -> tuple[Evals, Evals]:
    """The runs by seconds, and those that stand in the export by steps alone; pooled."""
    seconds = export(folder / "scale_budget.csv")
    steps = export(folder / "grpo_scale_rollout.csv", known=seconds.runs)
    return pooled(seconds), pooled(steps)


def export(path: Path, known: Sequence[str] = ()) -> Evals:
    """A W&B export without the runs known already; C = 0 at each run's first evaluation."""
    if not path.exists():
        raise InputError("data", path, "no such file", "put deep_grpo beside the folder of data=")
    evals = Evals.read(path)
    evals = evals.select([run for run in evals.runs if run not in known])
    first = evals.frame.groupby("run")["compute"].transform("min")
    return replace(evals, frame=evals.frame.assign(compute=evals.frame["compute"] - first))


def pooled(evals: Evals) -> Evals:
    """Means of neighbours, POOLED per run, so that fitted and forecast evaluations are alike."""
    parts = []
    for _, rows in evals.frame.groupby("run", sort=False):
        zero, later = rows[rows["compute"] == 0], rows[rows["compute"] > 0]
        group = np.arange(len(later)) * POOLED // len(later)
        mean = later.groupby(group)[["compute", "value"]].mean()
        parts += [zero, later.groupby(group).first().assign(**mean)]
    frame = pd.concat(parts, ignore_index=True)
    names = {run: re.sub(r"-\d{8}$", "", name) for run, name in short_names(evals.runs).items()}
    return replace(evals, frame=frame).rename(names)
