"""Runs that evaluate several sets: a scaling curve per set, and transfer between sets.

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
    curves.csv   5, 50 and 95 % of the typical seed's curve
    evals.csv    the evaluations; `study=.../evals.csv` makes the other files from them again

Bad options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import rlx.scaling as sc
from analysis.drawing import COMPUTE, METHODS, Drawing
from analysis.studies import curves
from experiments.options import exit_status, read_options
from rlx.envs.reasoning_gym import tasks_of
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows, runs
from rlx.scaling import Evals
from rlx.scaling.arrays import cell_names
from rlx.scaling.paths import HORIZON
from rlx.scaling.style import (
    COLORS,
    DASHES,
    FAINT,
    canvas,
    key_above,
    level,
    log_ticks,
    note,
    shade,
    tidy,
)


@dataclass(frozen=True)
class Options:
    study: Path = Path("runs/tasks")
    out: Path = Path("analysis/results/tasks")
    compute: str = "compute"
    method: str = "nuts"


@dataclass(frozen=True)
class Task:
    """An evaluation set: its evaluations, what the fit says of them, and whether it is trained."""

    name: str
    trained: bool
    evals: pd.DataFrame
    summary: pd.DataFrame
    curves: pd.DataFrame

    @property
    def title(self) -> str:
        words = NAMES.get(self.name, self.name)
        trained = "trained" if self.trained else "not trained"
        return words if self.name == "heldout" else f"{words} ({trained})"


# What the sets of sweep=tasks hold.
NAMES = {
    "heldout": "held-out",
    "any": "any: 3 to 8 digits",
    "long": "long: 7 or 8 digits",
    "five": "five: 5 to 8 digits",
    "wider": "wider: as any, padded to 9",
}


# ------------------------------------------------------------------ evaluations


def sets_of(study: Path) -> list[str]:
    """The evaluation sets of a study, in the order of its rows. InputError if there is only one."""
    rows = [row for path in runs(study) for row in read_rows(path / "evals.jsonl")]
    names = list(dict.fromkeys(row["eval_set"] for row in rows))
    if len(names) < 2:
        there = ", ".join(names) or "nothing"
        remedy = "give the study of a mixture, such as sweep=tasks"
        raise InputError("study", study, f"its runs evaluate {there}", remedy)
    return names


def trained_sets(study: Path) -> set[str]:
    """Evaluation sets of problems like those that the runs train on."""
    if study.is_file():
        table = pd.read_csv(study)
        return set(table.loc[table["trained"], "eval_set"])
    return {"heldout", *trained_tasks(study)}


def trained_tasks(study: Path) -> set[str]:
    """Tasks with a weight in the mixtures that the runs train on."""
    names = set()
    for path in runs(study):
        kwargs = RunRecord(path).manifest["config"]["env"]["kwargs"]
        tasks = kwargs.get("tasks") or tasks_of(kwargs.get("mixture", []))
        names |= {name for name, row in tasks.items() if row["weight"] > 0}
    return names


def read(study: Path, compute: str) -> dict[str, Evals]:
    """Every evaluation set of a study, from runs or a table with columns eval_set and trained."""
    if not study.is_file():
        return {name: Evals.read(study, eval_set=name, compute=compute) for name in sets_of(study)}
    if compute != Options.compute:
        reason = "a table has one measure of compute"
        raise InputError("compute", compute, reason, "leave it out, or give study=DIRECTORY")
    table = pd.read_csv(study)
    return {
        str(name): replace(
            Evals.from_frame(rows, name=str(name), compute="compute", start="start"),
            compute_label=COMPUTE,
        )
        for name, rows in _by_set(table)
    }


def _by_set(table: pd.DataFrame) -> list[tuple[object, pd.DataFrame]]:
    labels = ["eval_set", "trained"]
    groups = table.groupby("eval_set", sort=False)
    return [(name, rows.drop(columns=labels).dropna(axis=1, how="all")) for name, rows in groups]


# ------------------------------------------------------------------ tables


def tables(evals: dict[str, Evals], trained: set[str], method: str) -> dict[str, pd.DataFrame]:
    """Evaluations, parameters and curves of every set, by file."""
    parts: dict[str, list[pd.DataFrame]] = {"evals": [], "tasks": [], "curves": []}
    for name, of_set in evals.items():
        fit = sc.fit(of_set, method=method, progress=True)
        label = {"eval_set": name, "trained": name in trained}
        summary = fit.summary("recipe").drop(columns="level")
        truth = of_set.frame["truth"].iloc[0]
        parts["tasks"].append(summary.assign(**label, truth=truth, method=method))
        parts["curves"].append(curves(fit, "recipe").drop(columns="level").assign(**label))
        parts["evals"].append(of_set.frame.assign(**label))
    return {name: pd.concat(part, ignore_index=True) for name, part in parts.items()}


def stored(folder: Path) -> list[Task]:
    """Every set, from the tables in a folder."""
    read = {name: pd.read_csv(folder / f"{name}.csv") for name in ("evals", "tasks", "curves")}
    return [
        Task(str(name), bool(rows["trained"].iloc[0]), *(of_set(t, name) for t in read.values()))
        for name, rows in read["tasks"].groupby("eval_set", sort=False)
    ]


def of_set(table: pd.DataFrame, name: object) -> pd.DataFrame:
    return table[table["eval_set"] == name]


# ------------------------------------------------------------------ figure


def draw(tasks: Sequence[Task]) -> Figure:
    """A panel per evaluation set, and one of transfer if there are sets that are not trained on."""
    others = [task for task in tasks if not task.trained]
    n = len(tasks) + bool(others)
    columns = n if n <= 3 else math.ceil(n / 2)
    figure = canvas(3.7 * columns, 3.6 * math.ceil(n / columns))
    axes = figure.subplots(math.ceil(n / columns), columns, squeeze=False).ravel()
    for ax in axes[n:]:
        ax.set_visible(False)
    frame = pd.concat([task.evals for task in tasks])
    top = _end([*frame["value"], *frame["truth"].dropna()])
    for ax, task in zip(axes, tasks, strict=False):
        curve_panel(ax, task)
        ax.set_ylim(0, top)
    if others:
        heldout = next(task for task in tasks if task.name == "heldout")
        transfer(axes[n - 1], heldout, others)
        axes[n - 1].set_ylim(0, top)
    for ax in axes[::columns]:
        ax.set_ylabel("pass rate", fontsize=9)
    method = METHODS[tasks[0].summary["method"].iloc[0]]
    note(
        figure,
        "Points: evaluations with standard errors, a shade per seed. Line and band: the typical "
        f"seed, median and 90 %, by {method}; A: pass rate at {HORIZON:g}x the compute.",
    )
    return figure


def curve_panel(ax: Axes, task: Task) -> None:
    """Pass rate against compute: a colour per recipe, a shade per seed, the exact ceilings."""
    frame = task.evals[task.evals["compute"] > 0]
    ceilings = task.summary.query("param == 'A'").set_index("name")
    for color, (name, line) in zip(COLORS, task.curves.groupby("name", sort=False), strict=False):
        mine = frame[cell_names(frame) == name] if len(ceilings) > 1 else frame
        by_run = mine.groupby("run", sort=False)
        for i, (_, rows) in enumerate(by_run):
            dots = shade(color, i, by_run.ngroups)
            ax.errorbar(
                rows["compute"], rows["value"], rows["stderr"],
                fmt="o", color=dots, ms=3, mew=0, elinewidth=0.6, alpha=0.8,
            )  # fmt: skip
        ax.fill_between(line["compute"], line["q05"], line["q95"], color=color, alpha=0.2, lw=0)
        label = _said(str(name), by_run.ngroups, ceilings.loc[name])
        ax.plot(line["compute"], line["q50"], color=color, linewidth=1.6, label=label)
    for truth in frame["truth"].dropna().unique():
        level(ax, truth, f"exact ceiling {truth:.2f}")
    ax.set_xscale("log")
    log_ticks(ax)
    tidy(ax)
    ax.set_xlabel(COMPUTE, fontsize=9)
    key_above(ax, *ax.get_legend_handles_labels(), task.title)


def _said(recipe: str, seeds: int, ceiling: pd.Series) -> str:
    """Label in the key: A and its 90 % interval, or why the data do not give it."""
    A = f"A = {ceiling['q50']:.2f} (90 %: {ceiling['q05']:.2f} to {ceiling['q95']:.2f})"
    status = A if ceiling["status"] == "ok" else ceiling["status"].partition(":")[0]
    return f"{recipe}, {seeds} seed{'s' * (seeds > 1)}: {status}"


def transfer(ax: Axes, heldout: Task, others: Sequence[Task]) -> None:
    """Pass rate on sets that are not trained on against that on the held-out set."""
    x = heldout.evals.set_index(["run", "compute"])["value"]
    ends = (0, _end(x))
    ax.plot(ends, ends, color=FAINT, linewidth=0.8, linestyle=DASHES, label="as on held-out")
    for color, task in zip(COLORS[1:], others, strict=False):
        for i, (_, rows) in enumerate(task.evals.groupby("run", sort=False)):
            at = x.loc[list(zip(rows["run"], rows["compute"], strict=True))]
            ax.errorbar(
                at, rows["value"], rows["stderr"], fmt="o-", color=color, ms=3, mew=0,
                linewidth=0.7, elinewidth=0.6, alpha=0.8, label=None if i else task.name,
            )  # fmt: skip
    ax.set_xlim(*ends)
    tidy(ax)
    ax.set_xlabel("pass rate (held-out)", fontsize=9)
    key_above(ax, *ax.get_legend_handles_labels(), "transfer to the sets not trained on", 3)


def _end(rates: Iterable[float]) -> float:
    """Upper end of an axis of pass rates, with room above the highest."""
    return max(1.06 * max(rates), 0.05)


def figures(results: Path) -> dict[str, Drawing]:
    source = "tasks/{evals,tasks,curves}.csv, by python -m analysis.tasks"
    return {"tasks/tasks": Drawing(lambda: draw(stored(results / "tasks")), source)}


# ------------------------------------------------------------------ command


def main(argv: Sequence[str]) -> None:
    """Make the files. InputError on bad options, and where the study has one evaluation set."""
    options = read_options(Options, argv)
    if options.method not in ("nuts", "laplace"):
        raise InputError("method", options.method, "not available", "use method=nuts|laplace")
    evals, trained = read(options.study, options.compute), trained_sets(options.study)
    options.out.mkdir(parents=True, exist_ok=True)
    found = tables(evals, trained, options.method)
    for name, table in found.items():
        digits = None if name == "evals" else "%.6g"
        table.to_csv(options.out / f"{name}.csv", index=False, float_format=digits)
    draw(stored(options.out)).savefig(options.out / "tasks.png")
    table = found["tasks"]
    ceilings = table[table["param"] == "A"]
    shown = ["eval_set", "name", "truth", "q05", "q50", "q95", "status"]
    print(ceilings[shown].to_string(index=False, float_format="{:.3f}".format))
    print(f"wrote tasks.png, tasks.csv, curves.csv, evals.csv in {options.out}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
