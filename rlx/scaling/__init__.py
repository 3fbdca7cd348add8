"""Scaling curves of RL runs: read, fit, forecast, decide. See docs/posterior.md.

import rlx.scaling as sc
evals = sc.Evals.read("runs/default")
fit = sc.fit(evals)

Modules, each importing only those above it:

    source, files, columns, runs, readers, data      any source of evaluations -> `Evals`
    priors, families, curve, kalman, doubt           priors, families of curves, wander, doubt
    point, profile, paper, robust, run_fits          least squares of one run, without a posterior
    model, coordinates, bayes, departure, arrays     the model in JAX and its sampler
    infer                                            `Evals` -> a posterior as an xarray.DataTree
    draws                                            `Draws`: that tree as named arrays
    fate, paths, parameters                          the pass rate at any compute; A, B, C_mid
    forecast, compare, effects, worth, allocate      questions, each a function of `Draws`
    residuals, check, stopping, backtest             model checks; early stopping; trust
    saved, posterior                                 the file; `ScalingFit`, questions as methods
    simulate, power                                  simulated studies; power analysis
    style                                            colours and layout of figures
    plot.shared, plot.fitted, plot.point_fits        figures: curves, point fits,
    plot.density, plot.forests, plot.records         the ridge, forests, records of forecasts
    recorded, page, point_page                       a study as one HTML file

A family of curves is a class in `families`. A question is a function of `Draws` in its own module,
bound in `posterior`; it gets pass rates, computes and ceilings from `paths`, where discrepancies of
the curves are added, once for all. A reader is a function of `readers`.

Letters of dimensions, as in rlx.types:

    X draws       R runs     J recipes  N runs or recipes    S starts   P pairs of recipes
    M evaluations of a run   T new evaluations               C computes E effects (design columns)
    Q parameters of a curve  D coordinates of the sampler    H chains   F features of evaluations
    K curves fitted at once by least squares    G shapes of its grid    L starts of its search
"""

from rlx.errors import InputError
from rlx.scaling.backtest import Backtest, backtest
from rlx.scaling.check import Check
from rlx.scaling.data import Evals
from rlx.scaling.draws import NotConverged
from rlx.scaling.infer import evidence
from rlx.scaling.page import report_page
from rlx.scaling.paper import fit_paper
from rlx.scaling.point import PointFit, fit_point
from rlx.scaling.posterior import ScalingFit, fit, load
from rlx.scaling.power import power
from rlx.scaling.priors import Priors
from rlx.scaling.run_fits import fit_study
from rlx.scaling.simulate import simulate

DataError = InputError  # its name in earlier versions

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
    "evidence",
    "fit",
    "fit_paper",
    "fit_point",
    "fit_study",
    "load",
    "power",
    "report_page",
    "simulate",
]
