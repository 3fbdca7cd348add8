"""A study of two recipes with given draws, its evaluations and two forecasts, for its page."""

import numpy as np
import pandas as pd

import rlx.scaling as sc
from rlx.scaling import page
from rlx.scaling.data import Evals
from tests.scaling.drawn import posterior, spread

NASTY = "a</script><script>window.pwned=1</script>\u2028\"'&<b>\U0001f600"  # as a run may be called


def study(name="j0-0", title="a study"):
    """(fit of C <= 8, evaluations up to C = 16, the fit and one of C <= 4 as windows).

    `name`: of the first run.
    """
    fits = {share: drawn(16 * share, 0.01 / share, name) for share in (0.25, 0.5)}
    fit = fits[0.5]
    rows = [fit.evals.frame]
    for run in fit.runs:
        later = rows[0][rows[0]["run"] == run].iloc[-4:].copy()
        later["compute"] = [10.0, 12.0, 14.0, 16.0]
        last = fit.curve(later["compute"], "run").sel(run=run).median(("chain", "draw"))
        rows.append(later.assign(value=last.values))
    frame = pd.concat(rows).sort_values(["run", "compute"], ignore_index=True)
    order = {run: r for r, run in enumerate(fit.runs)}
    frame = frame.sort_values("run", key=lambda s: s.map(order), kind="stable", ignore_index=True)
    data = Evals(frame, compute_label="training compute C (10$^{18}$ FLOPs)", title=title)
    windows = [page.Window(share, one, page.score(one, data)) for share, one in fits.items()]
    return fit, data, windows


def drawn(last, sd, name):
    """A fit whose last compute is `last`, with ceilings around 0.6 and 0.7."""
    A = spread([0.6, 0.7], [sd, sd])
    fit = posterior(A, [2.0, 4.0], 1.5, recipe_of_run=[0, 0, 1], last_R=[last] * 3, noise_sd=0.01)
    tree = fit.tree.copy()
    for group in ("posterior", "observed_data"):
        runs = [name, *fit.runs[1:]]
        tree[group] = tree[group].to_dataset().assign_coords(run=runs)
    evals = tree["evals"].to_dataset()
    renamed = [name if run == "j0-0" else run for run in evals["run"].values]
    tree["evals"] = evals.assign(run=("row", np.array(renamed, object)))
    more = {"truth": ("run", [0.62, 0.62, np.nan]), "start_sd": ("start", [0.1, 0.1])}
    tree["constant_data"] = tree["constant_data"].to_dataset().assign(more)
    tree.attrs |= {"rhat": np.nan, "ess": np.nan, "bfmi": np.nan, "divergences": 0}
    tree.attrs |= {"data_sha256": "0" * 64, "axes": "null"}
    return sc.ScalingFit(tree)
