"""A study with a budget: cells stop once the study's questions about them are answered.

    python -m experiments.study sweep=NAME budget=0.5 [unit=share|flops|device_s]
                                [policy=equal|halving|fixed] [baseline=RECIPE]

The rounds are those of `rlx.scaling.stopping`; each is the study's sweep with fewer cells, up to a
share of their updates, so it runs with every launcher. Between rounds a hierarchical fit (Laplace)
of the evaluations so far answers both questions about every running cell; at the end the posterior
of all is `fit`'s. The budget is a share of all cells' updates, FLOPs, or device seconds; for the
latter two the cost of a cell is extrapolated from its pace. The baseline is a cell: a recipe, or
`KEY=VALUE, ...` of its axes; default the first.

The study's directory gets

    decisions.jsonl   a line per decision: what was compared, with numbers and reasons
    at_end.csv        of every run, its pass rate at the full compute by the latest fit
    verdicts.csv      of every cell: its answers, and the share at which they were given

Nothing is deleted. After a kill at any moment, the same command resumes with the same result. A
stopped cell continues to its end with `cell=N`, or with its overrides for `experiments.train`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import fit
from experiments.cells import exit_status_of, last_update, quoted
from rlx.errors import InputError
from rlx.record import Busy, RunRecord, read_rows
from rlx.scaling import Evals
from rlx.scaling import fit as posterior_of
from rlx.scaling.stopping import (
    QUESTIONS,
    Ahead,
    Conduct,
    Decision,
    Plan,
    ahead,
    verdicts,
)

UNITS = ("share", "flops", "device_s")
DECISIONS, FORECAST, VERDICTS = "decisions.jsonl", "at_end.csv", "verdicts.csv"
SHARES = ".shares.json"  # the cells and shares of the current round's sweep
LAST = 3  # evaluations whose mean is a run's final pass rate
LEAST = 4  # evaluations of a run that a fit needs


class SweepFailed(RuntimeError):
    """The sweep of a round ended with this exit status."""


@dataclass
class Run:
    """The progress of a run."""

    path: Path
    manifest: dict[str, Any]
    rows: list[dict[str, Any]]  # of its evaluations

    @classmethod
    def at(cls, path: Path) -> Run:
        record = RunRecord(path, writes=False)
        return cls(path, record.manifest, record.rows("evals.jsonl"))

    @property
    def ended(self) -> bool:
        return self.manifest.get("status") == "done"

    def last_update(self, share: float) -> int:
        config = self.manifest["config"]
        return last_update(config["steps"], config["eval"]["every_steps"], share)

    def has_come_to(self, share: float) -> bool:
        paused = self.manifest.get("status") == "paused"
        return self.ended or paused and self.rows[-1]["step"] >= self.last_update(share)

    def compute_at(self, share: float) -> float:
        """Compute at the last evaluation of a share of the run's updates."""
        return [row for row in self.rows if row["step"] <= self.last_update(share)][-1]["compute"]

    def full_cost(self, spent: float, step: int) -> float:
        """Cost of the full run at the pace so far."""
        return spent * (1.0 if self.ended else self.manifest["config"]["steps"] / step)


