"""Does a study on a budget reach the verdicts of the whole study? Committed studies replayed.

    python -m analysis.replay [out=analysis/results/budget] [cache=outputs/budget] [seeds=3]
                              [what=all|figure]

Seven studies: the five of REFERENCE, and one per learning rate of hard_mix; 53 cells are compared
with their baselines. Each study is run as if live (`rlx.scaling.stopping.Conduct`): in each round,
every cell that continues gets its evaluations up to the new share; a cell that stopped adds none to
later fits. The decisions are compared with what the whole study says about both questions (final
pass rate, compute).

    truth   observed: differences larger than 2 standard errors over seeds, of the mean of a run's
            last LAST evaluations and of log compute to 80 % of the baseline's gain
            fitted: what the fit of the whole study says by the same rule, margins included
    seeds   disjoint parts of the draws of one Laplace fit; each part decides alone

The thresholds for a study are chosen on the other studies, without those that share its baseline:
of the rules within MOST_OPPOSITE and MOST_UNSUPPORTED, the one that keeps the most verdicts, then
the one that spends least; of rules that tie, the middle one. To need fewer fits, the choice uses
fits of all cells at a common share. Rows of rule=default have the thresholds of `Rule`, which were
chosen after seeing all studies.

Into `out` go

    replay.csv    a row per rule, study, policy, budget, guard, seed and truth. The questions where
                  truth has a sign (true) or none (none); of their answers, those kept, opposite,
                  unsupported, equal (rightly) and equal_wrong (truth has a sign); spent and
                  spent_flops, shares of all updates and of all FLOPs
    summary.csv   the same, summed over the studies of a group, mean over seeds
    guard.csv     for each study, the baseline's forecast from a quarter of its compute, and its end
    rules.csv     the rule chosen for each study
    replay.png    verdicts against compute spent

Fits are kept in `cache`, so an interrupted command continues where it stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import rlx.scaling as sc
from analysis.drawing import Drawing
from analysis.studies import read_table
from experiments.options import exit_status, read_options
from rlx.errors import InputError
from rlx.scaling import Evals
from rlx.scaling.stopping import (
    LEVEL,
    Ahead,
    Conduct,
    Decision,
    Plan,
    Rule,
    ahead,
    answers,
    verdicts,
)
from rlx.scaling.style import (
    COLORS,
    FAINT,
    canvas,
    level,
    note,
    panel_title,
    percent,
    percent_ticks,
    tidy,
)

EVALS = Path(__file__).parent / "results"
RATE = "optim.learning_rate"
REFERENCE = {  # levels of the baseline of each study
    "loo": {"ablation": "none"},
    "recipes": {"recipe": "scalerl"},
    "ceiling_movers": {
        "rollout.max_new_tokens": "11", "rollout.prompts_per_step": "16", "model": "tiny"
    },
    "efficiency_shapers": {"ablation": "none"},
    "controls": {"ablation": "none"},
}  # fmt: skip
# Studies that share a baseline.
SHARED = (("loo", "recipes"), ("ceiling_movers", "efficiency_shapers", "controls"))
GROUPS = {"five": tuple(REFERENCE), "hard": ("hard_lo", "hard_hi")}
SIGNS = ("higher", "lower")
LAST = 3  # evaluations whose mean is where a run ends
ERRORS = 2.0  # standard errors beyond which a difference counts as seen
KEPT = 0.95  # aim for the share of verdicts kept
MARKERS = {"equal": "o", "halving": "s", "fixed": "^"}
BUDGETS = (0.25, 0.4, 0.5, 0.75)
DECIDE, IN_A_ROW = (0.9, 0.95, 0.975), (1, 2)
TOLERANCE = (0.01, 0.03, 0.05, 0.07, 0.1)
MOST_OPPOSITE, MOST_UNSUPPORTED = 0.02, 0.05
PAD = 64  # fits are padded to this many evaluations per run, so that a study compiles once


@dataclass(frozen=True)
class Options:
    out: Path = EVALS / "budget"
    cache: Path = Path("outputs/budget")
    seeds: int = 3
    what: str = "all"


@dataclass(frozen=True)
class Study:
    name: str
    evals: Evals
    cells: dict[str, list[str]]  # runs of each
    baseline: str
    full: dict[str, float]  # compute of each run

    def cost(self) -> dict[str, float]:
        return {cell: sum(self.full[run] for run in runs) for cell, runs in self.cells.items()}

    def until(self, stands: Mapping[str, float]) -> Evals:
        """The evaluations of each cell up to its share of the compute."""
        frame = self.evals.frame
        cell = {run: name for name, runs in self.cells.items() for run in runs}
        most = frame["run"].map(lambda run: stands[cell[run]] * self.full[run])
        return self.evals.with_rows(frame["compute"] <= most * (1 + 1e-9))

    def end(self) -> float:
        """Where the baseline ended."""
        return float(np.mean([tail(self.evals, run) for run in self.cells[self.baseline]]))


def rows(evals: Evals, run: str) -> pd.DataFrame:
    return evals.frame[evals.frame["run"] == run]


def tail(evals: Evals, run: str) -> float:
    return float(rows(evals, run)["value"].iloc[-LAST:].mean())


def studies() -> list[Study]:
    out = []
    for name, levels in REFERENCE.items():
        out.append(study(name, read_table(EVALS / f"studies/evals/{name}.csv", "compute"), levels))
    hard = read_table(EVALS / "hard_mix/evals.csv", "compute")
    for name, rate in zip(GROUPS["hard"], sorted(hard.frame[RATE].unique()), strict=True):
        part = hard.select(list(hard.frame.loc[hard.frame[RATE] == rate, "run"].unique()))
        out.append(study(name, part, {"ablation": "none"}))
    return out


def study(name: str, evals: Evals, levels: Mapping[str, str]) -> Study:
    """The study: a cell per combination of levels of the axes; `levels` are the baseline's."""
    frame = evals.frame
    keys = ["recipe", *evals.axes]
    cells, baseline = {}, ""
    for _, part in frame.groupby(keys, sort=False):
        named = {key: str(part[key].iloc[0]) for key in keys}
        label = ", ".join(f"{k}={x}" for k, x in named.items())
        cells[label] = list(part["run"].unique())
        if levels.items() <= named.items():
            baseline = label
    return Study(name, evals, cells, baseline, frame.groupby("run")["compute"].max().to_dict())


