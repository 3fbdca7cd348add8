"""Trust against what came: verdicts and their means by hand; exact ceilings."""

import numpy as np
import pandas as pd
import pytest

from experiments import ceilings, trust
from experiments.calibration import HORIZONS, simulate
from rlx.scaling.data import Evals


def row(cut, inside, group="own"):
    """Forecasts from `cut` of three runs of one unit of compute, an evaluation at each tenth."""
    points = [
        {"run": f"r{r}", "recipe": "one", "compute": C, "horizon": C / cut, "band": 1.5}
        | {"inside": C in inside}
        for r in range(3)
        for C in np.round(np.arange(0.1, 1.01, 0.1), 1)
        if cut < C <= 1.5 * cut
    ]
    last = {f"r{r}": 1.0 for r in range(3)}
    return {"set": "a", "group": group, "cut": cut, "last": last} | {
        "points": pd.DataFrame(points).to_dict("list")
    }


def test_the_past_of_a_share_ends_there_and_what_came_does_not_judge():
    rows = [row(0.25, {0.3}), row(0.35, {0.4}), row(0.5, {0.6}), row(0.7, set())]
    table = trust.verdicts(rows).set_index("share")
    assert list(table.index) == [0.35, 0.5, 0.7]  # nothing was forecast before the first
    one, two, all_seen = table.loc[0.35], table.loc[0.5], table.loc[0.7]
    assert (one["forecasts"], one["coverage"], one["later"]) == (3, 1, 0.5)
    assert one["verdict"] == "trusted"
    assert two["coverage"] == pytest.approx((1 + 0.5) / 2)  # from 0.25 and 0.35, each up to 0.5
    assert (two["verdict"], two["later"]) == ("not trusted", 0.5)
    assert all_seen["coverage"] == pytest.approx((1 + 0.5 + 0.5) / 3) and all_seen["later"] == 0


def test_means_of_what_came_by_verdict():
    table = trust.verdicts([row(0.25, {0.3}), row(0.35, {0.4}), row(0.5, {0.6})])
    means = trust.summary(table).set_index(["horizon", "verdict"])
    of_all = means.loc[("all", "trusted")]
    assert (of_all["sets"], of_all["cases"], of_all["later"], of_all["low"]) == (
        "measured", 1, 0.5, 1,
    )  # fmt: skip


def test_a_simulated_study_goes_on_beyond_its_end():
    evals, truth = simulate("well", 0, "small")
    later = trust.after_all(evals, truth).frame
    first = later[later["run"] == truth.runs[0]]
    assert first["compute"].tolist() == pytest.approx((HORIZONS * truth.C_max).tolist())
    assert first["value"].tolist() == truth.fresh_RH[0].tolist()


def test_the_best_policy_of_hard_mix_guesses_where_it_must():
    frame = pd.DataFrame({"run": "a", "compute": np.arange(4.0), "value": 0.5, "truth": 0.48})
    evals = Evals.from_frame(frame)
    assert ceilings.exact("hard_mix 0.001", evals)["a"] == pytest.approx(0.48 + 0.25 * 0.52)
    assert ceilings.exact("default", evals)["a"] == 0.48