@dataclass
class Rounds:
    """The runs of a study, for `stopping.Conduct`."""

    out: Path
    command: Sequence[str]  # of the sweep
    cells: Mapping[str, Sequence[str]]
    baseline: str
    unit: str

    def run(self, name: str) -> Run:
        return Run.at(self.out / "runs" / name)

    def launch(self, shares: dict[str, float]) -> Mapping[str, float]:
        wanted = {run: share for cell, share in shares.items() for run in self.cells[cell]}
        waiting = {run: x for run, x in wanted.items() if not self.run(run).has_come_to(x)}
        if waiting:
            file = self.out / SHARES
            file.write_text(json.dumps(waiting))
            words = [*self.command, f"hydra.sweeper.shares={quoted(str(file.resolve()))}"]
            if failed := exit_status_of(words):
                raise SweepFailed(failed)
        return self.cost()

    def cost(self) -> Mapping[str, float]:
        """Cost of each full cell, in the unit of the budget."""
        if self.unit == "share":
            return dict.fromkeys(self.cells, 1.0)
        known = {}
        for cell, names in self.cells.items():
            begun = [run for run in map(self.run, names) if run.rows and run.rows[-1]["step"]]
            if begun:
                known[cell] = len(names) * float(np.mean([self._whole_cost(run) for run in begun]))
        typical = float(np.mean(list(known.values()))) if known else 1.0
        return {cell: known.get(cell, typical) for cell in self.cells}

    def _whole_cost(self, run: Run) -> float:
        if self.unit == "flops":
            return run.full_cost(run.rows[-1]["compute"], run.rows[-1]["step"])
        clock = read_rows(run.path / "clock.jsonl")[-1]
        busy = clock["device_s"]["generate"] + clock["device_s"]["train"]
        return run.full_cost(busy, clock["step"] or 1)

    def evals(self) -> Evals:
        with contextlib.redirect_stdout(sys.stderr):
            return Evals.read(self.out)

    def forecast(self, reached: dict[str, float]) -> Ahead:
        """The fit of each cell cut to its share; also stored as forecasts of the runs."""
        runs = {name: self.run(name) for names in self.cells.values() for name in names}
        share = {name: reached[cell] for cell, names in self.cells.items() for name in names}
        last = {name: run.compute_at(share[name]) for name, run in runs.items()}
        full = {}
        for name, run in runs.items():
            step = max(row["step"] for row in run.rows if row["compute"] <= last[name])
            full[name] = run.rows[-1]["compute"] if run.ended else run.full_cost(last[name], step)
        evals = self.evals()
        evals = evals.with_rows(evals.frame["compute"] <= evals.frame["run"].map(last))
        count = evals.frame["run"].value_counts().reindex(list(runs), fill_value=0)
        if count.min() < LEAST:
            reason = (
                f"{count.idxmin()} has {count.min()} evaluations at its share, fewer than {LEAST}"
            )
            raise InputError("budget", self.out, reason, "evaluate more often, eval.every_steps")
        with contextlib.redirect_stdout(sys.stderr):
            found = posterior_of(evals, method="laplace", pad_to=self._most_evaluations(runs))
            seen = ahead(found, full, self.cells[self.baseline])
        self._keep(seen, share)
        return seen

    def _most_evaluations(self, runs: Mapping[str, Run]) -> int:
        """Of a full run, so that the fits of all rounds have the same shapes."""
        configs = [run.manifest["config"] for run in runs.values()]
        return max(config["steps"] // config["eval"]["every_steps"] + 2 for config in configs)

    def _keep(self, seen: Ahead, share: Mapping[str, float]) -> None:
        low, middle, high = np.quantile(seen.value_XR, [0.05, 0.5, 0.95], axis=0)
        table = pd.DataFrame({"run": seen.runs, "share": [share[run] for run in seen.runs]})
        table = table.assign(forecast=middle, q05=low, q95=high)
        table.to_csv(self.out / FORECAST, index=False, float_format="%.4g")

    def end(self) -> float:
        frame = self.evals().frame
        tails = [
            frame.loc[frame["run"] == r, "value"].iloc[-LAST:] for r in self.cells[self.baseline]
        ]
        return float(np.mean([tail.mean() for tail in tails]))


def find(baseline: str, cells: Mapping[str, Sequence[str]]) -> str:
    """The cell named by a recipe or `KEY=VALUE, ...`; of several, the one without ablation.

    Raises InputError if none does, or several.
    """
    if not baseline:
        return next(iter(cells))
    parts = set(baseline.split(", "))
    named = [cell for cell in cells if parts <= set(cell.split(", "))]
    plain = [cell for cell in named if "=" not in cell or "ablation=none" in cell.split(", ")]
    chosen = named if len(named) == 1 else plain
    if len(chosen) != 1:
        reason = f"names {len(named)} cells"
        some = " | ".join((named or list(cells))[:8])
        raise InputError("baseline", baseline, reason, f"give one of them: {some}")
    return chosen[0]


def conduct(
    out: Path,
    command: Sequence[str],
    cells: Mapping[str, Sequence[str]],
    options: Mapping[str, str],
    method: str,
) -> int:
    """Run the study from its current state to its end; the exit status of a failed sweep, or 0.

    Args:
        command: of the sweep, without the cells of a round.
        cells: names of the runs of each cell.
        options: budget, unit, policy and baseline as given.
        method: of the last fit.

    Raises InputError on options that cannot be used, or that differ from those at the start.
    """
    unit, number = options.get("unit", "share"), options["budget"]
    if unit not in UNITS:
        raise InputError("unit", unit, "unknown", f"use {'|'.join(UNITS)}")
    try:
        budget = float(number)
    except ValueError:
        raise InputError("budget", number, "not a number", "give one, such as 0.5") from None
    baseline = find(options.get("baseline", ""), cells)
    policy = options.get("policy", "equal")
    plan = Plan(cells, baseline, policy, budget, absolute=unit != "share")
    record = RunRecord(out)
    try:
        lock = record.lock()
    except Busy:
        reason = "another process runs this study"
        raise InputError("out", out, reason, "wait for it, or give another out=DIR") from None
    with lock:
        rounds = Rounds(out, command, cells, baseline, unit)
        try:
            decisions = decide(record, plan, unit, rounds)
        except SweepFailed as failed:
            return int(failed.args[0])
        table = table_of(decisions).replace({"decision": {"go on": "the budget is spent"}})
        table.to_csv(out / VERDICTS, index=False, float_format="%.4g")
        fit.run(out, out, holdout=0.0, method=method)
        print()
        print(table.to_string(index=False, float_format="{:.3g}".format))
    return 0


def decide(record: RunRecord, plan: Plan, unit: str, rounds: Rounds) -> list[Decision]:
    """All decisions of the study; those that are not recorded yet are made and recorded."""
    file = record.path / DECISIONS
    whole = file.read_bytes() if file.exists() else b""
    record.truncate({DECISIONS: whole.rfind(b"\n") + 1})
    known = record.rows(DECISIONS)
    what: Decision = {"round": -1, "cell": "", "decision": "plan", "unit": unit}
    what |= {key: x for key, x in asdict(plan).items() if key != "cells"}
    what |= {"cells": {cell: list(names) for cell, names in plan.cells.items()}}
    if not known:
        record.append(DECISIONS, what)
    elif differing := [key for key in what if known[0].get(key) != what[key]]:
        key = differing[0]
        reason = f"the study in {record.path} was started with {known[0].get(key)}"
        raise InputError(key, what[key], reason, "continue with that, or give another out=DIR")
    held = {(row["round"], row["cell"]) for row in known}
    decisions = []
    made = Conduct(plan, rounds.launch, rounds.forecast, rounds.end, known[1:])
    for row in made.decisions():
        decisions.append(row)
        if (row["round"], row["cell"]) not in held:
            record.append(DECISIONS, row)
            print(line_of(row), file=sys.stderr)
    return decisions


def line_of(row: Decision) -> str:
    """A decision as one line."""
    what = f"round {row['round']}, share {row['share']:g}: {row['decision']} {row['cell']}".strip()
    if row["decision"] == "start":
        what += f" {len(row['cells'])} cells"
    figures = [
        f"{name} {row[name]['says']} ({row[name]['mean']:+.3g})"
        for name in QUESTIONS
        if name in row
    ]
    return "; ".join([what, *figures, row["reason"]])


def table_of(decisions: Sequence[Decision]) -> pd.DataFrame:
    """A row per cell: its share, its answers with their numbers, and why it stopped."""
    table = []
    for cell, row in verdicts(decisions).items():
        line = {"cell": cell, "share": row["share"], "decision": row["decision"]}
        for name in QUESTIONS:
            line |= {name: row[name]["says"]}
            line |= {f"{name}_{key}": row[name][key] for key in ("mean", "q05", "q95")}
        table.append(line | {"reason": row["reason"]})
    return pd.DataFrame(table)


def status(out: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table of a study's runs with their forecasts at the end; prints the decisions."""
    decisions = [row for row in read_rows(out / DECISIONS) if row["decision"] != "plan"]
    print(*map(line_of, decisions), sep="\n")
    if not (out / FORECAST).exists():
        return table
    names = {"share": "of_share", "forecast": "at_end", "q05": "at_end_q05", "q95": "at_end_q95"}
    seen = pd.read_csv(out / FORECAST).rename(columns=names)
    return table.merge(seen, on="run", how="left")