# ------------------------------------------------------------------ truth


def compute_to_level(run: pd.DataFrame, level: float) -> float:
    """log of the compute at which the mean of LAST evaluations first reaches the level, by linear
    interpolation; that of the last evaluation if it never does."""
    smooth = run["value"].rolling(LAST, min_periods=1, center=True).mean().to_numpy()
    C = run["compute"].to_numpy()
    above = np.flatnonzero(smooth >= level)
    k = above[0] if len(above) else len(C) - 1
    if k == 0 or not len(above):
        return float(np.log(C[k])) if C[k] > 0 else np.nan
    part = (level - smooth[k - 1]) / (smooth[k] - smooth[k - 1])
    return float(np.log(C[k - 1] + part * (C[k] - C[k - 1])))


def truth(study: Study) -> dict[str, dict[str, str]]:
    """What the whole study says about each cell: "higher", "lower" or "", for both questions."""
    start = np.mean([rows(study.evals, r)["value"].iloc[0] for r in study.cells[study.baseline]])
    level = start + LEVEL * (study.end() - start)
    of_run = {
        "final": lambda run: tail(study.evals, run),
        "compute": lambda run: compute_to_level(rows(study.evals, run), level),
    }
    out: dict[str, dict[str, str]] = {}
    for cell, runs in study.cells.items():
        if cell == study.baseline:
            continue
        out[cell] = {}
        for question, value in of_run.items():
            x, y = (
                np.array([value(r) for r in part]) for part in (runs, study.cells[study.baseline])
            )
            d = x.mean() - y.mean()
            error = np.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))
            seen = abs(d) > ERRORS * error and (question == "final" or study.end() > start)
            out[cell][question] = ("higher" if d > 0 else "lower") if seen else ""
    return out


