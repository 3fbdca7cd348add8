"""Which cells of a sweep may stop, and why: rounds at equal shares of each cell's compute.

A study asks two questions about every cell and the baseline, as means over their runs:

    final    d = R_cell(C_full) - R_baseline(C_full)              pass rate at the full compute
    compute  d = log C*_cell(y) - log C*_baseline(y)              compute to one level,
             y = R0 + 0.8 (R_baseline(C_full) - R0),  C* at most C_full

An answer is "higher" or "lower" if P(d beyond the margin, with that sign) reaches `decide`, "equal"
if P(|d| within the margin) does, else open. Errors of forecasts are shared by cells that have run
to the same share of their compute, and cancel in d; so every cell is compared with the baseline cut
to the cell's share, and its verdict is frozen there.

`Conduct` runs the study: which cells continue to which share, until everything is decided or the
budget is spent. It does not know runs or files: `launch` and `forecast` do.

    equal    all open cells have the same share; a cell stops once both questions are answered
    halving  the better half continues to twice the share (successive halving, Jamieson & Talwalkar
             2016, AISTATS 51:240)
    fixed    one round, to the share that the budget allows

In all of them the baseline first runs to its end. Its forecast from a quarter of its compute is
compared with the outcome: if that fails, no forecast of the study is trusted, and all cells run to
their end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.draws import Draws
from rlx.scaling.paths import paths, reach

Floats = NDArray[np.float64]
Cells = Mapping[str, Sequence[str]]  # runs of each cell
Decision = dict[str, Any]  # a line of decisions.jsonl

POLICIES = ("equal", "halving", "fixed")
QUESTIONS = ("final", "compute")
OPEN = "open"
LEVEL = 0.8  # of the baseline's gain, at which compute is compared
SHARES = (0.25, 0.4, 0.5, 0.75, 1.0)  # of the rounds of `equal`, as far as the budget allows
STEP = 20  # shares are multiples of 1 / STEP
QUARTER = 0.25  # of the baseline's compute, at which the guard forecasts


@dataclass(frozen=True)
class Rule:
    """When a question is answered. The defaults were chosen by replays, see analysis/replay.py."""

    margin: float = 0.01  # pass rate
    margin_compute: float = 0.10  # relative
    decide: float = 0.95
    in_a_row: int = 2  # rounds of `equal` that must agree before a cell stops
    tolerance: float = 0.07  # of the guard, pass rate


class Ahead(NamedTuple):
    """A fit's forecasts of its runs at their full compute."""

    runs: list[str]
    value_XR: Floats  # pass rate
    log_compute_XR: Floats  # to the level y; NaN if y is below the start


class Answer(NamedTuple):
    """The answer to one question: difference to the baseline, its 90 % interval, probabilities."""

    mean: float
    q05: float
    q95: float
    above: float  # P(d > margin)
    below: float
    equal: float

    def says(self, decide: float) -> str:
        """higher, lower, equal or, if nothing reaches `decide`, open."""
        named = {"higher": self.above, "lower": self.below, "equal": self.equal}
        return next((word for word, p in named.items() if p >= decide), OPEN)


def ahead(fit: Draws, full: Mapping[str, float], baseline: Sequence[str]) -> Ahead:
    """Pass rate at the full compute of every run, and compute to the level of the baseline's runs.

    full: the full compute of each run, in the unit of the fit.

    It uses the curves without the doubt beyond the data: the replays of whole studies tested this
    rule with those (README of analysis/results/budget), and the guard, the baseline's forecast
    compared with its outcome, protects against wrong curves.
    """
    fit = fit.with_doubt(None)
    full_R = np.array([full[run] for run in fit.runs])
    value_XR = paths(fit, full_R[:, None])[..., 0]
    R0_XR = fit.curves("run")["R0"]
    base = [fit.runs.index(run) for run in baseline]
    level_X = (R0_XR + LEVEL * (value_XR - R0_XR))[:, base].mean(1)
    C_XR = np.minimum(reach(fit, level_X[:, None], "run"), full_R)
    with np.errstate(divide="ignore"):
        log_XR = np.where(C_XR > 0, np.log(C_XR), np.nan)
    return Ahead(list(fit.runs), value_XR, log_XR)


def mean_of(ahead: Ahead, runs: Sequence[str], question: str) -> Floats:
    """Draws [X] of the mean over the runs of a cell."""
    x_XR = ahead.value_XR if question == "final" else ahead.log_compute_XR
    return x_XR[:, [ahead.runs.index(run) for run in runs]].mean(1)


def answers(
    ahead: Ahead, cell: Sequence[str], baseline: Sequence[str], rule: Rule
) -> dict[str, Answer]:
    """Answers to both questions. Draws without a value count for none of the probabilities."""
    margins = {"final": rule.margin, "compute": float(np.log1p(rule.margin_compute))}
    out = {}
    for name, margin in margins.items():
        d_X = mean_of(ahead, cell, name) - mean_of(ahead, baseline, name)
        known_X = d_X[np.isfinite(d_X)]
        at = (known_X.mean(), *np.quantile(known_X, [0.05, 0.95])) if len(known_X) else [np.nan] * 3
        p = [float(np.mean(x)) for x in (d_X > margin, d_X < -margin, np.abs(d_X) <= margin)]
        out[name] = Answer(*map(float, at), *p)
    return out


