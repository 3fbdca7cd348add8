"""Pictures of a posterior, each a matplotlib Figure.

    from rlx.scaling import plot

    plot.curves(fit, held_out=evals).savefig("curves.png")   # points, bands, forecast
    plot.points(evals, fits, holdout=0.5)                    # the same by least squares, per run
    plot.ceilings(fit)                                       # recipes ranked by A
    plot.effects([fit.effects("loss")])                      # ceiling movers, efficiency shapers
    plot.ridge(fit)                                          # what the data leave open: A, C_mid
    plot.calibration(fit.backtest())                         # how well past forecasts did
    plot.power(sc.power())                                   # what a study would find

Intervals are equal-tailed; their style is in rlx.scaling.style. No figure uses pyplot or needs JAX.
"""

from rlx.scaling.plot.density import ridge
from rlx.scaling.plot.fitted import curves
from rlx.scaling.plot.forests import ceilings, effects
from rlx.scaling.plot.point_fits import points
from rlx.scaling.plot.records import calibration, jeffreys, power
from rlx.scaling.plot.shared import CEILING

__all__ = [
    "CEILING", "calibration", "ceilings", "curves", "effects", "jeffreys", "points", "power",
    "ridge",
]  # fmt: skip