def fitted(fits: Fits, study: Study, rule: Rule) -> dict[str, dict[str, str]]:
    """The same from the fit of the whole study, by the rule."""
    seen, out = fits.ahead(study, dict.fromkeys(study.cells, 1.0)), {}
    for cell in truth(study):
        told = answers(seen, study.cells[cell], study.cells[study.baseline], rule)
        says = {name: answer.says(rule.decide) for name, answer in told.items()}
        out[cell] = {name: word if word in SIGNS else "" for name, word in says.items()}
    return out


# ------------------------------------------------------------------ replay


class Fits:
    """Forecasts of the end, read from the cache if they were made before."""

    def __init__(self, cache: Path):
        self.cache = cache
        cache.mkdir(parents=True, exist_ok=True)

    def ahead(self, study: Study, stands: Mapping[str, float]) -> Ahead:
        text = json.dumps([study.name, sorted(stands.items()), study.evals.sha256()])
        path = self.cache / f"{study.name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            with contextlib.redirect_stdout(io.StringIO()):  # a line per run that falls
                fit = sc.fit(study.until(stands), method="laplace", pad_to=PAD)
            seen = ahead(fit, study.full, study.cells[study.baseline])
            value, log_C = (x.astype(np.float32) for x in (seen.value_XR, seen.log_compute_XR))
            scratch = path.with_suffix(f".{os.getpid()}.npz")  # so that two processes may share it
            np.savez_compressed(scratch, runs=seen.runs, value=value, log_C=log_C)
            scratch.replace(path)
        held = np.load(path)
        return Ahead([str(x) for x in held["runs"]], held["value"], held["log_C"])


def seen_by(fits: Fits, study: Study, seed: int, seeds: int, stands: Mapping[str, float]) -> Ahead:
    """Forecasts from one of `seeds` disjoint parts of the draws."""
    seen = fits.ahead(study, stands)
    return Ahead(seen.runs, seen.value_XR[seed::seeds], seen.log_compute_XR[seed::seeds])


def replay(
    study: Study,
    forecast: Callable[[dict[str, float]], Ahead],
    policy: str,
    budget: float,
    rule: Rule,
    guarded: bool,
) -> tuple[list[Decision], dict[str, float]]:
    """The decisions, and what they spent, as a share of all cells' updates and of all FLOPs."""
    plan = Plan(study.cells, study.baseline, policy, budget, guarded=guarded, rule=rule)
    shares = dict.fromkeys(study.cells, 1.0)
    conduct = Conduct(plan, lambda _: shares, forecast, study.end)
    decisions, flops = list(conduct.decisions()), study.cost()
    spent = {}
    for unit, cost in (("spent", shares), ("spent_flops", flops)):
        spent[unit] = sum(cost[c] * conduct.reached[c] for c in cost) / sum(cost.values())
    return decisions, spent


