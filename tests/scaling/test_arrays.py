"""Evaluations as arrays: what cannot be fitted is refused, and what is assumed of R0."""

import numpy as np
import pandas as pd
import pytest

import rlx.scaling as sc
from rlx.scaling.arrays import assemble


@pytest.mark.parametrize("first", [10_000.0, 1.7627e9])
def test_compute_that_starts_near_its_end_is_refused(first):
    value = [0.1, 0.18, 0.27, 0.34, 0.4, 0.44]
    frame = pd.DataFrame(
        {"run": "a", "compute": [first + 10 * i for i in range(6)], "value": value}
    )
    evals = sc.Evals.from_frame(frame)
    with pytest.raises(
        sc.InputError, match=r"compute=\d+: starts at (0.995|1) of its end; subtract"
    ):
        assemble(evals, priors=sc.Priors())
    frame["compute"] -= first
    assert assemble(sc.Evals.from_frame(frame), priors=sc.Priors())[1].C_ref == 30.0


def start_of(first, later):
    """Mean and sd of logit R0 and the weight of the fitted noise, of one start whose runs have the
    (value, error) `first` at C = 0 and the error `later` from then on."""
    rows = [
        {
            "run": f"r{r}",
            "compute": C,
            "value": value + C / 100,
            "stderr": error if C == 0 else later,
        }
        for r, (value, error) in enumerate(first)
        for C in (0.0, 10.0, 20.0, 30.0)
    ]
    frame = pd.DataFrame(rows).assign(start="base")
    evals = sc.Evals.from_frame(frame, stderr="stderr", start="start", scale="fraction")
    study, _, _ = assemble(evals, priors=sc.Priors())
    return study.start_mean_S[0], study.start_sd_S[0], study.start_noise_S[0]


def test_an_evaluation_at_the_start_has_its_own_error_or_the_fitted_one():
    nan, slope = np.nan, 0.2 * 0.8
    own = (np.log(0.2 / 0.8), 0.03 / slope, 0.0)
    assert start_of([(0.2, 0.03)], 0.02) == pytest.approx(own)
    assert start_of([(0.2, 0.03)], nan) == pytest.approx(own)
    assert start_of([(0.2, nan)], nan) == pytest.approx((own[0], 0.0, 1.0))
    assert start_of([(0.1, nan), (0.3, nan)], nan) == pytest.approx((own[0], 0.0, 2**-0.5))
    assert start_of([(0.2, 0.03), (0.4, nan)], nan) == pytest.approx(own)  # the known one counts
    assert start_of([(0.2, nan)], 0.02) == pytest.approx((own[0], 0.01 / slope, 0.0))


def test_the_later_the_first_evaluation_the_lower_R0_may_be():
    def prior(first):
        compute = np.linspace(first, 20.0, 6)
        frame = pd.DataFrame({"run": "a", "compute": compute, "value": np.linspace(0.3, 0.5, 6)})
        study, _, _ = assemble(sc.Evals.from_frame(frame, trials=1000), priors=sc.Priors())
        return study.start_mean_S[0] - np.log(0.3 / 0.7), study.start_sd_S[0]

    assert prior(0.2) == prior(1.0) == (pytest.approx(-0.2), 0.5)
    (mean, sd), (later_mean, later_sd) = prior(4.0), prior(10.0)
    assert (mean, sd) == pytest.approx((-0.2 - 1.5, np.hypot(0.5, 1.5)))
    assert later_mean < mean and later_sd > sd
