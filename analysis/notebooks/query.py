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
# # Questions to a posterior
#
# One study of RL runs, fitted on the first half of its compute, and every question that
# `rlx.scaling` answers about it. The variable `RLX_STUDY` names another study: a directory of
# runs, or any log that `Evals.read` takes. Without it, and without `runs/default`, the study is
# the two runs of Fig. 1a of arXiv 2510.13786, read off the plot.
#
# Open it with `jupytext --to ipynb analysis/notebooks/query.py`, or run it as a script.

# %%
# ruff: noqa: B018, F821
# %matplotlib inline

# %% tags=["parameters"]
import os
import tempfile
from pathlib import Path

import rlx
import rlx.scaling as sc
from rlx.scaling import plot

ROOT = Path(rlx.__file__).parents[1]
FIG_1A = ROOT / "tests" / "data" / "digitized_fig1a.csv"
STUDY = Path(os.environ.get("RLX_STUDY", ROOT / "runs" / "default"))
SHARE = 0.5  # of every run's compute that the fit may see

# %%
if STUDY.exists():
    evals = sc.Evals.read(STUDY)
else:
    evals = sc.Evals.read(FIG_1A, r0=0.40)  # the figure has no point at C = 0
r0 = "r0" if "r0" in evals.frame else None
widest = int(evals.frame.groupby("run").size().max())  # one compiled program for every window
seen = evals.until(share=SHARE)
evals

# %% [markdown]
# ## A preview, in seconds
#
# `method="laplace"` is a normal at the posterior's mode. The next cell compiles; the same shapes
# again take half a second. A fit is a file: what is loaded answers as what was fitted.

# %%
preview = sc.fit(seen, method="laplace", r0=r0, pad_to=widest)
with tempfile.TemporaryDirectory() as folder:
    preview.save(Path(folder) / "posterior.nc")
    fit = sc.load(Path(folder) / "posterior.nc")
assert fit.summary().equals(preview.summary())
fit

# %% [markdown]
# ### May I believe it?

# %%
print(fit.check())

# %% [markdown]
# ### Where does every recipe end, and how sure is that?
#
# `contraction` is 1 where the data said everything and 0 where the prior did; `gained` is the
# share of the gain that the last evaluation has seen.

# %%
fit.summary().query("param == 'A'")

# %%
plot.ceilings(fit)

# %% [markdown]
# ### What did half of the compute say about the other half?

# %%
plot.curves(fit, held_out=evals, horizon=4)

# %% [markdown]
# ### What will the next evaluations be?
#
# `curve` is the policy's pass rate, `predict` an evaluation of it, with wander and sampling noise.

# %%
last = seen.frame["compute"].max()
latent = fit.curve([2 * last, 4 * last])
latent.quantile([0.05, 0.5, 0.95], ("chain", "draw")).to_dataframe(name="pass rate")

# %%
noisy = fit.predict([1.1 * last, 2 * last])
noisy.quantile([0.05, 0.5, 0.95], ("chain", "draw")).to_dataframe(name="evaluation")

# %% [markdown]
# ### Is this recipe's ceiling higher than that one's?

# %%
fit.prob_best().to_series().sort_values(ascending=False)

# %%
best, other = fit.prob_best().to_series().sort_values(ascending=False).index[:2]
print(f"{best}  >  {other}")
fit.prob("A", best, ">", other, margin=0.02)

# %% [markdown]
# The same at a compute that somebody will pay for, where the data know more than at infinity:

# %%
fit.prob("curve", best, ">", other, at=2 * last)

# %% [markdown]
# ### What do the data leave open?
#
# Short runs know half of the gain better than the ceiling: A and C_mid trade off along a ridge.

# %%
C_mid = fit.param("C_mid").quantile([0.05, 0.5, 0.95], ("chain", "draw"))
print(C_mid.to_pandas())
plot.ridge(fit)

# %% [markdown]
# ### What does a pass rate cost?
#
# `budget` reaches the target with probability 0.9; inf where the ceiling may lie below it.

# %%
target = float(fit.param("A").median(("chain", "draw")).min()) * 0.95
fit.compute_to(target, prob=0.9)

# %% [markdown]
# ### What do I get for as much compute again, and who needs less?

# %%
fit.gain(extra=last)

# %%
fit.efficiency(best, other)

# %% [markdown]
# ### Which design choices raise the ceiling, and which only get there sooner?

# %%
axes = [axis for axis in ("recipe", *evals.axes) if evals.frame[axis].nunique() > 1]
effects = [fit.effects(axis) for axis in axes]
for table in effects:
    display(table)
plot.effects(effects)

# %% [markdown]
# ### Which runs go on, which stop, and is another seed worth its compute?

# %%
fit.allocate(budget=last)

# %% [markdown]
# ### How far beyond the data may I trust such forecasts?
#
# The study is fitted again on its early parts and scored on what came later.

# %%
backtest = sc.backtest(evals, curves=("burr",), r0=r0)
backtest.scores

# %%
print(f"trusted up to C = {backtest.trust('burr'):.3g} C_seen")
plot.calibration(backtest)

# %% [markdown]
# ## Before you bet on it
#
# The preview's intervals are too narrow where the posterior is skewed. NUTS draws from it, and its
# answers are refused where it has not converged.

# %%
nuts = sc.fit(seen, r0=r0, pad_to=widest)
print(nuts.check().sampler.to_string(index=False))
sure = nuts if nuts.converged else nuts.unsafe()
sure.summary().query("param == 'A'")

# %%
sure.prob("A", best, ">", other, margin=0.02)

# %% [markdown]
# ## A log from somewhere else
#
# Fig. 1a again, as a CSV file with one evaluation per row: which columns are what is inferred and
# printed. The paper fits the 8B run up to 50k GPU-hours and prints A = 0.645; the other points of
# the figure are later.

# %%
log = sc.Evals.read(FIG_1A, r0=0.40)
early = log.until(compute=50_000)
paper = sc.fit(early, method="laplace", r0="r0", pad_to=int(log.frame.groupby("run").size().max()))
paper.summary().query("param in ('A', 'C_mid', 'B_tail')")

# %%
plot.curves(paper, held_out=log, horizon=2)

# %%
later = log.after(compute=50_000).frame.query("run == '8B_dense'")
drawn = paper.predict(later["compute"]).sel(run="8B_dense")
low, high = drawn.quantile([0.05, 0.95], ("chain", "draw")).values
inside = (low <= later["value"]) & (later["value"] <= high)
print(f"{inside.sum()} of {len(later)} later evaluations inside their 90 % intervals")
