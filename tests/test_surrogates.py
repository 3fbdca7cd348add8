"""Verdicts on surrogates, and a teacher's figure, from evaluations made by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta

from analysis import distill, surrogates
from rlx.errors import InputError


def test_the_share_that_stands_is_compared_exactly():
    """P(Beta(4, 1) > Beta(1, 4)) by quadrature."""
    x = np.linspace(0, 1, 20001)
    exact = np.trapezoid(beta.pdf(x, 4, 1) * beta.cdf(x, 1, 4), x)
    assert surrogates.above(3, 3, 0, 3) == pytest.approx(exact, abs=0.002)
    assert surrogates.above(1, 2, 1, 2) == pytest.approx(0.5, abs=0.002)


def test_verdicts_by_hand():
    table = pd.DataFrame(
        {
            "ablation": ["none"] * 3 + ["sapo"] * 3,
            "level": ["guess all"] * 3 + ["tell apart", "work out all", "guess all"],
            "end": [0.2, 0.25, 0.3, 0.6, 0.5, 0.25],
        }
    )
    said = surrogates.verdicts(table).set_index("surrogate")
    assert said["stood"].to_dict() == {"CISPO, cap 5": 0, "SAPO": 2}
    assert said.loc["SAPO", "end_mean"] == pytest.approx(0.45)
    p = said["p_stands_more_often_than_cispo"]
    assert np.isnan(p["CISPO, cap 5"]) and p["SAPO"] == pytest.approx(surrogates.above(2, 3, 0, 3))


def test_when_a_student_has_got_there():
    """The first evaluation from which KEPT in a row are at the target."""
    rates = {"none": [0.1, 0.35, 0.2, 0.28, 0.2], "teacher_alone": [0.1, 0.2, 0.32, 0.4, 0.45]}
    rows = [
        {"ablation": name, "seed": 0, "compute": 1e9 * i, "value": x, "teacher_flops": 1e12}
        for name, values in rates.items()
        for i, x in enumerate(values)
    ]
    table = distill.reached(pd.DataFrame(rows)).set_index("ablation")
    assert table.loc["teacher_alone", "compute"] == 2e9 and np.isnan(table.loc["none", "compute"])
    assert table["last"].round(2).to_dict() == {"none": 0.23, "teacher_alone": 0.39}


@pytest.mark.parametrize("script", [surrogates, distill])
def test_a_study_that_is_not_there_is_one_line(script, tmp_path):
    with pytest.raises(InputError, match="nothing there; python -m experiments.study sweep="):
        script.main([f"study={tmp_path}/none"])
