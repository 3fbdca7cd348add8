"""Runs that evaluate several sets: a scaling curve for each, and what carries over.

    python -m analysis.tasks [study=runs/tasks] [out=analysis/results/tasks]
                             [compute=compute|modelled_device_s|tokens_generated]
                             [method=nuts|laplace]

Every evaluation set is fitted on its own, on all of its evaluations, as by `python -m
experiments.fit data=STUDY eval_set=NAME holdout=0`; the tasks of a run share nothing but the axis
of compute, as in Fig. 11 of arXiv 2510.13786 (mathematics and code). The last panel shows the sets
that are not trained on against the held-out set, one point per evaluation. Into `out` go

    tasks.png    a panel per set: evaluations with their standard errors, a shade per seed; median
                 and 90 % of the typical seed's curve and of its ceiling A
    tasks.csv    one row per set, recipe and parameter, as ScalingFit.summary; truth: exact ceiling
    evals.csv    the evaluations

Bad options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rlx.scaling as sc
from experiments.options import exit_status, read_options
from rlx.envs.reasoning_gym import tasks_of
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows, runs
from rlx.scaling import Evals, ScalingFit
from rlx.scaling.arrays import cell_names
from rlx.scaling.style import COLORS, DASHES, FAINT, INK, log_ticks, shade, tidy


@dataclass(frozen=True)
class Options:
    study: Path = Path("runs/tasks")
    out: Path = Path("analysis/results/tasks")
    compute: str = "compute"
    method: str = "nuts"


@dataclass(frozen=True)
class Task:
    """An evaluation set: its fit, and whether the runs train on problems like its own."""

    name: str
    trained: bool
    fit: ScalingFit

    @property
    def title(self) -> str:
        if self.name == "heldout":
            return "held-out"
        return f"{self.name} ({'trained' if self.trained else 'not trained'})"


# ------------------------------------------------------------------ what there is


def sets_of(study: Path) -> list[str]:
    """The evaluation sets of a study, in the order of its rows. InputError if there is only one."""
    rows = [row for path in runs(study) for row in read_rows(path / "evals.jsonl")]
    names = list(dict.fromkeys(row["eval_set"] for row in rows))
    if len(names) < 2:
        there = ", ".join(names) or "nothing"
        remedy = "give the study of a mixture, such as sweep=tasks"
        raise InputError("study", study, f"its runs evaluate {there}", remedy)
    return names


def trained_tasks(study: Path) -> set[str]:
    """Tasks with a weight in the mixtures that the runs train on."""
    names = set()
    for path in runs(study):
        kwargs = RunRecord(path).manifest["config"]["env"]["kwargs"]
        tasks = kwargs.get("tasks") or tasks_of(kwargs.get("mixture", []))
        names |= {name for name, row in tasks.items() if row["weight"] > 0}
    return names


def read(options: Options) -> list[Task]:
    """Every evaluation set with its fit."""
    names, tasks = sets_of(options.study), []
    trained = {"heldout", *trained_tasks(options.study)}
    for name in names:
        evals = Evals.read(options.study, eval_set=name, compute=options.compute)
        fit = sc.fit(evals, method=options.method, progress=True)
        tasks.append(Task(name, name in trained, fit))
    return tasks


# ------------------------------------------------------------------ tables


def evaluations(tasks: Sequence[Task]) -> pd.DataFrame:
    return pd.concat([task.fit.evals.frame.assign(eval_set=task.name) for task in tasks])


def summary(tasks: Sequence[Task]) -> pd.DataFrame:
    parts = []
    for task in tasks:
        part = task.fit.summary("recipe").drop(columns="level")
        part.insert(0, "eval_set", task.name)
        truth = task.fit.evals.frame["truth"].iloc[0]
        parts.append(part.assign(trained=task.trained, truth=truth))
    return pd.concat(parts, ignore_index=True)


# ------------------------------------------------------------------ figure


def draw(tasks: Sequence[Task]) -> Figure:
    """A panel per evaluation set, and one of transfer if there are sets that are not trained on."""
    others = [task for task in tasks if not task.trained]
    n = len(tasks) + bool(others)
    columns = n if n <= 3 else math.ceil(n / 2)
    size = (3.7 * columns, 3.5 * math.ceil(n / columns))
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    axes = figure.subplots(math.ceil(n / columns), columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.set_visible(False)
    frame = evaluations(tasks)
    top = _end([*frame["value"], *frame["truth"].dropna()])
    for ax, task in zip(axes, tasks, strict=False):
        curves(ax, task)
        ax.set_ylim(0, top)
    if others:
        heldout = next(task for task in tasks if task.name == "heldout")
        transfer(axes[n - 1], heldout, others)
        axes[n - 1].set_ylim(0, top)
    for ax in axes[::columns]:
        ax.set_ylabel(f"pass rate{_samples(tasks[0].fit)}", fontsize=9)
    if tasks[0].fit.attrs["method"] == "laplace":
        figure.suptitle(
            "preview: Laplace approximation", fontsize=8, color=FAINT, x=0.99, ha="right"
        )
    return figure


def curves(ax: Axes, task: Task) -> None:
    """Pass rate against compute: a colour per recipe, a shade per seed, the exact ceilings."""
    fit = task.fit
    frame = fit.evals.frame[fit.evals.frame["compute"] > 0]
    ceilings = fit.summary("recipe").query("param == 'A'").set_index("name")
    for color, recipe in zip(COLORS, fit.recipes, strict=False):
        mine = frame[cell_names(frame) == recipe]
        by_run = mine.groupby("run", sort=False)
        for i, (_, rows) in enumerate(by_run):
            dots = shade(color, i, by_run.ngroups)
            ax.errorbar(
                rows["compute"], rows["value"], rows["stderr"],
                fmt="o", color=dots, ms=3, mew=0, elinewidth=0.6, alpha=0.8,
            )  # fmt: skip
        grid_C = np.geomspace(mine["compute"].min(), mine["compute"].max(), 100)
        draws = fit.curve(grid_C).sel(recipe=recipe).values.reshape(-1, len(grid_C))
        low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
        ax.fill_between(grid_C, low, high, color=color, alpha=0.2, linewidth=0)
        label = _said(recipe, by_run.ngroups, ceilings.loc[recipe])
        ax.plot(grid_C, middle, color=color, linewidth=1.6, label=label)
    for truth in frame["truth"].dropna().unique():
        ax.axhline(truth, color=INK, linewidth=0.8, linestyle=DASHES, zorder=1)
        ax.text(
            0.02, truth, f"exact ceiling {truth:.2f}", transform=ax.get_yaxis_transform(),
            ha="left", va="bottom", fontsize=8, color=INK,
        )  # fmt: skip
    ax.set_xscale("log")
    log_ticks(ax)
    tidy(ax)
    ax.set_xlabel(fit.evals.compute_label, fontsize=9)
    _key(ax, task.title)


def _said(recipe: str, seeds: int, ceiling: pd.Series) -> str:
    """For the key: 90 % of A, or that the data leave it open."""
    A = f"A = {ceiling['q50']:.2f} ({ceiling['q05']:.2f} to {ceiling['q95']:.2f})"
    status = A if ceiling["status"] == "ok" else ceiling["status"].partition(":")[0]
    return f"{recipe}, {seeds} seed{'s' * (seeds > 1)}: {status}"


def _samples(fit: ScalingFit) -> str:
    """The number of samples per prompt, as the label of values states it."""
    _, comma, k = fit.evals.value_label.rstrip(")").partition(", ")
    return comma + k


def transfer(ax: Axes, heldout: Task, others: Sequence[Task]) -> None:
    """Pass rate on sets that are not trained on against the held-out one, along training."""
    x = heldout.fit.evals.frame.set_index(["run", "compute"])["value"]
    ends = (0, _end(x))
    ax.plot(ends, ends, color=FAINT, linewidth=0.8, linestyle=DASHES, label="as on held-out")
    for color, task in zip(COLORS[1:], others, strict=False):
        for i, (_, rows) in enumerate(task.fit.evals.frame.groupby("run", sort=False)):
            at = x.loc[list(zip(rows["run"], rows["compute"], strict=True))]
            ax.errorbar(
                at, rows["value"], rows["stderr"], fmt="o-", color=color, ms=3, mew=0,
                linewidth=0.7, elinewidth=0.6, alpha=0.8, label=None if i else task.name,
            )  # fmt: skip
    ax.set_xlim(*ends)
    tidy(ax)
    ax.set_xlabel("pass rate (held-out)", fontsize=9)
    _key(ax, "transfer to the sets not trained on", columns=3)


def _key(ax: Axes, title: str, columns: int = 1) -> None:
    """Title and legend above the axes, where no curve runs."""
    key = ax.legend(
        title=title, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, borderpad=0.2,
        alignment="left", ncols=columns, frameon=False, fontsize=8, title_fontsize=10,
    )  # fmt: skip
    key.get_title().set_color(INK)


def _end(rates: Iterable[float]) -> float:
    """Of an axis of pass rates, with room above the highest."""
    return max(1.06 * max(rates), 0.05)


# ------------------------------------------------------------------ command


def main(argv: Sequence[str]) -> None:
    """Make the files. InputError on bad options, and where the study has one evaluation set."""
    options = read_options(Options, argv)
    if options.method not in ("nuts", "laplace"):
        raise InputError("method", options.method, "not available", "use method=nuts|laplace")
    tasks = read(options)
    table, figure = summary(tasks), draw(tasks)
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "tasks.png")
    table.round(4).to_csv(options.out / "tasks.csv", index=False)
    evaluations(tasks).to_csv(options.out / "evals.csv", index=False)
    ceilings = table[table["param"] == "A"]
    shown = ["eval_set", "name", "truth", "q05", "q50", "q95", "status"]
    print(ceilings[shown].to_string(index=False, float_format="{:.3f}".format))
    print(f"wrote tasks.png, tasks.csv, evals.csv in {options.out}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
