"""Do intervals of ceilings hold the exact ceilings, where these are known?

    python -m experiments.ceilings [out=DIR]

The committed evaluations of the default study, hard_mix, two_chains (sweep=tasks) and
ceiling_movers are cut at SHARES of each run's compute and fitted by Laplace's method.
`ceilings.csv` has one row per set, share and cell (a recipe at one setting of the axes): the exact
ceiling; the number of runs, and of those that left their curve; the 90 % interval of A, the pass
rate at the horizon with the doubt, and whether it holds the exact ceiling; the same for the
asymptote of the curves alone; and for A of the family that `sc.evidence` prefers, `family`
(curve=auto). The same command continues an interrupted one.

The exact ceiling is that of the task; a small model may end below it. On hard_mix it is that of the
best policy, which guesses on prompts without room for a worked answer. `wider` of two_chains, a set
that is not trained on, is left out.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

import rlx.scaling as sc
from experiments.options import exit_status, read_options
from experiments.scored import PROB, ROOT, own_studies
from rlx.scaling.backtest import with_first
from rlx.scaling.data import Evals
from rlx.scaling.infer import best_curve

SETS = (
    "default", "hard_mix 0.0002", "hard_mix 0.001", "tasks any", "tasks long", "tasks five",
    "ceiling_movers",
)  # fmt: skip
SHARES = (0.25, 0.5, 1.0)
GUESS = 0.25  # pass rate of a blind guess on hard_mix


@dataclass(frozen=True)
class Options:
    out: Path = Path("outputs/ceilings")


def exact(name: str, evals: Evals) -> pd.Series:
    """Exact ceiling of every run; on hard_mix, that of the best policy."""
    truth = evals.frame.groupby("run", sort=False)["truth"].first()
    return truth + GUESS * (1 - truth) if name.startswith("hard_mix") else truth


def asked(name: str, evals: Evals, share: float) -> pd.DataFrame:
    """The rows of one set and share."""
    seen = evals if share == 1 else with_first(evals, share)
    longest = int(evals.frame.groupby("run").size().max())
    fit = sc.fit(seen, method="laplace", pad_to=longest).unsafe()
    family = best_curve(sc.evidence(seen, pad_to=longest))
    same = family == fit.attrs["curve"]
    auto = fit if same else sc.fit(seen, curve=family, method="laplace", pad_to=longest).unsafe()
    truth = exact(name, evals)
    cell = pd.Series(np.array(fit.recipes)[fit.recipe_of_run], fit.runs)
    table = pd.DataFrame({"truth": truth.groupby(cell).first().loc[fit.recipes]})
    table["runs"], table["left"] = cell.value_counts(), cell[list(fit.departed)].value_counts()
    asymptote = fit.with_doubt(None)
    for label, posterior in (("A", fit), ("asymptote", asymptote), ("auto", auto)):
        x = posterior.param("A", by="recipe").values.reshape(-1, len(table))
        low, high = np.quantile(x, [(1 - PROB) / 2, (1 + PROB) / 2], axis=0)
        table[f"{label}_low"], table[f"{label}_high"] = low, high
        table[f"{label}_held"] = (low <= table["truth"]) & (table["truth"] <= high)
    table = table.rename_axis("cell").reset_index().fillna({"left": 0}).assign(family=family)
    table.insert(0, "share", share)
    table.insert(0, "set", name)
    return table


def main(argv: Sequence[str]) -> None:
    options = read_options(Options, argv)
    options.out.mkdir(parents=True, exist_ok=True)
    sets = {c.name: c for c in own_studies(ROOT / "analysis/results") if c.name in SETS}
    path = options.out / "ceilings.csv"
    done = set(pd.read_csv(path)[["set", "share"]].itertuples(index=False)) if path.exists() else ()
    for name, share in ((n, s) for n, s in product(SETS, SHARES) if (n, s) not in done):
        with contextlib.redirect_stdout(io.StringIO()):
            table = asked(name, sets[name].read(), share).round(4)
        table.to_csv(path, mode="a", header=not path.exists(), index=False)
    table = pd.read_csv(path)
    held = table.groupby(["set", "share"], sort=False)
    shown = held[["A_held", "asymptote_held", "auto_held"]].mean().assign(cells=held.size())
    print(shown.to_string(float_format="{:.2f}".format))


if __name__ == "__main__":
    sys.exit(exit_status(main))
