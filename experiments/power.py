"""Would a study tell two recipes apart? Plan before you spend, see rlx.scaling.power.

    python -m experiments.power A=0.65 B=1.5 C_mid=1 R0=0.25 seeds=[1,3,5] out=DIR [KEY=VALUE ...]

Writes `out/power.csv`, one row per design and difference, and `out/power.png`; prints the table and
the cheapest design that finds each difference with probability 0.8 (`expected`). Compute is in the
unit of C_mid. Each number of seeds is compiled once, half a minute; then a study takes a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

import rlx.scaling as sc
from experiments.options import exit_status, read_options
from rlx import compilation
from rlx.scaling import plot
from rlx.scaling.power import BASE

FOUND = 0.8  # probability that is called enough


@dataclass(frozen=True)
class Options:
    A: float = BASE["A"]  # of the base: asymptote, steepness, compute half way, start
    B: float = BASE["B"]
    C_mid: float = BASE["C_mid"]
    R0: float = BASE["R0"]
    horizon: float | None = None  # compute at which ceilings are compared; 10 C_mid
    shares: list[float] = field(default_factory=lambda: [0.1, 0.25, 0.5, 1.0])  # of it, of a run
    seeds: list[int] = field(default_factory=lambda: [1, 3, 5])
    points: list[int] = field(default_factory=lambda: [20])  # evaluations of a run
    ceilings: list[float] = field(default_factory=lambda: [0.02, 0.05])  # differences of pass rate
    ratios: list[float] = field(default_factory=lambda: [1.2, 1.5])  # of compute
    margin_A: float = 0.02
    margin_compute: float = 0.10
    trials: int = 4000
    studies: int = 20  # of each design and difference
    seed: int = 0
    out: Path = Path("outputs/power")


def cheapest(table: pd.DataFrame) -> list[str]:
    """Of each difference, the design of least compute that is expected to find it."""
    said = []
    for (quantity, difference), rows in table.groupby(["quantity", "difference"]):
        if rows["right"].isna().all():
            continue
        name = f"{quantity} {difference:g}"
        enough = rows[rows["expected"] >= FOUND].sort_values(["compute", "evaluations"])
        if enough.empty:
            said.append(f"{name}: no design here finds it with probability {FOUND:g}")
            continue
        row = enough.iloc[0]
        design = (
            f"{row['seeds']} seeds x {row['points']} evaluations, {row['share']:g} of the horizon"
        )
        said.append(f"{name}: {design}, compute {row['compute']:g} of all runs")
    return said


def main(argv: Sequence[str]) -> None:
    options = asdict(read_options(Options, argv))
    base = {name: options.pop(name) for name in BASE}
    out = options.pop("out")
    compilation.keep_programs()
    table = sc.power(base, progress=True, **options)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "power.csv", index=False, float_format="%.4g")
    plot.power(table).savefig(out / "power.png")
    print(table.to_string(index=False, float_format="{:.3g}".format))
    print(*cheapest(table), sep="\n")


if __name__ == "__main__":
    sys.exit(exit_status(main))
