"""Rounds, guard, policies and restarts of a study with a budget, on forecasts made by hand."""

import json

import numpy as np
import pytest

from rlx.errors import InputError
from rlx.scaling.stopping import (
    Ahead,
    Conduct,
    Plan,
    Rule,
    ahead,
    answers,
    first_of_halving,
    reachable,
    verdicts,
)
from tests.scaling.hand import hand_fit

ONCE, TWICE = Rule(in_a_row=1), Rule(in_a_row=2)


def normal(mean, sd, size=4000, seed=0):
    """Draws with exactly this mean and sd."""
    x = np.random.default_rng(seed).normal(size=size)
    return mean + sd * (x - x.mean()) / x.std()


def test_what_lies_ahead_is_the_curve_at_the_full_compute_and_the_compute_to_its_level():
    """R = 0.2 + 0.4 C / (C + C_mid): 0.52, 0.4667 at 4; 80 % of the gain, 0.456, at 16/9, 32/9."""
    fit = hand_fit({"base": [(0.6, 1.0, 1.0)] * 2, "slow": [(0.6, 2.0, 1.0)] * 2})
    for most, wanted in ((4.0, 32 / 9), (3.0, 3.0)):
        seen = ahead(fit, {"base-s0": 4.0, "slow-s0": most}, ["base-s0"])
        value = [0.52, 0.2 + 0.4 * most / (most + 2)]
        np.testing.assert_allclose(seen.value_XR, [value] * 2, rtol=1e-6)
        np.testing.assert_allclose(np.exp(seen.log_compute_XR), [[16 / 9, wanted]] * 2, rtol=1e-6)


def test_an_answer_needs_a_direction_or_the_margin():
    """d ~ N(m, s): P(d > 0.01) and P(|d| < 0.01) by the normal's table."""
    cases = [(0.04, 0.01, "higher"), (-0.04, 0.01, "lower"), (0.0, 0.004, "equal")]
    cases += [(0.02, 0.01, "open"), (0.0, 0.02, "open")]  # P = 0.84; P(within) = 0.38
    for mean, sd, says in cases:
        d_X = normal(mean, sd)
        seen = Ahead(["a", "b"], np.stack([0.5 + d_X, 0 * d_X + 0.5], 1), np.zeros((len(d_X), 2)))
        found = answers(seen, ["a"], ["b"], Rule(decide=0.95))
        assert (found["final"].says(0.95), found["compute"].says(0.95)) == (says, "equal")
        assert found["final"].mean == pytest.approx(mean)
    assert found["final"].above == pytest.approx(0.309, abs=0.02)


def test_a_level_below_the_start_answers_nothing():
    seen = Ahead(["a", "b"], np.full((10, 2), 0.5), np.full((10, 2), np.nan))
    assert answers(seen, ["a"], ["b"], Rule())["compute"].says(0.5) == "open"


def test_the_share_that_a_budget_reaches():
    """5 of 9 cells stand at 0.25 and the baseline at 1: 4.5 - 1 - 8 * 0.25 = 1.5 for five cells."""
    cells = [f"c{i}" for i in range(9)]
    reached = {cell: 0.25 for cell in cells} | {"c0": 1.0}
    assert reachable(4.5, dict.fromkeys(cells, 1.0), reached, cells[4:]) == 0.55
    assert reachable(3.0, dict.fromkeys(cells, 1.0), reached, cells[4:]) == 0.25


