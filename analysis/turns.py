"""Pass rate against compute by number of turns, beside the exact ceiling of each.

    python -m analysis.turns [study=runs/turns] [out=analysis/results/turns]
                             [compute=compute|samples|tokens_generated|modelled_device_s]

For studies whose cells differ in `episode.max_turns`, such as `sweep=turns` and `sweep=tool`. Into
`out` go

    turns.png   a colour per number of turns, a line per seed, evaluations with their standard
                errors; thin lines: the exact ceilings in the manifests, where they are known
    ends.csv    one row per run: its ceiling; start, its first evaluation; end, the mean of its last
                LAST; way, the share (end - start) / (ceiling - start)
    evals.csv   the evaluations

Bad options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.drawing import COMPUTE, Drawing
from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.record import runs
from rlx.scaling import Evals
from rlx.scaling.style import COLORS, canvas, key_above, level, shade, tick, tidy

TURNS = "episode.max_turns"
LAST = 3  # evaluations whose mean is where a run ends


@dataclass(frozen=True)
class Options:
    study: Path = Path("runs/turns")
    out: Path = Path("analysis/results/turns")
    compute: str = "compute"


def ends(evals: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (turns, seed), run in evals.groupby([TURNS, "seed"]):
        start, end, ceiling = run["value"].iloc[0], run["value"].tail(LAST).mean(), run["truth"]
        way = (end - start) / (ceiling.iloc[0] - start)  # NaN where no ceiling is known
        cell = {TURNS: int(turns), "seed": int(seed), "ceiling": ceiling.iloc[0]}
        rows.append(cell | {"start": start, "end": end, "way": way})
    return pd.DataFrame(rows).sort_values([TURNS, "seed"], ignore_index=True)


def draw(evals: pd.DataFrame, label: str) -> Figure:
    """label: that of the compute axis."""
    figure = canvas(6.8, 4.2)
    ax = figure.subplots()
    cells = sorted(evals.groupby(evals[TURNS].astype(int)), key=lambda cell: -cell[0])
    for color, (turns, cell) in zip(COLORS, cells, strict=False):
        name = f"{turns} turn{'s' * (turns > 1)}"
        by_seed = cell.groupby("seed")
        for i, (_, run) in enumerate(by_seed):
            ax.errorbar(
                run["compute"], run["value"], run["stderr"], color=shade(color, i, by_seed.ngroups),
                marker="o", ms=3, mew=0, linewidth=1.2, elinewidth=0.6, label=None if i else name,
            )  # fmt: skip
        for truth in cell["truth"].dropna().unique():
            level(ax, truth, f"exact\nceiling\n{truth:.2f}", color, beside=True)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(FuncFormatter(tick))
    ax.set_ylim(-0.02, 1.07)
    ax.set_xlabel(label, fontsize=9)
    ax.set_ylabel("pass rate (held-out)", fontsize=9)
    tidy(ax)
    key_above(ax, *ax.get_legend_handles_labels(), columns=len(cells))
    return figure


def figures(results: Path) -> dict[str, Drawing]:
    def redraw(name: str, label: str) -> Figure:
        return draw(pd.read_csv(results / name / "evals.csv"), label)

    labels = {"turns": COMPUTE, "tool": "samples"}
    return {
        f"{name}/turns": Drawing(
            partial(redraw, name, label), f"{name}/evals.csv, by python -m analysis.turns"
        )
        for name, label in labels.items()
    }


def main(argv: Sequence[str]) -> None:
    """Make the files. InputError on bad options, and where there are no runs of such a study."""
    options = read_options(Options, argv)
    if not runs(options.study):
        remedy = "python -m experiments.study sweep=turns"
        raise InputError("study", options.study, "no runs of this study", remedy)
    read = Evals.read(options.study, compute=options.compute)
    evals = read.frame
    if TURNS not in evals:
        reason, remedy = f"its runs do not differ in {TURNS}", "give one of sweep=turns|tool"
        raise InputError("study", options.study, reason, remedy)
    table = ends(evals)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(evals, read.compute_label).savefig(options.out / "turns.png")
    table.round(4).to_csv(options.out / "ends.csv", index=False)
    evals.to_csv(options.out / "evals.csv", index=False)
    print(table.round(3).to_string(index=False))
    print(f"wrote turns.png, ends.csv, evals.csv in {options.out}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
