"""`ScalingFit`: the posterior of a study, and the questions it answers.

    fit = sc.fit(evals)                          # NUTS; method="laplace" for a preview
    print(fit.check())                           # may I believe it?
    fit.summary()                                # A, C_mid, B of every recipe, with intervals
    fit.predict(2e4)                             # the next evaluations
    fit.prob("A", "cispo", ">", "dapo")          # which ceiling is higher
    fit.save("posterior.nc"); sc.load("posterior.nc")

Each question is a function over the draws (`rlx.scaling.draws`) in a module of its own, and a
method here. Draws keep their (chain, draw) dimensions; tables have one row per recipe or run with
equal-tailed intervals. Two columns go with every answer: `extrapolation`, the compute asked about
over the last fitted compute, and `prior_share`, posterior sd over prior sd (1: the data said
nothing).
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path

from rlx.scaling import allocate, check, compare, effects, forecast, parameters, saved
from rlx.scaling.backtest import backtest_of, score, trust_of
from rlx.scaling.data import Evals
from rlx.scaling.draws import Draws
from rlx.scaling.infer import posterior_of


class ScalingFit(Draws):
    """A posterior over scaling curves. `unsafe` answers even when the sampler did not converge."""

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
        """The fit of more data with the same choices."""
        a = self.attrs
        axes = json.loads(a["axes"])
        same = {name: a[name] for name in ("curve", "noise", "method", "seed")}
        same |= {"axes": None if axes is None else tuple(axes), "r0": json.loads(a["r0"])}
        return fit(data, **(same | {"priors": self.priors} | options))

    def save(self, path: Path | str) -> None:
        """Write the fit as one netCDF file, with the checksum that `load` compares."""
        saved.write(self.tree, path)


def load(path: Path | str) -> ScalingFit:
    """A fit that `ScalingFit.save` wrote.

    Raises:
        InputError: no such file; not a netCDF file; of something else; or damaged.
    """
    return ScalingFit(saved.read(path))


def fit(data: Evals, **options) -> ScalingFit:
    return ScalingFit(posterior_of(data, **options))


fit.__doc__ = posterior_of.__doc__
vars(fit)["__signature__"] = inspect.signature(posterior_of).replace(return_annotation=ScalingFit)
