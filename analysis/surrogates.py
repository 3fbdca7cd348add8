"""Which surrogates keep their pass rate where CISPO loses it; a published comparison of six.

    python -m analysis.surrogates [study=runs/surrogates] [out=analysis/results/surrogates]
                                  [published=FILE]

`study` is a directory of runs of `sweep=surrogates`, or a table of its evaluations. Cells of CISPO,
DAPO's clip and GSPO that it lacks are taken from `sweep=hard_mix`, cut to as many evaluations. Into
`out` go

    evals.csv       the evaluations
    ends.csv        one row per run, as in analysis.hard_mix: its end, and the level nearest to it
    verdicts.csv    one row per surrogate: runs, how many stand at the end, and the probability that
                    its true share of runs that stand is above CISPO's
    surrogates.png  curves, a panel per surrogate

A run stands if its end is not nearest to the level of blind guesses. Shares have uniform priors:
two posteriors Beta(1 + stood, 1 + fell) are compared with a million draws. A curve that rises and
falls is not a sigmoid, so no ceiling is fitted to it.

`published` is a table with columns algorithm, seed, updates, passes, n, run_total_generated_tokens.
With it, `out` also gets

    published.csv   per algorithm, from a Laplace fit: the ceiling's interval and status, the
                    probability that it is best at the last evaluation, and the smallest difference
                    that one run would show with that number of prompts

Bad options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

import rlx.scaling as sc
from analysis.cells import COLOR_OF
from analysis.drawing import COMPUTE, Drawing
from analysis.hard_mix import RATE, ends, known_levels
from analysis.studies import DETECTED, renamed
from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.scaling.style import canvas, label_outside, level, panel_title, shade, tick, tidy

NAMES = {
    "none": "CISPO, cap 5",
    "clip_wide": "DAPO's clip",
    "gspo": "GSPO",
    "sapo": "SAPO",
    "double_sided": "GLM-5's gate",
    "dppo_tv": "DPPO, TV",
    "dppo_kl": "DPPO, KL",
    "gmpo": "GMPO",
    "clip_cov": "CISPO, Clip-Cov",
    "sequence_is": "sequence ratio, cut",
    "sequence_mask": "sequence ratio, masked",
    "geometric_is": "geometric mean, cut",
    "geometric_mask": "geometric mean, masked",
    "guarded": "CISPO, guarded",
}
SHARED = ("none", "clip_wide", "gspo")  # cells that hard_mix has too
HOT = 1e-3
GUESS, BASE = "guess all", 4


@dataclass(frozen=True)
class Options:
    study: Path = Path("runs/surrogates")
    out: Path = Path("analysis/results/surrogates")
    published: str = ""


def gathered(study: Path) -> pd.DataFrame:
    """Evaluations of the study, and those of hard_mix for SHARED cells that it lacks."""
    if not study.exists():
        remedy = "python -m experiments.study sweep=surrogates"
        raise InputError("study", study, "nothing there", remedy)
    before = renamed(pd.read_csv("analysis/results/hard_mix/evals.csv"))
    before = before[before[RATE].astype(float) == HOT]
    mine = pd.read_csv(study) if study.is_file() else sc.Evals.read(study).frame
    parts, longest = [mine.assign(**{RATE: HOT})], mine.groupby("run").size().max()
    for name in SHARED:
        if not (mine["ablation"] == name).any():
            cell = before[before["ablation"] == name].groupby("run").head(longest)
            parts.append(cell.assign(**{RATE: HOT}))
    return pd.concat(parts, ignore_index=True)[[*mine.columns, *({RATE} - {*mine.columns})]]


def above(stood: int, runs: int, stood0: int, runs0: int, draws: int = 1_000_000) -> float:
    """P(share > share0) of two Beta(1 + stood, 1 + fell) posteriors, to three digits."""
    rng = np.random.default_rng(0)
    share = rng.beta(1 + stood, 1 + runs - stood, draws)
    return float(np.mean(share > rng.beta(1 + stood0, 1 + runs0 - stood0, draws)))


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    stands = table.assign(stood=table["level"] != GUESS).groupby("ablation")["stood"]
    count, stood, rows = stands.size(), stands.sum(), []
    for name in [name for name in NAMES if name in count]:
        p = above(stood[name], count[name], stood["none"], count["none"])
        end = table.loc[table["ablation"] == name, "end"].mean()
        rows.append([NAMES[name], count[name], stood[name], end, np.nan if name == "none" else p])
    columns = ["surrogate", "runs", "stood", "end_mean", "p_stands_more_often_than_cispo"]
    return pd.DataFrame(rows, columns=columns)


def draw(evals: pd.DataFrame, known: dict[str, float]) -> Figure:
    there = [name for name in NAMES if (evals["ablation"] == name).any()]
    columns, rows = 4, -(-len(there) // 4)
    figure = canvas(11.6, 2.2 * rows + 0.6)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    last = grid.flat[min(columns, len(there)) - 1]
    for ax, name in zip(grid.flat, there, strict=False):
        runs = evals[evals["ablation"] == name].groupby("seed")
        for i, (_, run) in enumerate(runs):
            later, color = run[run["compute"] > 0], shade(COLOR_OF[name], i, runs.ngroups + 1)
            ax.plot(later["compute"], later["value"], color=color, linewidth=0.9)
        for what, rate in known.items():
            level(ax, rate, f"{what} {rate:.2f}" * (ax is last), beside=True)
        panel_title(ax, f"{NAMES[name]}, {runs.ngroups} seed{'s' * (runs.ngroups > 1)}")
        ax.set_ylim(0, 0.7)
        tidy(ax)
    for ax in grid.flat[len(there) :]:
        ax.set_visible(False)
    grid[0, 0].xaxis.set_major_formatter(FuncFormatter(tick))
    grid[0, 0].xaxis.set_major_locator(MaxNLocator(3))
    label_outside(grid, len(there), COMPUTE, "pass rate (held-out)")
    return figure


def levels(evals: pd.DataFrame) -> dict[str, float]:
    """`known_levels` of the evaluations' exact ceiling."""
    return known_levels(1 / BASE, float(evals["truth"].iloc[0]))


