"""Studies with a committed posterior (STUDIES), drawn with the later evaluations.

    python -m analysis.default [study=default|smollm2] [method=nuts|laplace] [results=DIR]

fits the study's committed evaluations (DIR/STUDY/evals.csv, where DIR is analysis/results) up to
shares of every run's compute, and saves KEPT draws of each chain in single precision:
`posterior.nc` (half) and, for the default study, `quarter.nc`. `rlx.scaling.load` reads them, and
`python -m analysis.all only=STUDY` draws them.
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

HALF = {"posterior": 0.5}  # share of compute, by file


@dataclass(frozen=True)
class Stored:
    axes: tuple[str, ...]
    shares: dict[str, float]
    figures: tuple[str, ...]


STUDIES = {
    "default": Stored(
        ("ablation", "rollout.max_new_tokens"), {**HALF, "quarter": 0.25},
        ("quarter", "report", "ceilings", "ridge", "effects"),
    ),
    "smollm2": Stored((), HALF, ("report",)),
}  # fmt: skip
KEPT = 150  # draws of each chain


@dataclass(frozen=True)
class Options:
    study: str = "default"
    method: str = "nuts"
    results: Path = RESULTS


def read(folder: Path) -> Evals:
    """The committed evaluations."""
    table = pd.read_csv(folder / "evals.csv")
    evals = Evals.from_frame(
        table,
        name=folder.name,
        axes=list(STUDIES[folder.name].axes),
        start="start",
        compute="compute",
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
    source = "{study}/{file}.nc, by python -m analysis.default study={study}"
    return {
        f"{study}/{name}": Drawing(
            partial(draw, results / study, name),
            source.format(study=study, file="quarter" if name == "quarter" else "posterior"),
        )
        for study, stored in STUDIES.items()
        for name in stored.figures
    }


def main(argv: Sequence[str]) -> None:
    options = read_options(Options, argv)
    check_choices(options, {"method": ("nuts", "laplace"), "study": tuple(STUDIES)})
    folder = options.results / options.study
    evals = read(folder)
    for name, share in STUDIES[options.study].shares.items():
        fit = sc.fit(evals.until(share=share), method=options.method, progress=True)
        thinned(fit, KEPT).save(folder / f"{name}.nc")
        print(f"{name}.nc: {fit}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
