"""Scaling curves of RL runs: read them, fit them, forecast, decide. See README.

import rlx.scaling as sc

evals = sc.Evals.read("runs/default")
fit = sc.fit(evals)
"""

from rlx.errors import InputError
from rlx.scaling.backtest import Backtest, backtest
from rlx.scaling.check import Check
from rlx.scaling.data import Evals
from rlx.scaling.infer import fit
from rlx.scaling.point import PointFit, fit_paper, fit_point, fit_study
from rlx.scaling.posterior import NotConverged, ScalingFit, load
from rlx.scaling.priors import Priors

DataError = InputError  # the name that notebooks of earlier versions import

__all__ = [
    "Backtest",
    "Check",
    "DataError",
    "Evals",
    "InputError",
    "NotConverged",
    "PointFit",
    "Priors",
    "ScalingFit",
    "backtest",
    "fit",
    "fit_paper",
    "fit_point",
    "fit_study",
    "load",
]
