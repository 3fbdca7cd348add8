"""Which cells of a sweep may stop, and why: rounds at equal shares of each cell's compute.

A study asks two questions of every cell and the baseline, of the mean of their own runs:

    final    d = R_cell(C_full) - R_baseline(C_full)              pass rate at the full compute
    compute  d = log C*_cell(y) - log C*_baseline(y)              compute to one level,
             y = R0 + .8 (R_baseline(C_full) - R0),  C* at most C_full

An answer is "higher" or "lower" where P(d beyond the margin, with that sign) reaches `decide`,
"equal" where P(|d| within the margin) does, else open. Errors of forecasts are shared by cells that
are seen to the same share of their compute and cancel in d; so all cells are compared with the
baseline cut to their own share, and a verdict is frozen there.

`conduct` is the study: which cells go on to which share, until all is decided or the budget is
spent. It knows neither runs nor files: `launch` and `forecast` do.

    equal    all open cells stand at the same share; a cell stops once both answers are there
    halving  the better half goes on to twice the share (successive halving, Jamieson & Talwalkar
             2016, AISTATS 51:240)
    fixed    one round, at the share that the budget allows

In each the baseline runs to its end first. Its forecast from a quarter of its compute is compared
with what came: where that fails no forecast of this study is trusted, and all cells run whole.

Letters: X draws, R runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling import curve as curves
from rlx.scaling.posterior import ScalingFit

Floats = NDArray[np.float64]
Cells = Mapping[str, Sequence[str]]  # runs of each cell
Decision = dict[str, Any]  # a line of decisions.jsonl

POLICIES = ("equal", "halving", "fixed")
QUESTIONS = ("final", "compute")
LEVEL = 0.8  # of the baseline's gain, where compute is compared
SHARES = (0.25, 0.4, 0.5, 0.75, 1.0)  # of the rounds of `equal`, as far as the budget allows
STEP = 20  # shares are multiples of 1 / STEP
QUARTER = 0.25  # of the baseline's compute, from which the guard forecasts


@dataclass(frozen=True)
class Rule:
    """When an answer counts. The defaults are those of the replay, see analysis/replay.py."""

    margin: float = 0.01  # pass rate
    margin_compute: float = 0.10  # relative
    decide: float = 0.95
    in_a_row: int = 1  # rounds of `equal` that must agree before a cell stops
    tolerance: float = 0.07  # of the guard, pass rate


class Ahead(NamedTuple):
    """What a fit says of its runs at the end of their compute."""

    runs: list[str]
    value_XR: Floats  # pass rate
    log_compute_XR: Floats  # to the level y; NaN where y lies below the start


class Answer(NamedTuple):
    """Of one question: difference to the baseline, with its 90 % interval, and probabilities."""

    mean: float
    q05: float
    q95: float
    above: float  # P(d > margin)
    below: float
    equal: float

    def says(self, decide: float) -> str:
        """higher, lower, equal or, where nothing reaches `decide`, nothing."""
        named = {"higher": self.above, "lower": self.below, "equal": self.equal}
        return next((word for word, p in named.items() if p >= decide), "")


def ahead(fit: ScalingFit, full: Mapping[str, float], baseline: Sequence[str]) -> Ahead:
    """Pass rate at the full compute of every run, and compute to the level of the baseline's runs.

    full: the full compute of each run, in the unit of the fit.
    """
    full_R = np.array([full[run] for run in fit.runs])
    value_XR = fit._at(full_R[:, None], "run")[..., 0]
    p = fit._parameters("run")
    base = [fit.runs.index(run) for run in baseline]
    gain_XR = LEVEL * (value_XR - p["R0"])
    level_X = (p["R0"] + gain_XR)[:, base].mean(1)
    columns = [
        curves.compute_to(level_X, **{name: x[:, r] for name, x in p.items()})
        for r in range(len(full_R))
    ]
    C_XR = np.minimum(np.stack(columns, 1), full_R)
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
    """Of both questions. Draws without an answer count for none of the probabilities."""
    margins = {"final": rule.margin, "compute": float(np.log1p(rule.margin_compute))}
    out = {}
    for name, margin in margins.items():
        d_X = mean_of(ahead, cell, name) - mean_of(ahead, baseline, name)
        known_X = d_X[np.isfinite(d_X)]
        at = (known_X.mean(), *np.quantile(known_X, [0.05, 0.95])) if len(known_X) else [np.nan] * 3
        p = [float(np.mean(x)) for x in (d_X > margin, d_X < -margin, np.abs(d_X) <= margin)]
        out[name] = Answer(*map(float, at), *p)
    return out


def budget_left(
    budget: float, cost: Mapping[str, float], stands: Mapping[str, float], live: Sequence[str]
) -> float:
    """The share that all `live` cells, which stand at one share, can reach; at most 1.

    budget and cost (of each cell to its end) in one unit; stands: share of each cell so far.
    """
    left = budget - sum(cost[cell] * stands[cell] for cell in cost)
    now = stands[live[0]]
    reach = now + left / sum(cost[cell] for cell in live)
    return min(1.0, np.floor(reach * STEP + 1e-9) / STEP)


def first_of_halving(budget_share: float, others: int) -> float:
    """The largest first share of successive halving of `others` cells beside the baseline, all of
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


