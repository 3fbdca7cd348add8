"""`ScalingFit`: the posterior of a study, and the questions it answers.

    fit = sc.fit(evals)                          # NUTS; method="laplace" for a preview
    print(fit.check())                           # is it reliable?
    fit.summary()                                # A, C_mid, B of every recipe, with intervals
    fit.predict(2e4)                             # the next evaluations
    fit.prob("A", "cispo", ">", "dapo")          # which ceiling is higher
    fit.save("posterior.nc"); sc.load("posterior.nc")

Each question is a function of the draws (`rlx.scaling.draws`) in its own module, and a method here.
Draws keep their (chain, draw) dimensions; tables have one row per recipe or run with equal-tailed
intervals. Where an answer extrapolates, `extrapolation` is the compute in question over the last
fitted compute; where the prior matters, `prior_share` is posterior sd over prior sd (1: the data
say nothing).
"""

from __future__ import annotations

import inspect
from pathlib import Path

import pandas as pd

from rlx.errors import InputError
from rlx.scaling import allocate, check, compare, effects, forecast, parameters, saved
from rlx.scaling.backtest import backtest_of, check_unit, score, trust_of
from rlx.scaling.data import Evals
from rlx.scaling.draws import Draws
from rlx.scaling.infer import posterior_of


class ScalingFit(Draws):
    """A posterior over scaling curves. unsafe: answer even if the sampler did not converge."""

    check = check.check

    param = parameters.param
    summary = parameters.summary
    status = parameters.status
    prior_share = parameters.prior_share

    curve = forecast.curve
    predict = forecast.predict
    predictive = forecast.predictive
    gain = forecast.gain

    prob = compare.prob
    prob_best = compare.prob_best
    compute_to = compare.compute_to
    efficiency = compare.efficiency

    effects = effects.effects
    allocate = allocate.allocate

    score = score
    backtest = backtest_of
    trust = trust_of

    def update(self, data: Evals, **options) -> ScalingFit:
        """The fit of more data with the same options.

        data: all evaluations, those of this fit too, and maybe more runs. Raises InputError if it
        lacks any, or counts compute in another unit.
        """
        if isinstance(data, Evals):  # else `fit` says what it needs
            _check_extends(self.evals, data)
        return self.refit(data, **options)

    def refit(self, data: Evals, **options) -> ScalingFit:
        """The fit of other data with the same options."""
        same = self.options | {name: self.attrs[name] for name in ("method", "seed")}
        return fit(data, **(same | options))

    def save(self, path: Path | str) -> None:
        """Write the fit as one netCDF file, with a checksum for `load`."""
        saved.write(self.tree, path)


def _check_extends(fitted: Evals, data: Evals) -> None:
    """Raises InputError unless `data` has all evaluations that were fitted, in their unit."""
    check_unit(fitted, data)
    last = fitted.frame.groupby("run")["compute"].max()
    begins = data.frame.groupby("run")["compute"].min()
    remedy = "give the earlier ones too"
    if len(later := begins.index[begins > last.reindex(begins.index)]):
        raise InputError("run", later[0], "only evaluations after those of the fit", remedy)
    if len(gone := [run for run in fitted.runs if run not in data.runs]):
        raise InputError("run", gone[0], "not among the evaluations", "give all runs of the fit")
    keys = ["run", "compute"]
    there = pd.MultiIndex.from_frame(data.frame[keys])
    lost = fitted.frame[~pd.MultiIndex.from_frame(fitted.frame[keys]).isin(there)]
    if len(lost):
        reason = f"lacks the fitted evaluation at C = {lost['compute'].iloc[0]:g}"
        raise InputError("run", lost["run"].iloc[0], reason, remedy)


def load(path: Path | str) -> ScalingFit:
    """A fit written by `ScalingFit.save`.

    Raises:
        InputError: no such file; not a netCDF file; not a fit; or damaged.
    """
    return ScalingFit(saved.read(path))


def fit(data: Evals, **options) -> ScalingFit:
    return ScalingFit(posterior_of(data, **options))


fit.__doc__ = posterior_of.__doc__
vars(fit)["__signature__"] = inspect.signature(posterior_of).replace(return_annotation=ScalingFit)