def figures(results: Path) -> dict[str, Drawing]:
    def redraw() -> Figure:
        evals = pd.read_csv(results / "surrogates" / "evals.csv")
        return draw(evals, levels(evals))

    source = "surrogates/evals.csv, by python -m analysis.surrogates"
    return {"surrogates/surrogates": Drawing(redraw, source)}


def published(path: str) -> pd.DataFrame:
    """What one seed and a few evaluations of each algorithm say about its end."""
    data = pd.read_csv(path)
    share = data["updates"] / data["updates"].max()
    table = pd.DataFrame(
        {
            "run": data["algorithm"],
            "seed": data["seed"],
            "compute": share * data["run_total_generated_tokens"],
            "value": data["passes"] / data["n"],
            "passes": data["passes"],
            "trials": data["n"],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "published.csv"
        table.to_csv(file, index=False)
        evals = sc.Evals.read(file, run="run", recipe="run", compute="compute", value="value")
    fit = sc.fit(evals, method="laplace")
    last = float(table["compute"].max())
    best = fit.prob_best(at=last).to_series()
    ceilings = fit.summary(by="recipe").query("param == 'A'").set_index("name")
    end = table.groupby("run")["value"].last()
    noise = DETECTED * np.sqrt(2 * end * (1 - end) / data["n"].iloc[0])
    return pd.DataFrame(
        {
            "end": end,
            "p_best_at_end": best,
            "A_q05": ceilings["q05"],
            "A_q95": ceilings["q95"],
            "status": ceilings["status"],
            "least_difference": noise,
        }
    ).sort_values("p_best_at_end", ascending=False)


def main(argv: Sequence[str]) -> None:
    """Make the files. InputError on bad options, and where there are no runs."""
    options = read_options(Options, argv)
    evals = gathered(options.study)
    known = levels(evals)
    table = ends(evals, known)
    options.out.mkdir(parents=True, exist_ok=True)
    evals.to_csv(options.out / "evals.csv", index=False)
    table.round(4).to_csv(options.out / "ends.csv", index=False)
    said = verdicts(table).round(3)
    said.to_csv(options.out / "verdicts.csv", index=False)
    draw(evals, known).savefig(options.out / "surrogates.png")
    print(said.to_string(index=False))
    if options.published:
        theirs = published(options.published).round(3)
        theirs.to_csv(options.out / "published.csv")
        print(theirs.to_string())


if __name__ == "__main__":
    sys.exit(exit_status(main))
