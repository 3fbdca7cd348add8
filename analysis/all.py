"""Redraw every committed figure from what is committed: no runs, no sampler.

    python -m analysis.all [only=NAME] [results=analysis/results] [out=analysis/results]

`only` names one figure, such as studies/fig2, or the start of several names, such as studies;
`results` holds the tables and `out` gets the figures. For each figure one line names the command
that wrote its tables; a figure whose tables are missing is named and left out. A summary of what is
drawn (panels, words, number and means of points) goes to `out/drawn.json`, which a test compares
with the figures. Bad options end with exit code 2 and one line on stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import (
    calibration,
    comparisons,
    default,
    distill,
    forecasts,
    hard_mix,
    paper,
    power,
    replay,
    scores,
    surrogates,
    tasks,
    turns,
)
from analysis.drawing import RESULTS, Drawing, drawn
from experiments.options import exit_status, read_options
from rlx.errors import InputError

MODULES = (
    *(default, comparisons, hard_mix, tasks, turns, distill, surrogates, replay, calibration),
    *(scores, power, forecasts, paper),
)


@dataclass(frozen=True)
class Options:
    only: str = ""
    results: Path = RESULTS
    out: Path = RESULTS


def drawings(results: Path = RESULTS) -> dict[str, Drawing]:
    """Every committed figure by its file name without the suffix."""
    return {name: one for module in MODULES for name, one in module.figures(results).items()}


def main(argv: Sequence[str]) -> None:
    """Draw the figures. InputError if `only` matches none."""
    options = read_options(Options, argv)
    known = drawings(options.results)
    chosen = {name: one for name, one in known.items() if name.startswith(options.only)}
    chosen = {options.only: known[options.only]} if options.only in known else chosen
    if not chosen:
        folders = "|".join(dict.fromkeys(name.partition("/")[0] for name in known))
        raise InputError("only", options.only, "no such figure", f"use {folders} or one figure")
    digest = options.out / "drawn.json"
    said = json.loads(digest.read_text()) if digest.exists() else {}
    said = {name: panels for name, panels in said.items() if name in known}
    for name, one in chosen.items():
        try:
            figure = one.draw()
        except FileNotFoundError as error:
            print(f"{name}.png  left out: {error.filename} is missing, of {one.source}", flush=True)
            continue
        path = options.out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        said[name] = drawn(figure)
        print(f"{name}.png  from {one.source}", flush=True)
    lines = [f'"{name}": {json.dumps(said[name], ensure_ascii=False)}' for name in sorted(said)]
    digest.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
