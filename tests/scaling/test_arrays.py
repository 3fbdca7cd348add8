"""Evaluations as arrays: what cannot be fitted is refused."""

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
