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
# # From a CSV to a decision
#
# Four runs of somebody else's trainer, exported from a Weights & Biases chart: four settings of
# Deep-GRPO with Qwen2.5-0.5B-Instruct, pass rate on GSM8K against seconds of training
# (github.com/befocuss/Deep-GRPO, Apache-2.0; one evaluation in ten).
#
# All four have trained for 40,000 s (11 hours). Each could go on to 150,000 s. Which of them
# should? The file also holds what happened next, which we look at in the end.
#
# Open it with `jupytext --to ipynb analysis/notebooks/csv_to_decision.py` (from the extra
# `dev`), or run it as a script, which prints its results but shows no figures.

# %%
# ruff: noqa: B018
# %matplotlib inline

# %% tags=["parameters"]
from pathlib import Path

import rlx
import rlx.scaling as sc
from rlx.scaling import plot

CSV = Path(rlx.__file__).parents[1] / "tests" / "data" / "deep_grpo.csv"
NOW, END = 40_000, 150_000  # seconds of training
METHOD = "laplace"  # a preview, in seconds; use "nuts" for a real decision

# %% [markdown]
# ## Read
#
# `Evals.read` infers what it safely can, and prints it. Asking for something that is not there is
# an error that names what is.

# %%
for wrong in ({"value": "accuracy"}, {"compute": "gpu_hours"}, {"recipe": "algo"}):
    try:
        sc.Evals.read(CSV, **wrong)
    except sc.InputError as error:
        print(error)

# %%
evals = sc.Evals.read(CSV)
evals = evals.rename(dict(zip(evals.runs, ["p2-b4", "p1-b4", "p1-b8-all", "p1-b8"], strict=True)))
evals

# %% [markdown]
# All four began with the same model, so they share R0, the pass rate at C = 0. Their first
# evaluations, after about 100 s, were made before the first update: we take their mean as R0.

# %%
R0 = evals.until(compute=1000).frame["value"].mean()
seen = evals.until(compute=NOW)
print(f"R0 = {R0:.3f}; by now {seen!r}")

# %% [markdown]
# ## Fit, and check
#
# One hierarchical model of all four runs, each with a curve of its own.

# %%
fit = sc.fit(seen, method=METHOD, r0=R0)
check = fit.check()
print(check)

# %% [markdown]
# No run has left its curve. But only about three quarters of the gain have been seen, and about
# half of what the fit knows about a limit comes from the prior, so it is too early to ask which run
# is best in the limit. We ask about 150,000 s.

# %%
assert not fit.departed and check.runs["seen_q50"].between(0.7, 0.85).all()
assert (check.runs["prior_share"] > 0.4).all()

# %% [markdown]
# ## Trust
#
# Can we forecast to 3.75 times the compute? The study is fitted again on its early evaluations, and
# scored on those that came later.

# %%
trust = fit.trust()
assert trust > END / NOW

# %% [markdown]
# ## Forecast
#
# The dark band is the curve, the pale one the next evaluations of the run.

# %%
plot.curves(fit, horizon=END / NOW)

# %%
at_end = fit.curve(END, by="run")[..., 0]
at_end.quantile([0.05, 0.5, 0.95], ("chain", "draw")).to_pandas().T.round(3)

# %% [markdown]
# ## Which run to stop?
#
# The intervals overlap, but much of their width is common to all runs: the lowest run is the best
# in few draws.

# %%
p_best = fit.prob_best(at=END, by="run").to_series().sort_values(ascending=False)
print(p_best.round(2).to_string())
best, worst = p_best.index[[0, -1]]

# %% [markdown]
# ## What does the next budget buy?
#
# First, what each run gains from the compute that is left to it. Then a plan for twice that budget:
# which runs to continue, and which settings get another seed, before one run is chosen to go on to
# the end. `value` is what the new evaluations are worth for that choice, in pass rate.

# %%
fit.gain(extra=END - NOW)[["name", "mean", "q05", "q95", "extrapolation"]].round(3)

# %%
plan = fit.allocate(budget=2 * (END - NOW), objective="best_final", horizon=END)
print(f"the plan is worth {plan.attrs['value']:.3f}")
plan[["kind", "name", "action", "compute", "p_best", "payoff", "value"]].round(4)

# %% [markdown]
# ## The decision, in words

# %%
chosen = plan.query("kind == 'run'").set_index("name")["action"]
go_on = " and ".join(chosen.index[chosen == "continue"])
ahead = fit.prob("curve", best, ">", worst, at=END, by="run")
loss = float((at_end.max("run") - at_end.sel(run=best)).mean())
print(
    f"Stop {worst}: it ends highest with probability {p_best[worst]:.2f}, and below {best} with "
    f"{ahead['prob']:.2f} (+- {ahead['mcse']:.2f}).\n"
    f"Continue {best}: it ends highest with probability {p_best[best]:.2f}; if it alone goes on, "
    f"{loss:.3f} of pass rate is lost on average.\n"
    f"Between {best} and {' and '.join(p_best.index[1:-1])} nothing is decided: the plan above "
    f"continues {go_on}, and buys seeds."
)
assert p_best[worst] < 0.1 and ahead["prob"] > 0.8 and loss < 0.02
assert chosen[worst] == "stop" and chosen[best] == "continue"

# %% [markdown]
# ## What happened
#
# The rest of the file is drawn as open points; it was not fitted. The end of a run is the mean of
# its last evaluations before 150,000 s.

# %%
plot.curves(fit, held_out=evals.until(compute=END), horizon=END / NOW)

# %%
later = evals.until(compute=END).after(compute=NOW)
ended = later.after(compute=0.9 * END).frame.groupby("run")["value"].mean()
print(ended.sort_values(ascending=False).round(3).to_string())
inside = fit.score(later)["inside"]
print(f"{inside.sum()} of {len(inside)} later evaluations inside their 90 % intervals")

# %% [markdown]
# The run that was stopped ended last, the one that was continued first.

# %%
assert ended.idxmin() == worst and ended.idxmax() == best and inside.mean() > 0.9
