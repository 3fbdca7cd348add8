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
# # Read a study
#
# One study of RL runs, fitted on the first half of its compute, and every question that
# `rlx.scaling` answers about it. It is the default study of this repository, from its committed
# evaluations: CISPO and PPO-clip (`ablation` none and dapo_loss), answers of 9 and 11 tokens, two
# seeds each. The task is so small that the exact ceilings are known.
#
# For a study of your own, set `STUDY` to its directory, or to any log that `Evals.read` takes. The
# assertions are about this one.
#
# Open it with `jupytext --to ipynb analysis/notebooks/read_a_study.py` (from the extra
# `dev`), or run it as a script, which prints its results but shows no figures.

# %%
# ruff: noqa: B018
# %matplotlib inline

# %% tags=["parameters"]
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

import rlx
import rlx.scaling as sc
from rlx.scaling import plot

STUDY = Path(rlx.__file__).parents[1] / "analysis" / "results" / "default" / "evals.csv"
AXES = ["ablation", "rollout.max_new_tokens"]  # a directory of runs records its axes
SHARE = 0.5  # of every run's compute that the fit sees
NUTS = False  # True: also run the last part, which takes a minute

# %%
evals = sc.Evals.read(STUDY, axes=AXES)
widest = int(evals.frame.groupby("run").size().max())  # one compiled program for every window
seen = evals.until(share=SHARE)
last = seen.frame["compute"].max()
evals

# %% [markdown]
# ## A preview, in seconds
#
# `method="laplace"` is a normal at the posterior's mode. The next cell compiles; another fit of the
# same shapes takes half a second. A fit can be saved, and a loaded fit gives the same answers.

# %%
preview = sc.fit(seen, method="laplace", pad_to=widest)
with tempfile.TemporaryDirectory() as folder:
    preview.save(Path(folder) / "posterior.nc")
    fit = sc.load(Path(folder) / "posterior.nc")
assert fit.summary().equals(preview.summary())
fit

# %% [markdown]
# ### Can I believe it?

# %%
print(fit.check())

# %% [markdown]
# It names two problems: the method is only a preview, and one recipe ends a little (0.009) above
# its curve.

# %%
assert not fit.departed and len(fit.check().problems) == 2

# %% [markdown]
# ### Where does every recipe end, and how sure is that?
#
# A is the pass rate at 10 times the compute seen. `contraction` is 1 if all that is known comes
# from the data, and 0 if it comes from the prior; `gained` is the share of the whole gain reached
# at the last evaluation.

# %%
ceilings = fit.summary().query("param == 'A'").set_index("name")
ceilings[["q05", "q50", "q95", "contraction", "gained", "status"]].round(3)

# %%
plot.ceilings(fit)

# %% [markdown]
# All four exact ceilings lie inside their intervals. That of PPO-clip at 9 tokens is the least
# certain: these runs learn latest and have made the smallest share of their gain.

# %%
exact = evals.frame.groupby(AXES)["truth"].first()
for (ablation, tokens), truth in exact.items():
    row = ceilings.loc[f"cispo, ablation={ablation}, rollout.max_new_tokens={tokens}"]
    assert row["q05"] <= truth <= row["q95"] + 1e-3
assert ceilings["contraction"].idxmin() == ceilings["gained"].idxmin()

# %% [markdown]
# ### What did half of the compute say about the other half?

# %%
plot.curves(fit, held_out=evals, horizon=2)

# %%
inside = fit.score(evals.after(share=SHARE))["inside"]
print(f"{inside.sum()} of {len(inside)} later evaluations inside their 90 % intervals")

# %% [markdown]
# More than 90 %: these curves continue as they began, so the doubt beyond the data was not needed.

# %%
assert inside.mean() > 0.95

# %% [markdown]
# ### What will the next evaluations be?
#
# `curve` is the policy's pass rate, `predict` an evaluation of it, with wander and sampling noise.

# %%
ends = [0.05, 0.5, 0.95]
curve = fit.curve([2 * last, 4 * last]).quantile(ends, ("chain", "draw"))
curve.to_series().unstack("quantile").round(3)

# %%
evaluation = fit.predict(2 * last).quantile(ends, ("chain", "draw"))
evaluation.to_series().unstack("quantile").round(3)