def reachable(
    budget: float, cost: Mapping[str, float], reached: Mapping[str, float], live: Sequence[str]
) -> float:
    """The share that all `live` cells, which have the same share now, can reach; at most 1.

    budget and cost (of each cell's full compute) in one unit; reached: share of each cell so far.
    Shares are multiples of 1 / STEP.
    """
    left = budget - sum(cost[cell] * reached[cell] for cell in cost)
    now = reached[live[0]]
    reach = now + left / sum(cost[cell] for cell in live)
    return float(np.clip(np.floor(reach * STEP + 1e-9) / STEP, 0, 1))


def first_of_halving(budget_share: float, others: int) -> float:
    """The largest first share of successive halving of `others` cells besides the baseline, all of
    one cost, that spends at most a share of the study."""
    room = budget_share * (others + 1) - 1
    for k in range(STEP, 0, -1):
        if sum(
            count * (share - before) for count, share, before in halves(k / STEP, others)
        ) <= room * (1 + 1e-9):
            return k / STEP
    return 0.0


def halves(first: float, others: int) -> Iterator[tuple[int, float, float]]:
    """(cells that run, to which share, from which) of each round."""
    before, share, count = 0.0, first, others
    while True:
        yield count, share, before
        if share >= 1:
            return
        before, share, count = share, min(1.0, 2 * share), (count + 1) // 2


# ------------------------------------------------------------------ the study


@dataclass(frozen=True)
class Plan:
    """The cells to compare, and the budget.

    cells: the runs of each cell; baseline: the cell that the others are compared with.
    policy: one of POLICIES.
    budget: compute to spend: a share of the study's, or, with absolute, in the unit of the costs.
    guarded: the baseline first runs to its end and its forecast is checked; else it runs along
        with the others, and forecasts are not checked.

    Raises InputError: an unknown policy or baseline, an impossible budget, or a single cell.
    """

    cells: Cells
    baseline: str
    policy: str = "equal"
    budget: float = 0.5
    absolute: bool = False
    guarded: bool = True
    rule: Rule = Rule()

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise InputError("policy", self.policy, "unknown", f"use {'|'.join(POLICIES)}")
        if self.baseline not in self.cells:
            remedy = f"use one of {', '.join(self.cells)}"
            raise InputError("baseline", self.baseline, "no such cell", remedy)
        if not 0 < self.budget <= (np.inf if self.absolute else 1):
            remedy = "give a share of the study, or unit=flops or device_s"
            raise InputError("budget", self.budget, "not in (0, 1]", remedy)
        if len(self.cells) < 2:
            raise InputError("baseline", self.baseline, "the only cell", "sweep over something")

    def others(self) -> list[str]:
        return [cell for cell in self.cells if cell != self.baseline]


Launch = Callable[[dict[str, float]], Mapping[str, float]]
Forecast = Callable[[dict[str, float]], Ahead]