def guard(ahead: Ahead, baseline: Sequence[str], end: float, rule: Rule) -> Decision:
    """Whether the forecast of the baseline from QUARTER of its compute met its end."""
    x_X = mean_of(ahead, baseline, "final")
    low, high = np.quantile(x_X, [0.05, 0.95])
    miss = float(end - x_X.mean())
    passed = abs(miss) <= rule.tolerance
    row = {"forecast": float(x_X.mean()), "q05": float(low), "q95": float(high), "end": end}
    said = "within" if passed else "beyond"
    reason = (
        f"from {QUARTER:g} of its compute the baseline was forecast to end at {x_X.mean():.3f}; it "
        f"ended at {end:.3f}, {said} {rule.tolerance:g}"
    )
    return {"decision": "guard", "passed": bool(passed), **row, "reason": reason}


# ------------------------------------------------------------------ the study

Launch = Callable[[dict[str, float]], Mapping[str, float]]
Forecast = Callable[[dict[str, float]], Ahead]


def conduct(
    cells: Cells,
    baseline: str,
    policy: str,
    budget: float,
    launch: Launch,
    forecast: Forecast,
    end: Callable[[], float],
    rule: Rule = Rule(),
    whole: float | None = None,
    guarded: bool = True,
) -> Iterator[Decision]:
    """The decisions of a study, one by one, each when it falls.

    Args:
        cells: the runs of each cell.
        baseline: the cell that the others are compared with.
        policy: one of POLICIES.
        budget: the compute that may be spent, a share of the study's.
        launch: brings cells to a share of their compute, and says what each cell costs to its end
            in the unit of the budget.
        forecast: what the evaluations say with each cell cut to a share of its compute.
        end: pass rate at which the baseline ended.
        rule: when an answer counts.
        whole: the budget, if it is not a share, in the unit of the costs.
        guarded: the baseline runs to its end first and its forecast is looked at; else it goes
            along with the others, and forecasts are believed.

    Raises:
        InputError: an unknown policy or baseline; a budget that does not reach beyond the baseline.
    """
    _check(cells, baseline, policy, budget, whole)
    stands = dict.fromkeys(cells, 0.0)
    cost = launch({baseline: 1.0} if guarded else {})
    stands[baseline] = float(guarded)
    along = [] if guarded else [baseline]
    live = [cell for cell in cells if cell != baseline]
    agreed = {cell: ("", "", 0) for cell in live}  # both answers, and for how many rounds
    turn = 0
    while live:
        spendable = whole if whole is not None else budget * sum(cost.values())
        reach = budget_left(spendable, cost, stands, [*live, *along])
        share = _next_share(policy, stands[live[0]], reach, spendable, cost, live, len(cells) - 1)
        if share <= stands[live[0]]:
            if not turn:
                raise InputError("budget", budget, "the baseline alone takes it", "give more")
            break
        cost = launch(dict.fromkeys([*live, *along], share))
        stands |= dict.fromkeys([*live, *along], share)
        turn += 1
        if guarded and turn == 1:
            early = {cell: min(x, QUARTER) for cell, x in stands.items()}
            found = guard(forecast(early), cells[baseline], end(), rule)
            yield {"round": turn, "share": share, "cell": baseline, **found}
            if not found["passed"]:
                launch(dict.fromkeys(live, 1.0))
                yield from _whole(cells, baseline, live, forecast, rule, turn + 1)
                return
        seen = forecast(stands | {baseline: share})
        value = {cell: float(mean_of(seen, cells[cell], "final").mean()) for cell in live}
        best = sorted(live, key=lambda cell: -value[cell])[: (len(live) + 1) // 2]
        going = []
        for cell in live:
            found = answers(seen, cells[cell], cells[baseline], rule)
            said = tuple(found[name].says(rule.decide) for name in QUESTIONS)
            before = agreed[cell]
            agreed[cell] = (*said, before[2] + 1 if before[:2] == said else 1)
            stop, reason = _stops(policy, said, agreed[cell][2], cell in best, share, rule)
            going += [] if stop else [cell]
            yield _line(turn, share, cell, found, said, "stop" if stop else "go on", reason)
        live = going


def _check(cells: Cells, baseline: str, policy: str, budget: float, whole: float | None) -> None:
    if policy not in POLICIES:
        raise InputError("policy", policy, "unknown", f"use {'|'.join(POLICIES)}")
    if baseline not in cells:
        raise InputError("baseline", baseline, "no such cell", f"use one of {', '.join(cells)}")
    if whole is None and not 0 < budget <= 1:
        raise InputError("budget", budget, "not a share in (0, 1]", "give one, or a unit")
    if len(cells) < 2:
        raise InputError("baseline", baseline, "the only cell", "sweep over something")


def _next_share(policy, now, reach, spendable, cost, live, others) -> float:
    if policy == "fixed":
        return reach if now == 0 else now
    if policy == "halving":
        if now == 0:
            return first_of_halving(spendable / sum(cost.values()), others)
        return min(1.0, 2 * now)
    ahead = [share for share in SHARES if share > now]
    return min(ahead[0], reach) if ahead else now


def _stops(policy, said, rounds, best, share, rule) -> tuple[bool, str]:
    if policy == "equal" and all(said) and rounds >= rule.in_a_row:
        return True, "both answers are there"
    if share >= 1:
        return True, "seen whole"
    if policy == "fixed":
        return True, "the share that the budget allows"
    if policy == "halving":
        return not best, "in the better half" if best else "in the worse half"
    missing = [name for name, word in zip(QUESTIONS, said, strict=True) if not word]
    return False, f"open: {', '.join(missing)}" if missing else "answered once"


def _whole(cells, baseline, live, forecast, rule, turn) -> Iterator[Decision]:
    """The verdicts of a study that runs whole."""
    seen = forecast(dict.fromkeys(cells, 1.0))
    for cell in live:
        found = answers(seen, cells[cell], cells[baseline], rule)
        said = tuple(found[name].says(rule.decide) for name in QUESTIONS)
        yield _line(turn, 1.0, cell, found, said, "stop", "seen whole: the guard failed")


def _line(turn, share, cell, found, said, decision, reason) -> Decision:
    row: Decision = {"round": turn, "share": share, "cell": cell, "decision": decision}
    row["reason"] = reason
    for name, word in zip(QUESTIONS, said, strict=True):
        row[name] = {"says": word or "undecided", **found[name]._asdict()}
    return row


def verdicts(decisions: Sequence[Decision]) -> dict[str, Decision]:
    """The last line about each cell: where it stopped, or how far it has come."""
    return {row["cell"]: row for row in decisions if row["decision"] != "guard"}