# %% [markdown]
# ### Is this recipe's ceiling higher than that one's?

# %%
p_best = fit.prob_best().to_series().sort_values(ascending=False)
best, other, *rest = p_best.index
p_best

# %%
print(f"{best}  >  {other}, by more than 0.02")
fit.prob("A", best, ">", other, margin=0.02)

# %% [markdown]
# Undecided, which is right: at 11 tokens both exact ceilings are 1. The recipes at 9 tokens are far
# below.
#
# The same question at a smaller compute, about which the data say more:

# %%
assert 0.1 < p_best[other] <= p_best[best] < 0.9 and p_best[rest].max() < 0.01
fit.prob("curve", best, ">", other, at=2 * last)

# %% [markdown]
# ### What do the data leave open?
#
# The limit of a curve is never observed. Early on only a combination of it and C_mid is known: a
# higher limit with a later C_mid fits equally well, along a ridge. This is the fit of the first
# eighth; by half of the compute nothing is left of the ridge.

# %%
early = sc.fit(evals.until(share=SHARE / 4), method="laplace", pad_to=widest)
plot.ridge(early)


# %%
def correlation(fit, recipe):
    limit, C_mid = (fit.param(name).sel(recipe=recipe) for name in ("asymptote", "C_mid"))
    return float(xr.corr(limit, np.log(C_mid)))


table = {r: [correlation(f, r) for f in (early, fit)] for r in fit.recipes}
pd.DataFrame(table, index=["an eighth", "half"]).T.round(2)

# %% [markdown]
# ### What does a pass rate cost?
#
# `budget` reaches the target with probability 0.9; it is inf where the ceiling may be lower.

# %%
fit.compute_to(0.55, prob=0.9)

# %% [markdown]
# ### Which recipe needs less compute for the same pass rate?
#
# At 11 tokens PPO-clip needs about twice CISPO's compute.

# %%
clip, cispo = (f"cispo, ablation={x}, rollout.max_new_tokens=11" for x in ("dapo_loss", "none"))
ratio = fit.efficiency(clip, cispo)
assert 1.7 < ratio["q05"] < ratio["q95"] < 2.4 and ratio["prob_cheaper"] < 0.01
ratio

# %% [markdown]
# ### Which design choices raise the ceiling, and which only reach it sooner?

# %%
effects = [fit.effects(axis) for axis in evals.axes]
for table in effects:
    print(table[["level", "reference", "dA_q05", "dA_q95", "p_ceiling", "verdict"]].to_string())
plot.effects(effects)

# %% [markdown]
# The loss changes efficiency; the length of answers changes the ceiling.

# %%
assert [table["verdict"].item() for table in effects] == ["efficiency shaper", "ceiling mover"]

# %% [markdown]
# ### What do I gain from as much compute again?

# %%
fit.gain(extra=last)[["name", "extra", "mean", "q05", "q95", "extrapolation"]]

# %% [markdown]
# ### Which runs go on, which stop, and is another seed worth its compute?
#
# The choice is between recipes, and the budget is the compute of one run. All runs at 9 tokens
# stop: nothing that they could still show would change the choice.

# %%
plan = fit.allocate(budget=last)
assert (plan[plan["name"].str.contains("9")]["compute"] == 0).all()
plan[["kind", "name", "action", "compute", "p_best", "value"]]

# %% [markdown]
# ### How far beyond the data can I trust such forecasts?
#
# The study is fitted again on its early parts and scored on what came later.

# %%
backtest = sc.backtest(evals, curves=("burr",))
print(backtest.says())
backtest.scores

# %%
plot.calibration(backtest)

# %%
assert backtest.trust() > 10  # the questions above went to 4 and, for ceilings, to 10

# %% [markdown]
# ## Before you decide
#
# The preview's intervals are too narrow where the posterior is skewed. NUTS draws from the
# posterior itself, and its fit refuses to answer if it has not converged.

# %%
if NUTS:
    nuts = sc.fit(seen, pad_to=widest)
    print(nuts.check().sampler.to_string(index=False))
    sure = nuts if nuts.converged else nuts.unsafe()
    print(sure.summary().query("param == 'A'")[["name", "q05", "q50", "q95"]])
    print(sure.prob("A", best, ">", other, margin=0.02))