@dataclass
class Conduct:
    """A study in rounds.

    launch: runs cells to a share of their compute, and returns the full cost of each cell.
    forecast: from the evaluations with each cell cut to a share of its compute.
    end: final pass rate of the baseline.
    known: decisions made before an interruption; they are repeated as they were, without a
        forecast.
    """

    plan: Plan
    launch: Launch
    forecast: Forecast
    end: Callable[[], float]
    known: Sequence[Decision] = ()

    def __post_init__(self):
        self.held = {(row["round"], row["cell"]): row for row in self.known}
        self.reached = dict.fromkeys(self.plan.cells, 0.0)
        self.agreed = {cell: (("", ""), 0) for cell in self.plan.others()}
        self.cost: Mapping[str, float] = {}

    def decisions(self) -> Iterator[Decision]:
        """One at a time, as they are made; a start is yielded before it is launched.

        Raises InputError if the budget is spent by the baseline.
        """
        plan, live = self.plan, self.plan.others()
        if plan.guarded:
            yield from self._start(0, 1.0, [plan.baseline], "the baseline comes first")
        else:
            self.cost = self.launch({})
        for turn in itertools.count(1):
            going = live if plan.guarded else [plan.baseline, *live]
            share, reason = self._next(turn, going)
            if share <= self.reached[live[0]]:
                break
            yield from self._start(turn, share, going, reason)
            if plan.guarded and turn == 1:
                row = self.held.get((1, plan.baseline)) or self._guard()
                yield row
                if not row["passed"]:
                    yield from self._start(2, 1.0, live, "the guard failed: all run to the end")
                    yield from self._judge(2, live)
                    return
            rows = self._judge(turn, live)
            yield from rows
            live = [row["cell"] for row in rows if row["decision"] == "go on"]
            if not live:
                return
        if turn == 1:
            reason = "spent by the baseline alone"
            raise InputError("budget", plan.budget, reason, "give more")

    def _next(self, turn: int, going: Sequence[str]) -> tuple[float, str]:
        """The share of a round, and the budget left for it; the previous share if there is none."""
        if (turn, "") in self.held:
            return self.held[turn, ""]["share"], ""
        plan, all_of_it = self.plan, sum(self.cost.values())
        budget = plan.budget if plan.absolute else plan.budget * all_of_it
        reach, now = reachable(budget, self.cost, self.reached, going), self.reached[going[-1]]
        if plan.policy == "fixed":
            share = reach if turn == 1 else now
        elif plan.policy == "halving":
            first = first_of_halving(budget / all_of_it, len(plan.cells) - 1)
            share = first if turn == 1 else min(1.0, 2 * now)
        else:
            share = min([share for share in SHARES if share > now][:1] + [reach])
        used = sum(self.cost[cell] * self.reached[cell] for cell in self.cost)
        return share, f"{used:.4g} of {budget:.4g} spent"

    def _start(
        self, turn: int, share: float, going: Sequence[str], reason: str
    ) -> Iterator[Decision]:
        row: Decision = {"round": turn, "share": share, "cell": "", "decision": "start"}
        row |= {"cells": list(going), "reason": reason}
        yield self.held.get((turn, "")) or row
        self.cost = self.launch(dict.fromkeys(going, share))
        self.reached |= dict.fromkeys(going, share)

    def _guard(self) -> Decision:
        """Whether the baseline's forecast from QUARTER of its compute agrees with its end."""
        plan = self.plan
        early = {cell: min(share, QUARTER) for cell, share in self.reached.items()}
        x_X = mean_of(self.forecast(early), plan.cells[plan.baseline], "final")
        low, high = map(float, np.quantile(x_X, [0.05, 0.95]))
        forecast, end, most = float(x_X.mean()), self.end(), plan.rule.tolerance
        passed = bool(abs(end - forecast) <= most)
        row = {"round": 1, "share": early[plan.others()[0]], "cell": plan.baseline}
        row |= {"decision": "guard", "passed": passed, "forecast": forecast, "q05": low}
        reason = (
            f"forecast {forecast:.3f}, end {end:.3f}: {'within' if passed else 'beyond'} {most:g}"
        )
        return row | {"q95": high, "end": end, "reason": reason}

    def _judge(self, turn: int, live: Sequence[str]) -> list[Decision]:
        """A line for each live cell, from one fit unless all lines are known."""
        plan, share = self.plan, self.reached[live[0]]
        rows = {cell: self.held[turn, cell] for cell in live if (turn, cell) in self.held}
        if len(rows) < len(live):
            seen = self.forecast(self.reached | {plan.baseline: share})
            value = {cell: mean_of(seen, plan.cells[cell], "final").mean() for cell in live}
            better = sorted(live, key=lambda cell: -value[cell])[: (len(live) + 1) // 2]
            base = plan.cells[plan.baseline]
            for cell in live:
                if cell in rows:
                    continue
                row: Decision = {"round": turn, "share": share, "cell": cell}
                for name, answer in answers(seen, plan.cells[cell], base, plan.rule).items():
                    row[name] = {"says": answer.says(plan.rule.decide), **answer._asdict()}
                decision, reason = self._stops(cell, row, cell in better)
                rows[cell] = row | {"decision": decision, "reason": reason}
        for cell in live:
            before, count = self.agreed[cell]
            now = answers_in(rows[cell])
            self.agreed[cell] = now, count + 1 if before == now else 1
        return [rows[cell] for cell in live]

    def _stops(self, cell: str, row: Decision, better: bool) -> tuple[str, str]:
        """Whether a cell stops with the answers in this line, and why."""
        policy, needed = self.plan.policy, self.plan.rule.in_a_row
        before, count = self.agreed[cell]
        count = count + 1 if before == answers_in(row) else 1
        missing = [name for name in QUESTIONS if row[name]["says"] == OPEN]
        if policy == "equal" and not missing and count >= needed:
            return "stop", "both questions are answered"
        if row["share"] >= 1:
            return "stop", "ran to its end"
        if policy == "fixed":
            return "stop", "the share that the budget allows"
        if policy == "halving":
            return ("go on", "in the better half") if better else ("stop", "in the worse half")
        open_ = f"open: {', '.join(missing)}"
        return "go on", open_ if missing else f"answered {count} times of {needed}"


def answers_in(row: Decision) -> tuple[str, str]:
    return row["final"]["says"], row["compute"]["says"]


def verdicts(decisions: Sequence[Decision]) -> dict[str, Decision]:
    """The last line about each cell: where it stopped, or how far it is."""
    return {row["cell"]: row for row in decisions if row["decision"] in ("stop", "go on")}
