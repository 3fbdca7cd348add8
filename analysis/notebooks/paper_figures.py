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
# # The paper's figures
#
# What "The Art of Scaling Reinforcement Learning Compute for LLMs" (arXiv 2510.13786, CC BY 4.0)
# shows, without a run: from its printed parameters, from the points of its Fig. 1a, read off the
# plot by a third party, and from evaluations of models of 100,000 parameters that are committed
# here. Of those last only the order can be compared with the paper.
#
# Open it with `jupytext --to ipynb analysis/notebooks/paper_figures.py`, or run it as a script.

# %%
# ruff: noqa: B018
# %matplotlib inline

# %% tags=["parameters"]
import pandas as pd

import rlx.scaling as sc
from analysis import paper, studies
from rlx.scaling import plot

EVALS = paper.ROOT / "analysis" / "results" / "studies" / "evals"
ALL = False  # True: every figure that needs runs, by NUTS, in some minutes

# %% [markdown]
# ## Fig. 3: what A, B, C_mid and R0 mean

# %%
paper.draw_3()

# %% [markdown]
# ## Figs. 12 and 13: what moves the ceiling, and what only the compute at which it is reached
#
# A slow run with a higher ceiling wins in the end. How late that is depends on all parameters.

# %%
paper.draw_12()

# %%
paper.draw_13()

# %%
print(f"the slow run overtakes at {paper.overtaking():,.0f} GPU-hours")

# %% [markdown]
# ## Table 1, as curves: figs. 9a, 10a, 11 and 17a

# %%
paper.draw_table1()

# %% [markdown]
# ## A.7: does the fit depend on the window?
#
# The paper fits the 8B run of Fig. 1a on four windows. Least squares on the points read off the
# plot gives the ceilings that it prints, within 0.01, if R0 is 0.40. R0 is not printed.

# %%
windows = paper.fit_windows()
ours = windows[windows["R0"] == 0.40]
assert ((ours["A"] - ours["A_published"]).abs() < 0.01).all()
ours[["from", "to", "A", "A_lo", "A_hi", "A_published", "B", "B_published"]].round(3)

# %%
paper.draw_fit_windows(windows)

# %% [markdown]
# ## A.4: a power law instead of a sigmoid
#
# From the first 50,000 GPU-hours a power law forecasts the rest worse than a sigmoid, from both
# windows.

# %%
curves = paper.power_vs_sigmoid()
error = curves.pivot(index="from", columns="curve", values="rmse_after_50k")
assert (error["power law"] > error["sigmoid"]).all()
error.round(4)

# %%
paper.draw_power_vs_sigmoid(curves)

# %% [markdown]
# ## Fig. 1a: the forecast from half of the compute
#
# The same points with one posterior for both runs. The paper fits the 8B run up to 50,000 GPU-hours
# and prints A = 0.645. The limit of our curve is lower and less sure, and later evaluations of both
# runs lie in the band.

# %%
both = sc.Evals.read(paper.DATA / "digitized_fig1a.csv", r0=0.40)
fit = sc.fit(both.until(share=0.5), method="laplace", r0="r0")
fit.summary().query("param in ('A', 'asymptote', 'C_mid')")[["name", "param", "q05", "q50", "q95"]]

# %%
plot.curves(fit, held_out=both, horizon=2)

# %% [markdown]
# ## Fig. 2 on a small model: five recipes
#
# The evaluations of 15 runs, fitted as a preview.

# %%
recipes = sc.fit(studies.read_table(EVALS / "recipes.csv", "compute"), method="laplace")
studies.draw(studies.FIGURES["2"], recipes)

# %%
effects = recipes.effects("recipe", reference="scalerl")
effects[["level", "dA_q05", "dA_q95", "compute_ratio_q05", "compute_ratio_q95", "verdict"]].round(3)

# %% [markdown]
# ## All others
#
# The same figures of the leave-one-outs, the losses and what moves the ceiling come from
# `python -m analysis.studies fig=all runs=analysis/results/studies/evals`. What became of the
# paper's claims is committed:

# %%
if ALL:
    studies.main(["fig=all", f"runs={EVALS}", "out=outputs/figures"])
verdicts = pd.read_csv(EVALS.parent / "verdicts.csv")
verdicts[["claim", "figure", "probability", "verdict"]]

# %%
verdicts["verdict"].value_counts()
