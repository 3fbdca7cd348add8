"""Training with a teacher instead of the reward, or with both: pass rate against compute.

    python -m analysis.distill [study=runs/distill] [beside=RUN] [out=analysis/results/distill]

`study` is a directory of runs of `sweep=distill`, or a table of its evaluations. `beside` is a run
that trains on the reward alone, at its own learning rate and for more updates, since its updates
are cheaper. Compute includes the teacher's forward passes. The compute that trained the teacher is
in the manifests (`teacher_flops`) and below the figure. Into `out` go evals.csv, distill.png and

    reached.csv    per recipe and seed: the mean of the last KEPT pass rates, and the compute at
                   which TARGET is first reached and kept for KEPT evaluations, or nothing

Bad options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import rlx.scaling as sc
from analysis.cells import COLOR_OF
from analysis.drawing import COMPUTE, Drawing
from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.record import RunRecord
from rlx.record import runs as directories
from rlx.scaling.style import INK, canvas, log_ticks, tick, tidy

NAMES = {
    "none": "the reward alone",
    "slower": "the reward alone, a fifth of the rate",
    "teacher_alone": "the teacher alone",
    "teacher_beside": "the reward and a tenth of the teacher",
}
TARGET, KEPT = 0.3, 3  # a pass rate, three times that of blind guesses; evaluations


@dataclass(frozen=True)
class Options:
    study: Path = Path("runs/distill")
    beside: str = ""
    out: Path = Path("analysis/results/distill")


def read(study: Path, beside: str = "") -> pd.DataFrame:
    """Evaluations, with the compute that trained the teacher."""
    if not study.exists():
        remedy = "python -m experiments.study sweep=distill"
        raise InputError("study", study, "nothing there", remedy)
    if study.is_file():
        return pd.read_csv(study)
    evals = sc.Evals.read(study).frame
    if beside:
        evals = pd.concat([evals, sc.Evals.read(beside).frame.assign(ablation="slower")])
    cost = [RunRecord(run).manifest.get("teacher_flops", 0.0) for run in directories(study)]
    return evals.assign(teacher_flops=max(cost, default=0.0))


def reached(evals: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (ablation, seed), run in evals.groupby(["ablation", "seed"]):
        run = run.sort_values("compute")
        kept = run["value"].rolling(KEPT).min().shift(1 - KEPT) >= TARGET
        first = run["compute"][kept].min() if kept.any() else np.nan
        last = run["value"].tail(KEPT).mean()
        rows.append({"ablation": ablation, "seed": int(seed), "last": last, "compute": first})
    return pd.DataFrame(rows)


def draw(evals: pd.DataFrame) -> Figure:
    figure = canvas(6.4, 4.0)
    ax = figure.subplots()
    for name, label in NAMES.items():
        for i, (_, run) in enumerate(evals[evals["ablation"] == name].groupby("seed")):
            run = run[run["compute"] > 0].sort_values("compute")
            color, own = COLOR_OF[name], None if i else label
            ax.plot(run["compute"], run["value"], color=color, linewidth=1.1, label=own)
    ax.set_xscale("log")
    log_ticks(ax)
    ax.set_ylim(0, 0.6)
    cost = evals["teacher_flops"].iloc[0]
    ax.set_xlabel(f"{COMPUTE}; training the teacher cost {tick(cost)}", fontsize=9)
    ax.set_ylabel("pass rate (held-out)", fontsize=9)
    ax.legend(frameon=False, fontsize=8, loc="upper left", labelcolor=INK)
    tidy(ax)
    return figure


def figures(results: Path) -> dict[str, Drawing]:
    path = results / "distill" / "evals.csv"
    source = "distill/evals.csv, by python -m analysis.distill"
    return {"distill/distill": Drawing(lambda: draw(pd.read_csv(path)), source)}


def main(argv: Sequence[str]) -> None:
    """Make the files. InputError on bad options, and where there are no runs."""
    options = read_options(Options, argv)
    evals = read(options.study, options.beside)
    options.out.mkdir(parents=True, exist_ok=True)
    evals.to_csv(options.out / "evals.csv", index=False)
    table = reached(evals)
    table.to_csv(options.out / "reached.csv", index=False, float_format="%.4g")
    draw(evals).savefig(options.out / "distill.png")
    print(table.to_string(index=False))


if __name__ == "__main__":
    sys.exit(exit_status(main))
