"""Figure of `python -m experiments.power`, drawn from its table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.drawing import Drawing
from rlx.scaling import plot


def figures(results: Path) -> dict[str, Drawing]:
    path = results / "power" / "power.csv"
    source = "power/power.csv, by python -m experiments.power"
    return {"power/power": Drawing(lambda: plot.power(pd.read_csv(path)), source)}
