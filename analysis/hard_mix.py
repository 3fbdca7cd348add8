"""Where runs end on a task with a worse local optimum, by recipe and learning rate.

    python -m analysis.hard_mix [study=runs/hard_mix] [out=analysis/results/hard_mix]

On prompts of `sweep=hard_mix` that leave no room for a worked answer a blind guess passes with
probability 1 / base, so the exact pass rates of three policies are known (`levels`). Into `out` go

    hard_mix.png   a row of panels per learning rate: curves of three recipes, a line per seed, and
                   where every run of every recipe ends
    ends.csv       one row per run: its end, which is the mean of its last LAST evaluations; the
                   best such mean during training; and the known level nearest to its end
    evals.csv      the evaluations

Bad options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cells import COLOR_OF
from analysis.drawing import COMPUTE, Drawing
from analysis.studies import renamed
from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.record import RunRecord, runs
from rlx.scaling import Evals
from rlx.scaling.style import INK, canvas, level, log_ticks, panel_title, rows_axis, shade, tidy

RATE = "optim.learning_rate"
LAST = 5  # evaluations whose mean is where a run ends
SMOOTHED = 3  # evaluations averaged in a drawn curve
ABLATIONS = {
    "none": "CISPO, k = 8",
    "sync": "on-policy",
    "off_policy_8": "PPO-off-policy-8",
    "clip_wide": "DAPO's clip",
    "gspo": "GSPO",
    "sample_mean": "sample mean",
    "token_mean": "token mean",
    "prompt_norm": "prompt norm",
    "keep": "zero variance kept",
}
SHOWN = ("none", "sync", "clip_wide")  # as curves


@dataclass(frozen=True)
class Options:
    study: Path = Path("runs/hard_mix")
    out: Path = Path("analysis/results/hard_mix")


def levels(study: Path) -> dict[str, float]:
    """`known_levels` of a study, from its manifests."""
    manifest = RunRecord(runs(study)[0]).manifest
    return known_levels(1 / manifest["config"]["env"]["kwargs"]["base"], manifest["ceiling"])


def known_levels(guess: float, worked: float) -> dict[str, float]:
    """Pass rates of three policies: guess all, work out all, and the better for each prompt."""
    return {
        "guess all": guess,
        "work out all": worked,
        "tell apart": worked + (1 - worked) * guess,
    }


def ends(evals: pd.DataFrame, known: dict[str, float]) -> pd.DataFrame:
    rows = []
    for (rate, ablation, seed), run in evals.groupby([RATE, "ablation", "seed"]):
        smooth = run["value"].rolling(LAST).mean()
        end, best = smooth.iloc[-1], smooth.max()
        level = min(known, key=lambda name: abs(known[name] - end))
        cell = {RATE: float(rate), "ablation": ablation, "seed": int(seed)}
        rows.append(cell | {"best": best, "end": end, "level": level})
    return pd.DataFrame(rows).sort_values([RATE, "ablation", "seed"])


# ------------------------------------------------------------------ figure


def draw(evals: pd.DataFrame, table: pd.DataFrame, known: dict[str, float]) -> Figure:
    rates = sorted(table[RATE].unique())
    figure = canvas(10.0, 3.3 * len(rates))
    grid = figure.subplots(len(rates), 2, sharex="col", squeeze=False, width_ratios=[1.25, 1])
    for (left, right), rate in zip(grid, rates, strict=True):
        curves(left, evals[evals[RATE].astype(float) == rate], known)
        mantissa, exponent = f"{rate:.0e}".split("e")
        panel_title(left, f"learning rate {mantissa}e{int(exponent)}")
        endings(right, table[table[RATE] == rate], known)
    panel_title(grid[0, 1], "where runs end, a dot per seed")
    grid[0, 0].legend(frameon=False, fontsize=8, loc="lower right")
    grid[-1, 0].set_xlabel(COMPUTE, fontsize=9)
    grid[-1, 1].set_xlabel(f"pass rate (held-out, mean of the last {LAST} evaluations)", fontsize=9)
    return figure


def curves(ax: Axes, evals: pd.DataFrame, known: dict[str, float]) -> None:
    """Three recipes, a shade per seed: means of SMOOTHED evaluations."""
    for ablation in SHOWN:
        runs = evals[evals["ablation"] == ablation].groupby("seed")
        for i, (_, run) in enumerate(runs):
            smooth = run.assign(value=run["value"].rolling(SMOOTHED, min_periods=1).mean())
            later = smooth[smooth["compute"] > 0]
            color, label = shade(COLOR_OF[ablation], i, runs.ngroups + 1), ABLATIONS[ablation]
            label = None if i else label
            ax.plot(later["compute"], later["value"], color=color, linewidth=1.1, label=label)
    for name, rate in known.items():
        level(ax, rate, f"{name}\n{rate:.2f}", beside=True)
    ax.set_xscale("log")
    log_ticks(ax)
    ax.set_ylim(0, 0.7)
    ax.set_ylabel(f"pass rate (held-out, mean of {SMOOTHED})", fontsize=9)
    tidy(ax)


def endings(ax: Axes, table: pd.DataFrame, known: dict[str, float]) -> None:
    """A row per ablation."""
    for y, ablation in enumerate(ABLATIONS):
        ends = table.loc[table["ablation"] == ablation, "end"]
        ax.plot(ends, [-y] * len(ends), "o", color=COLOR_OF[ablation], ms=5, mew=0, alpha=0.7)
    for rate in known.values():
        ax.axvline(rate, color=INK, linewidth=0.8, zorder=1)
    rows_axis(ax, [-y for y in range(len(ABLATIONS))], list(ABLATIONS.values()))
    ax.set_xlim(0, 0.7)


def figures(results: Path) -> dict[str, Drawing]:
    def redraw() -> Figure:
        evals = renamed(pd.read_csv(results / "hard_mix" / "evals.csv"))
        known = known_levels(1 / 4, float(evals["truth"].iloc[0]))
        return draw(evals, ends(evals, known), known)

    source = "hard_mix/evals.csv, by python -m analysis.hard_mix"
    return {"hard_mix/hard_mix": Drawing(redraw, source)}


# ------------------------------------------------------------------ command


def main(argv: Sequence[str]) -> None:
    """Make the files. InputError on bad options, and where there are no runs."""
    options = read_options(Options, argv)
    if not runs(options.study):
        remedy = "python -m experiments.study sweep=hard_mix"
        raise InputError("study", options.study, "no runs of this study", remedy)
    evals = Evals.read(options.study).frame
    known = levels(options.study)
    table = ends(evals, known)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(evals, table, known).savefig(options.out / "hard_mix.png")
    table.round(4).to_csv(options.out / "ends.csv", index=False)
    evals.to_csv(options.out / "evals.csv", index=False)
    cells = ["ablation", RATE]
    print(table.groupby(cells)["end"].mean().unstack().round(3).to_string())
    print(table.groupby([*cells, "level"]).size().unstack(fill_value=0).to_string())
    print(f"wrote hard_mix.png, ends.csv, evals.csv in {options.out}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
