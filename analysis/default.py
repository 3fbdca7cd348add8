"""The default study: figures of its posterior, from half and from a quarter of the compute.

    python -m analysis.default [method=nuts|laplace] [out=analysis/results/default]

fits the committed evaluations (evals.csv) up to half and up to a quarter of every run's compute,
and saves KEPT draws of each chain in single precision: `posterior.nc` (half) and `quarter.nc`.
`rlx.scaling.load` reads both; `python -m analysis.all only=default` draws them with the later
evaluations.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import rlx.scaling as sc
from analysis.drawing import COMPUTE, RESULTS, Drawing
from experiments.options import check_choices, exit_status, read_options
from rlx.scaling import Evals, ScalingFit, plot

AXES = ("ablation", "rollout.max_new_tokens")
SHARES = {"posterior": 0.5, "quarter": 0.25}  # of compute, by file
KEPT = 150  # draws of each chain


@dataclass(frozen=True)
class Options:
    method: str = "nuts"
    out: Path = RESULTS / "default"


def read(folder: Path) -> Evals:
    """The committed evaluations."""
    table = pd.read_csv(folder / "evals.csv")
    evals = Evals.from_frame(
        table, name="default", axes=list(AXES), start="start", compute="compute"
    )
    return replace(evals, compute_label=COMPUTE, value_label="pass rate (held-out, mean@4)")


def thinned(fit: ScalingFit, kept: int) -> ScalingFit:
    """At most `kept` draws of each chain, in single precision, without the sampler's statistics."""
    tree = fit.tree.copy()
    draws = tree["posterior"].to_dataset()
    every = max(1, draws.sizes["draw"] // kept)
    tree["posterior"] = draws.isel(draw=slice(None, kept * every, every)).astype("float32")
    return ScalingFit(tree.filter(lambda node: node.name != "sample_stats"))


def draw(folder: Path, figure: str) -> Figure:
    fit = sc.load(folder / ("quarter.nc" if figure == "quarter" else "posterior.nc"))
    later = fit.evals if figure in ("ceilings", "ridge", "effects") else read(folder)
    if figure in ("report", "quarter"):
        return plot.curves(fit, held_out=later)
    if figure == "effects":
        return plot.effects([fit.effects(axis) for axis in fit.axes])
    return plot.ceilings(fit) if figure == "ceilings" else plot.ridge(fit)


def figures(results: Path) -> dict[str, Drawing]:
    source = "default/{}.nc, by python -m analysis.default"
    return {
        f"default/{name}": Drawing(
            partial(draw, results / "default", name),
            source.format("quarter" if name == "quarter" else "posterior"),
        )
        for name in ("quarter", "report", "ceilings", "ridge", "effects")
    }


def main(argv: Sequence[str]) -> None:
    options = read_options(Options, argv)
    check_choices(options, {"method": ("nuts", "laplace")})
    evals = read(options.out)
    for name, share in SHARES.items():
        fit = sc.fit(evals.until(share=share), method=options.method, progress=True)
        thinned(fit, KEPT).save(options.out / f"{name}.nc")
        print(f"{name}.nc: {fit}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