@pytest.mark.parametrize("budget", [0.4, 0.5, 0.75, 1.0])
def test_halving_begins_where_its_rounds_cost_the_budget(budget):
    first = first_of_halving(budget, 8)

    def cost(first):
        spent, share, before, count = 1.0, first, 0.0, 8
        while True:
            spent += count * (share - before)
            if share >= 1:
                return spent / 9
            before, share, count = share, min(1, 2 * share), -(-count // 2)

    assert cost(first) <= budget + 1e-9 and (first == 1 or budget < cost(first + 0.05))
    assert first_of_halving(0.2, 8) == 0  # the last cell alone goes to its end


# ------------------------------------------------------------------ studies

CELLS = {name: [f"{name}-s0", f"{name}-s1"] for name in ("base", "far", "near", "same", "late")}


class Made:
    """A study whose forecasts are written here: `far` is plain at once, `late` from 0.5 on."""

    def __init__(self, forecast=0.8, end=0.8):
        self.base, self.at_end, self.launched, self.asked = forecast, end, [], []

    def launch(self, shares):
        self.launched.append(dict(shares))
        return dict.fromkeys(CELLS, 1.0)

    def forecast(self, reached):
        self.asked.append(dict(reached))
        runs = [run for names in CELLS.values() for run in names]
        d = {"base": 0.0, "far": -0.2, "near": -0.015, "same": 0.0, "late": -0.05}
        sd = {"near": 0.02, "late": 0.002 if reached["late"] >= 0.5 else 0.05}
        columns = [
            normal(self.base + d[run[:-3]], sd.get(run[:-3], 0.002), seed=k)
            for k, run in enumerate(runs)
        ]
        value = np.stack(columns, 1)
        return Ahead(runs, value, 10 - value)  # more pass rate, less compute

    def end(self):
        return self.at_end

    def conduct(self, policy="equal", budget=0.9, known=(), guarded=True, rule=ONCE):
        plan = Plan(CELLS, "base", policy, budget, guarded=guarded, rule=rule)
        self.last = Conduct(plan, self.launch, self.forecast, self.end, known)
        return list(self.last.decisions())


def spent(reached):
    return sum(reached.values()) / len(reached)


def test_equal_stops_what_is_decided_and_goes_on_with_the_rest():
    made = Made()
    told = verdicts(made.conduct())
    assert made.launched[:2] == [
        {"base": 1.0},
        dict.fromkeys(["far", "near", "same", "late"], 0.25),
    ]
    assert (told["far"]["share"], told["far"]["final"]["says"]) == (0.25, "lower")
    assert (told["same"]["share"], told["same"]["final"]["says"]) == (0.25, "equal")
    assert told["late"]["share"] == 0.5 and told["late"]["decision"] == "stop"
    assert told["near"]["decision"] == "stop" and told["near"]["reason"] == "ran to its end"
    assert all(seen["base"] == max(seen["near"], 0.25) for seen in made.asked)  # equal shares
    assert all(seen["far"] == 0.25 for seen in made.asked)  # nothing later of what stopped
    assert spent(made.last.reached) <= 0.9


def test_a_budget_that_is_used_up_leaves_what_is_open():
    made = Made()
    told = verdicts(made.conduct(budget=0.5))  # 2.5 = 1 + 4 * 0.25 + 2 * 0.15 + 0.2
    assert told["near"]["decision"] == "go on" and told["near"]["final"]["says"] == "open"
    assert spent(made.last.reached) <= 0.5


def test_two_rounds_in_a_row():
    told = verdicts(Made().conduct(rule=TWICE))
    assert told["far"]["share"] == 0.4 and told["late"]["share"] == 0.75


@pytest.mark.parametrize("budget, share", [(0.4, 0.25), (0.6, 0.5), (1.0, 1.0)])
def test_fixed_is_one_round(budget, share):
    made = Made()
    decisions = made.conduct("fixed", budget)
    assert [row["decision"] for row in decisions[:3]] == ["start", "start", "guard"]
    assert {row["share"] for row in verdicts(decisions).values()} == {share}
    assert spent(made.last.reached) == pytest.approx(budget)


def test_halving_keeps_the_better_half():
    told = verdicts((made := Made()).conduct("halving", 0.6))
    assert told["far"]["share"] == told["late"]["share"] < told["near"]["share"]
    assert spent(made.last.reached) <= 0.6


def test_where_the_guard_fails_the_study_runs_whole_and_says_why():
    made = Made(forecast=0.6)
    decisions = made.conduct(budget=0.5)
    (guard,) = [row for row in decisions if row["decision"] == "guard"]
    assert not guard["passed"] and guard["reason"] == "forecast 0.600, end 0.800: beyond 0.07"
    assert made.last.reached == dict.fromkeys(CELLS, 1.0)
    assert {row["share"] for row in verdicts(decisions).values()} == {1.0}
    assert made.asked[0] == {cell: 0.25 for cell in CELLS}


def test_without_a_guard_the_baseline_goes_along():
    made = Made(forecast=0.6)
    decisions = made.conduct("fixed", 0.4, guarded=False)
    assert made.launched[-1] == dict.fromkeys(CELLS, 0.4)
    assert not [row for row in decisions if row["decision"] == "guard"]


@pytest.mark.parametrize("policy", ["equal", "halving", "fixed"])
@pytest.mark.parametrize("forecast", [0.8, 0.6])
def test_killed_after_any_line_a_study_decides_the_same(policy, forecast):
    """As files hold them; forecasts of rounds that are over are not made again."""
    whole = Made(forecast).conduct(policy, 0.7)
    for k in range(len(whole)):
        known = [json.loads(json.dumps(row)) for row in whole[:k]]
        made = Made(forecast)
        assert made.conduct(policy, 0.7, known) == whole
    assert (made := Made(forecast)).conduct(policy, 0.7, whole) == whole and not made.asked


def test_what_cannot_be_conducted_is_one_line():
    with pytest.raises(InputError, match="budget=0.2: spent by the baseline alone; give"):
        Made().conduct(budget=0.2)
    for change, line in [
        ({"policy": "best"}, "policy=best: unknown; use equal"),
        ({"baseline": "x"}, "baseline=x: no such cell; use one of base, far"),
        ({"budget": 1.5}, r"budget=1.5: not in \(0, 1\]; give"),
        ({"cells": {"base": ["base-s0"]}}, "baseline=base: the only cell; sweep"),
    ]:
        with pytest.raises(InputError, match=line):
            Plan(**({"cells": CELLS, "baseline": "base"} | change))
