"""Diagnostics: each finding has its line and its remedy."""

import json

import numpy as np
import pytest

from tests.scaling.hand import hand_fit

SURE = [(0.6, 1.0, 1.5), (0.61, 1.0, 1.5), (0.6, 1.02, 1.5), (0.61, 1.02, 1.5)]
VAGUE = [(0.45, 1.0, 1.5), (0.95, 9.0, 1.5), (0.35, 0.5, 1.5), (0.99, 12.0, 1.5)]


def test_a_good_fit_has_no_problems():
    check = hand_fit({"one": SURE}).check()
    assert check.ok and str(check).endswith("no problems")
    assert check.sampler["ok"].all() and len(check.sampler) == 4
    row = check.runs.iloc[0]
    share = [(1 + (c / 4.0) ** b) ** -1 for _, c, b in SURE]
    assert row["seen_q50"] == pytest.approx(np.median(share)) and row["past_C_mid"] == 1.0


@pytest.mark.parametrize(
    ("attrs", "start"),
    [
        ({"rhat": 1.05}, "rhat=1.05: at most 1.01"),
        ({"ess": 120.0}, "ess=120: at least 400"),
        ({"divergences": 3}, "divergences=3: none"),
        ({"bfmi": 0.1}, "bfmi=0.1: above 0.3"),
        ({"method": "laplace"}, "method=laplace: a preview"),
        ({"departed": '{"one-s0": -7.0}'}, "run=one-s0: left its curve (z = -7.0)"),
    ],
)
def test_each_problem_says_what_and_what_to_do(attrs, start):
    check = hand_fit({"one": SURE}, **attrs).check()
    assert len(check.problems) == 1 and check.problems[0].startswith(start)
    assert ";" in check.problems[0]


def test_a_ceiling_that_the_prior_decides_is_named():
    fit = hand_fit({"sure": SURE, "vague": VAGUE})
    (problem,) = fit.check().problems
    assert (
        problem.startswith("prior_share>0.5") and "vague-s0" in problem and "sure-s0" not in problem
    )
    assert fit.status("run")[0] == "ok"
    assert fit.status("run")[1].startswith("ceiling not identified")


def test_as_json():
    found = json.loads(json.dumps(hand_fit({"one": SURE}, rhat=1.2).check().as_dict()))
    assert found["ok"] is False and found["runs"][0]["run"] == "one-s0"
    assert found["sampler"][0]["diagnostic"] == "rhat" and found["sampler"][0]["value"] == 1.2