def score(decisions: Sequence[Decision], known: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
    """Counts over the questions of a study."""
    out = dict.fromkeys(
        ("true", "none", "kept", "opposite", "unsupported", "equal", "equal_wrong"), 0
    )
    told = verdicts(decisions)
    for cell, of_cell in known.items():
        for question, was in of_cell.items():
            says = told[cell][question]["says"]
            sign = says if says in SIGNS else ""
            out["true" if was else "none"] += 1
            out["kept"] += bool(was) and says == was
            out["opposite"] += bool(was and sign) and sign != was
            out["unsupported"] += bool(sign) and not was
            out["equal"] += says == "equal" and not was
            out["equal_wrong"] += says == "equal" and bool(was)
    return out


def common(fits: Fits, study: Study) -> Callable[[dict[str, float]], Ahead]:
    """Forecasts from all cells at one share, the largest of any cell except the baseline."""

    def forecast(stands: dict[str, float]) -> Ahead:
        share = max(x for cell, x in stands.items() if cell != study.baseline)
        return fits.ahead(study, dict.fromkeys(study.cells, share))

    return forecast


def shared_with(name: str) -> tuple[str, ...]:
    return next((group for group in SHARED if name in group), (name,))


def choose(fits: Fits, all_studies: Sequence[Study], budget: float) -> dict[str, Rule]:
    """For each study, the rule chosen on the others; see the module's docstring."""
    tried = {}
    for decide, in_a_row, tolerance in product(DECIDE, IN_A_ROW, TOLERANCE):
        rule = Rule(decide=decide, in_a_row=in_a_row, tolerance=tolerance)
        for study in all_studies:
            made, spent = replay(study, common(fits, study), "equal", budget, rule, True)
            tried[rule, study.name] = score(made, truth(study)) | spent
    rules = list(dict.fromkeys(rule for rule, _ in tried))
    chosen = {}
    for study in all_studies:
        others = [s.name for s in all_studies if s.name not in shared_with(study.name)]
        totals = []
        for rule in rules:
            t = pd.DataFrame([tried[rule, name] for name in others]).sum()
            wrong = max(0, t["opposite"] / t["true"] - MOST_OPPOSITE)
            wrong += max(0, t["unsupported"] / t["none"] - MOST_UNSUPPORTED)
            totals.append((round(wrong, 6), -t["kept"], round(t["spent"], 6)))
        alike = [rule for rule, x in zip(rules, totals, strict=True) if x == min(totals)]
        alike.sort(key=lambda rule: (rule.decide, rule.in_a_row, rule.tolerance))
        chosen[study.name] = alike[(len(alike) - 1) // 2]
    return chosen


def table(fits: Fits, all_studies: Sequence[Study], seeds: int) -> tuple[pd.DataFrame, ...]:
    chosen = choose(fits, all_studies, 0.5)
    rules = pd.DataFrame([{"study": name, **asdict(rule)} for name, rule in chosen.items()])
    held = {"left out": chosen, "default": {study.name: Rule() for study in all_studies}}
    print(rules.to_string(index=False), flush=True)
    rows, guards = [], []
    for which, study in product(held, all_studies):
        rule, seen = held[which][study.name], partial(seen_by, fits, study)
        yardsticks = {"observed": truth(study), "fitted": fitted(fits, study, rule)}
        plans = [(p, b, True) for p in ("equal", "halving", "fixed") for b in BUDGETS]
        plans += [(p, b, False) for p in ("equal", "fixed") for b in BUDGETS]
        for policy, budget, guarded in [*plans, ("fixed", 1.0, False)]:
            cell = {
                "rule": which,
                "study": study.name,
                "policy": policy,
                "budget": budget,
                "guard": guarded,
            }
            for seed in range(seeds):
                try:
                    made, spent = replay(
                        study, partial(seen, seed, seeds), policy, budget, rule, guarded
                    )
                except InputError as error:
                    print(f"{cell}: {error}")
                    break
                if seed == 0 and (policy, budget, guarded) == ("equal", 0.5, True):
                    guards += [
                        {"rule": which, "study": study.name, **row}
                        for row in made
                        if "passed" in row
                    ]
                for yardstick, known in yardsticks.items():
                    row = cell | {"seed": seed, "truth": yardstick, **score(made, known), **spent}
                    rows.append(row)
            print(rows[-2], flush=True)
    return pd.DataFrame(rows), pd.DataFrame(guards), rules


def summary(runs: pd.DataFrame, passed: set[str]) -> pd.DataFrame:
    """Counts summed over studies, mean over seeds; spent: mean over studies."""
    out = []
    known = {**GROUPS, "guard passes": tuple(passed), "all": tuple(runs["study"].unique())}
    for group, names in known.items():
        for key, cells in runs[runs["study"].isin(names)].groupby(
            ["rule", "truth", "policy", "guard", "budget"], sort=False
        ):
            counts = ["true", "none", "kept", "opposite", "unsupported", "equal", "equal_wrong"]
            total = cells.groupby("seed")[counts].sum()
            row = {
                "group": group,
                **dict(zip(("rule", "yardstick", "policy", "guard", "budget"), key, strict=True)),
            }
            row |= {"studies": cells["study"].nunique()} | total.mean().round(2).to_dict()
            row |= {"kept_least": total["kept"].min(), "kept_most": total["kept"].max()}
            for unit in ("spent", "spent_flops"):
                row[unit] = cells.groupby("study")[unit].mean().mean()
            out.append(row)
    return pd.DataFrame(out)


def draw(table: pd.DataFrame) -> Figure:
    """Verdicts against the compute spent, by the fit of the whole study; a column per group."""
    groups, table = ("five", "hard"), table[table["yardstick"] == "fitted"]
    table = table[table["rule"] == "left out"]
    table = table[table["studies"] == table.groupby("group")["studies"].transform("max")]
    figure = canvas(9.6, 7.8)
    grid = figure.subplots(3, len(groups), sharex=True, squeeze=False)
    series = list(dict.fromkeys(zip(table["policy"], table["guard"], strict=True)))
    for column, group in enumerate(groups):
        for (policy, guarded), color in zip(series, COLORS, strict=False):
            here = (table["group"] == group) & (table["policy"] == policy)
            mine = table[here & (table["guard"] == guarded)].sort_values("spent")
            label = f"{policy}{', with the guard' if guarded else ''}"
            style = ("-" if guarded else "--") + MARKERS[policy]
            wrong = (mine["opposite"] + mine["unsupported"]) / (mine["true"] + mine["none"])
            shares = (mine["kept"] / mine["true"], wrong, mine["equal"] / mine["none"])
            for ax, y in zip(grid[:, column], shares, strict=True):
                ax.plot(mine["spent"], y, style, color=color, ms=6, mfc="none", lw=1.2, label=label)
        top, *_, bottom = grid[:, column]
        titles = {"five": "the five studies", "hard": "hard_mix, a study per learning rate"}
        panel_title(top, titles[group])
        level(top, KEPT, f"aim: {percent(KEPT)}", FAINT)
        bottom.set_xlabel("compute spent, share of the whole study", fontsize=9)
        for ax in grid[:, column]:
            percent_ticks(ax.xaxis)
            percent_ticks(ax.yaxis)
            tidy(ax)
    for row, ends in zip(grid, ((0.58, 1.02), (-0.01, 0.25), (-0.04, 1.04)), strict=True):
        for ax in row:
            ax.set_ylim(*ends)
    grid[0, 0].set_ylabel("differences kept", fontsize=9)
    grid[1, 0].set_ylabel("false or reversed\ndifferences", fontsize=9)
    grid[2, 0].set_ylabel("equal pairs\nfound equal", fontsize=9)
    note(
        figure,
        "equal, halving: cells stop round by round; fixed: all stop at the budget. If the "
        "baseline's own forecast failed, the guard decides nothing.",
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8
    )
    return figure


def figures(results: Path) -> dict[str, Drawing]:
    path = results / "budget" / "summary.csv"
    source = "budget/summary.csv, by python -m analysis.replay"
    return {"budget/replay": Drawing(lambda: draw(pd.read_csv(path)), source)}


def main(argv: Sequence[str]) -> None:
    options = read_options(Options, argv)
    if options.what not in ("all", "figure"):
        raise InputError("what", options.what, "unknown", "use all|figure")
    if options.seeds < 1:
        raise InputError("seeds", options.seeds, "no draws", "give 1 or more")
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    if options.what != "figure":
        runs, guards, rules = table(Fits(options.cache), studies(), options.seeds)
        runs.to_csv(out / "replay.csv", index=False, float_format="%.4g")
        guards.to_csv(out / "guard.csv", index=False, float_format="%.4g")
        rules.to_csv(out / "rules.csv", index=False)
        made = pd.concat(
            summary(part, set(guards.loc[(guards["rule"] == rule) & guards["passed"], "study"]))
            for rule, part in runs.groupby("rule", sort=False)
        )
        made.to_csv(out / "summary.csv", index=False, float_format="%.4g")
        print(made.to_string(index=False, float_format="{:.3g}".format))
    draw(pd.read_csv(out / "summary.csv")).savefig(out / "replay.png")
    print(f"wrote {out}")


if __name__ == "__main__":
    sys.exit(exit_status(main))
