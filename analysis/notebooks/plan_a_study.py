# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Plan a study
#
# Two recipes may end 0.02 apart in pass rate, the error margin of arXiv 2510.13786. How many seeds
# does each need, and how far must they train, to tell which one is higher?
#
# `sc.simulate` makes studies whose truth is known. `sc.power` makes many, fits each, and counts the
# right verdicts.
#
# Open it with `jupytext --to ipynb analysis/notebooks/plan_a_study.py` (from the extra
# `dev`), or run it as a script, which prints its results but shows no figures.

# %%
# ruff: noqa: B018
# %matplotlib inline

# %% tags=["parameters"]
import numpy as np
from scipy.stats import norm

import rlx.scaling as sc
from rlx.scaling import plot

BASE = {"A": 0.65, "B": 1.5, "C_mid": 1.0, "R0": 0.25}  # what you expect; compute in units of C_mid
HORIZON = 10.0  # compute at which the pass rates are compared
APART = 0.02
SEEDS, SHARES = (2, 8), (0.25, 1.0)  # of each recipe; of the horizon that every run trains to
POINTS = 16  # evaluations of a run, of 4,000 samples each
STUDIES = 2  # of each design: enough for `expected`; to count verdicts use 20, in some minutes

# %% [markdown]
# ## One such study
#
# Two seeds each, trained to a quarter of the horizon. Seeds differ, policies wander around their
# curves, and evaluations have sampling noise.

# %%
rival = BASE | {"A": BASE["A"] + APART}
few = {"seeds": SEEDS[0], "points": POINTS, "compute": SHARES[0] * HORIZON}
evals, truth = sc.simulate({"base": BASE, "rival": rival}, **few, seed=1)
fit = sc.fit(evals, method="laplace")
evals

# %%
plot.curves(fit, horizon=1 / SHARES[0])

# %% [markdown]
# The interval of the difference at the horizon is many times as wide as the difference.

# %%
at_horizon = fit.curve(HORIZON)[..., 0]
low, high = (at_horizon.sel(recipe="rival") - at_horizon.sel(recipe="base")).quantile([0.05, 0.95])
true = float(np.diff(truth.at([HORIZON])[:, 0])[0])
print(f"rival - base: {low:.3f} to {high:.3f} (90 %); the truth is {true:.3f}")
assert low < true < high and high - low > 4 * APART

# %% [markdown]
# ## All designs
#
# A verdict is given where one direction has probability 0.9 (`margin_A=0`: any difference counts).
# `sd` is the posterior standard deviation of the difference, and `expected` the chance of the right
# verdict that follows from it, or of a wrong one if the recipes are equal. The true curves leave
# their family beyond the last evaluation, as real ones do, so a forecast has a doubt that no number
# of seeds removes. Read the lines of the figure: its points count the verdicts of only two studies.

# %%
table = sc.power(
    BASE,
    horizon=HORIZON,
    shares=SHARES,
    seeds=SEEDS,
    points=[POINTS],
    ceilings=[APART],
    ratios=None,
    margin_A=0.0,
    studies=STUDIES,
)
table[["seeds", "share", "compute", "difference", "sd", "expected", "right", "wrong"]].round(3)

# %%
plot.power(table)

# %% [markdown]
# ## What to buy
#
# For the same compute, train longer rather than add seeds: more seeds average out the differences
# between runs, which at a quarter of the horizon are the smaller part of the uncertainty.

# %%
found = table[table["difference"] == APART].set_index(["seeds", "share"])
sd, chance = found["sd"], found["expected"]
(few, many), (near, far) = SEEDS, SHARES
assert found.loc[(few, far), "compute"] == found.loc[(many, near), "compute"]
print(f"{few} seeds to the horizon:          {chance[few, far]:.2f}")
print(f"{many} seeds to {near:g} of the horizon:  {chance[many, near]:.2f}")
print(f"{many / few:g}x the seeds, sd: x {sd[many, near] / sd[few, near]:.2f} at {near:g} of the "
      f"horizon, x {sd[many, far] / sd[few, far]:.2f} there")  # fmt: skip
assert chance[few, far] > 1.5 * chance[many, near]
assert sd[many, near] / sd[few, near] > 0.85 and sd[many, far] / sd[few, far] < 0.7

# %% [markdown]
# At the horizon the sd falls with the square root of the number of seeds. The right verdict has a
# chance of 0.8 if the difference is z(0.9) + z(0.8) = 2.1 sds:

# %%
needed = many * (sd[many, far] * (norm.ppf(0.9) + norm.ppf(0.8)) / APART) ** 2
print(
    f"To tell {APART} apart with probability 0.8: about {needed:.0f} seeds of each recipe, trained "
    f"to the horizon, {2 * needed * HORIZON:.0f} C_mid in all."
)
assert many < needed < 2 * many

# %% [markdown]
# This answer has a price. A rule that accepts any direction at 0.9 also finds one in up to 2 of 10
# studies of equal recipes. With `margin_A=0.02`, the default, it hardly ever does, but then it also
# hardly ever finds a difference of 0.02.

# %%
null = table.query("difference == 0")
print(f"wrong verdicts on equal recipes, expected: {null['expected'].max():.2f} at most")
assert 0.1 < null["expected"].max() < 0.25
