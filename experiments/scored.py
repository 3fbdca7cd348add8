"""Scores of forecasts of whole sets of curves: rlx's posterior beside simpler rules.

    python -m experiments.calibration sets=all [data=../shared/data] [studies=50] [out=DIR]

Every available set of curves is cut at SHARES of each run's compute, and all later evaluations are
forecast with 90 % intervals by

    posterior   the posterior with its doubt beyond the data (`rlx.scaling.doubt`)
    curve       the same posterior without that doubt
    chosen      the posterior of curve=auto: of the family that `sc.evidence` prefers
    grid        the grid fit of arXiv 2510.13786, A.5, +- its error margin of 0.02
    bootstrap   least squares refitted REFITS times to resampled residuals (chosen, grid and
                bootstrap forecast only the first SLOW_STUDIES simulated studies of each kind)
    last        the last value, with a random walk in log C as large as the run's so far
    line        a line in log C through the later half of what was seen, with its standard
                prediction interval

A set whose file is missing is named and left out. One line of JSON per set, share and rule goes to
`out/scored.jsonl`, so the same command continues an interrupted one; `scores.csv` has their means
over the sets of a group and then over groups, `bands.csv` coverage and RMSE by horizon, and
`families.csv` the family that was chosen for every set, and the evidence.

Letters: P later evaluations of all runs, X draws, R runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, t

import rlx.scaling as sc
from experiments.calibration import HORIZONS, VARIANTS, Truth, simulate
from experiments.external import deep_grpo, retu
from rlx.errors import InputError
from rlx.record import RunRecord, read_rows
from rlx.scaling.backtest import BANDS, crps, unseen, with_first
from rlx.scaling.data import Evals
from rlx.scaling.infer import best_curve

Floats = NDArray[np.float64]

ROOT = Path(__file__).parents[1]
SHARES = (0.12, 0.25, 0.5)  # of each run's compute, seen
PROB = 0.9
Z = norm.ppf((1 + PROB) / 2)
MARGIN = 0.02  # of the grid fit, arXiv 2510.13786, A.5
REFITS = 40
SLOW, SLOW_STUDIES = ("grid", "bootstrap"), 10  # rules for the first simulated studies only
ONE_STEP = 0.1  # pass rate per root of log C, of a run with one evaluation
GRID_C_MID = np.linspace(1 / 80, 5, 100)  # of the fitted compute; the paper: 100 to 40,000 of 8,000
GRID_A = 0.005
QUANTILES = np.linspace(0.01, 0.99, 50)  # serve as draws of a rule that has only an interval


@dataclass(frozen=True)
class Curves:
    """A set of curves. group: sets whose errors go together, so that they count as one."""

    name: str
    group: str
    read: Callable[[], Evals]


# ---------------------------------------------------------------- sets


def own_studies(results: Path) -> list[Curves]:
    """The committed evaluations of rlx's own studies."""
    out = []
    for name, group in (
        ("loo", "one at a time"), ("recipes", "one at a time"), ("ceiling_movers", "choices"),
        ("efficiency_shapers", "choices"), ("controls", "choices"), ("default", "default"),
        ("hard_mix", "hard_mix"), ("tasks", "tasks"), ("smollm2", "SmolLM2"),
    ):  # fmt: skip
        folders = (results / "studies" / "evals" / f"{name}.csv", results / name / "evals.csv")
        path = next((path for path in folders if path.exists()), folders[0])
        split = {"hard_mix": "learning_rate", "tasks": "eval_set"}.get(name)
        if split is None or not path.exists():
            out.append(Curves(name, group, partial(committed, path)))
            continue
        for level in pd.read_csv(path, usecols=[split])[split].unique():
            out.append(Curves(f"{name} {level}", group, partial(committed, path, split, level)))
    return out


def committed(path: Path, split: str | None = None, level: object = None) -> Evals:
    """Evaluations of a study as they are committed: columns of `Evals`, and one per axis."""
    table = pd.read_csv(path)
    if split is not None:
        table = table[table[split] == level].drop(columns=split)
    known = {"run", "recipe", "seed", "axes", "compute", "value", "stderr", "passes", "trials"}
    axes = [name for name in table if name not in known | {"truth", "start"}]
    return Evals.from_frame(table, compute="compute", axes=axes, start="start")


def others(data: Path, tests: Path) -> list[Curves]:
    """External training curves; PROVENANCE.md beside them describes each."""
    real, deep = data / "real", data / "deep_grpo"
    smollm2, surrogates = "rlx_smollm2_h200.csv", "qwen35_9b_dapo_six_surrogates.csv"
    return [
        Curves("RETU", "RETU", partial(retu, data / "retu")),
        Curves("Deep-GRPO, seconds", "Deep-GRPO", lambda: deep_grpo(deep)[0]),
        Curves("Deep-GRPO, steps", "Deep-GRPO", lambda: deep_grpo(deep)[1]),
        Curves("ScaleRL Fig. 1a", "Fig. 1a", lambda: Evals.read(tests / "digitized_fig1a.csv")),
        Curves("OLMo", "OLMo", partial(_olmo, real / "olmo31_7b_rlzero_math.csv")),
        Curves("six surrogates", "six surrogates", partial(_surrogates, real / surrogates)),
        Curves("SmolLM2", "SmolLM2", partial(_smollm2, real / smollm2)),
    ]


def _olmo(path: Path) -> Evals:
    table = pd.read_csv(path).groupby(["run", "step"], as_index=False)[["passes", "samples"]].sum()
    return Evals.from_frame(table.rename(columns={"step": "compute", "samples": "trials"}))


def _surrogates(path: Path) -> Evals:
    names = {"algorithm": "run", "updates": "compute", "n": "trials"}
    table = pd.read_csv(path).rename(columns=names)[["run", "compute", "passes", "trials"]]
    return Evals.from_frame(table.assign(recipe=table["run"], start="one"), start="start")


def _smollm2(path: Path) -> Evals:
    table = pd.read_csv(path).drop(columns="step").assign(start="one")
    return Evals.from_frame(table, start="start")


# ---------------------------------------------------------------- rules


@dataclass(frozen=True)
class Seen:
    """One run up to the cut, and the computes to forecast."""

    compute_M: Floats
    value_M: Floats
    stderr_M: Floats
    later_C: Floats

    def noise(self) -> float:
        """sd of the sampling noise of one evaluation, 0 where it is unknown."""
        known = self.stderr_M[np.isfinite(self.stderr_M)]
        return float(np.sqrt(np.square(known).mean())) if len(known) else 0.0


def grid(seen: Seen) -> Floats:
    R0 = seen.value_M[0]
    A_grid = np.arange(np.floor(R0 / GRID_A) + 1, 1 / GRID_A + 1) * GRID_A
    C_mid_grid = GRID_C_MID * seen.compute_M.max()
    fit = sc.fit_paper(
        seen.compute_M, seen.value_M, r0="first", A_grid=A_grid, C_mid_grid=C_mid_grid
    )
    return normal(fit.at(seen.later_C), MARGIN / Z)


def bootstrap(seen: Seen) -> Floats:
    rng = np.random.default_rng(0)
    fit = sc.fit_point(seen.compute_M, seen.value_M, r0="first")
    at_M = fit.at(seen.compute_M)
    left_M = seen.value_M - at_M
    drawn = []
    for _ in range(REFITS):
        again_M = at_M + rng.choice(left_M, len(left_M))
        again = sc.fit_point(seen.compute_M, again_M, r0=float(np.clip(seen.value_M[0], 0, 0.999)))
        drawn.append(again.at(seen.later_C) + rng.choice(left_M, len(seen.later_C)))
    return np.array(drawn)


def last(seen: Seen) -> Floats:
    C, y = seen.compute_M[seen.compute_M > 0], seen.value_M[seen.compute_M > 0]
    step, noise = np.diff(np.log(C)), seen.noise()
    walk = max(np.square(np.diff(y)).sum() - 2 * noise**2 * len(step), 0.0)
    walk = walk / step.sum() if len(step) else ONE_STEP**2
    ahead_C = np.log(np.maximum(seen.later_C / C[-1], 1.0))
    return normal(y[-1], np.sqrt(walk * ahead_C + 2 * noise**2))


def line(seen: Seen) -> Floats:
    positive = seen.compute_M > 0
    x, y = np.log(seen.compute_M[positive]), seen.value_M[positive]
    x, y = x[len(x) // 2 :], y[len(y) // 2 :]
    if len(x) < 3:
        if positive.sum() < 3:
            raise ValueError("too few points for a line with an error")
        x, y = np.log(seen.compute_M[positive])[-3:], seen.value_M[positive][-3:]
    slope, level = np.polyfit(x, y, 1)
    sd = np.sqrt(np.square(y - level - slope * x).sum() / (len(x) - 2))
    ahead = np.log(seen.later_C)
    spread = 1 + 1 / len(x) + (ahead - x.mean()) ** 2 / np.square(x - x.mean()).sum()
    q = t.ppf(QUANTILES, len(x) - 2)
    return np.clip(level + slope * ahead + q[:, None] * sd * np.sqrt(spread), 0, 1)


def normal(mean_C: ArrayLike, sd_C: ArrayLike) -> Floats:
    """Quantiles of a normal, as draws [X, C]."""
    return np.clip(mean_C + norm.ppf(QUANTILES)[:, None] * sd_C, 0, 1)


SIMPLE: dict[str, Callable[[Seen], Floats]] = {
    "grid": grid, "bootstrap": bootstrap, "last": last, "line": line
}  # fmt: skip
LAST_RULE = next(reversed(SIMPLE))  # of those that are written for a set


# ---------------------------------------------------------------- scores


def score_set(evals: Evals, share: float, method: str) -> Iterator[dict]:
    """Per rule: coverage, width, interval score, CRPS and RMSE of all later evaluations, with the
    same weight for every run, and coverage and RMSE by band of horizons.

    Interval score: width + 2 / (1 - PROB) times the distance by which an evaluation lies outside
    (Gneiting and Raftery 2007, JASA 102:359, Eq. 43).
    """
    seen = with_first(evals, share)
    longest = int(evals.frame.groupby("run").size().max())
    posterior = sc.fit(seen, method=method, pad_to=longest).unsafe()
    groups = dict(list(unseen(seen, evals).groupby("run", sort=False)))
    index = [i for i, run in enumerate(posterior.runs) if run in groups]
    rows = [groups[posterior.runs[i]] for i in index]
    asked = [r["compute"].to_numpy() for r in rows], [r["stderr"].to_numpy() for r in rows], index
    found = sc.evidence(seen, pad_to=longest)
    drawn = {
        "posterior": posterior.predictive(*asked)[0],
        "curve": posterior.with_doubt(None).predictive(*asked)[0],
    }
    drawn["chosen"] = _chosen(drawn["posterior"], found, seen, asked, method=method, pad_to=longest)
    windows = [
        _seen(seen, posterior.runs[i], r["compute"]) for i, r in zip(index, rows, strict=True)
    ]
    for rule, ask in SIMPLE.items():
        drawn[rule] = _asked(ask, windows)
    table = pd.concat(rows, ignore_index=True)[["run", "compute", "value"]]
    ends = dict(zip(posterior.runs, posterior.last_compute("run"), strict=True))
    table["horizon"] = table["compute"] / table["run"].map(ends)
    for rule, x_XP in drawn.items():
        family = {"families": _families(found)} if rule == "chosen" else {}
        yield {"rule": rule} | scores(x_XP, table) | family


def _chosen(
    posterior_XP: Floats, found: pd.DataFrame, seen: Evals, asked: tuple, **options
) -> Floats:
    """Draws of the family with the most evidence; `posterior_XP` if that is its own."""
    curve = best_curve(found)
    if curve == found["curve"].iloc[0]:
        return posterior_XP
    return sc.fit(seen, curve=curve, **options).unsafe().predictive(*asked)[0]


def _families(evidence: pd.DataFrame) -> dict:
    """The chosen family, and every other one's excess of log evidence over the first."""
    over = evidence.set_index("curve")["over_first"].iloc[1:]
    return {"curve": best_curve(evidence)} | over.round(2).to_dict()


def _asked(ask: Callable[[Seen], Floats], windows: list[Seen]) -> Floats:
    """Draws [X, P] of a rule; those of `last` for a run with too few points for the rule."""
    parts = []
    for window in windows:
        try:
            parts.append(ask(window))
        except ValueError:
            parts.append(last(window))
    X = max(map(len, parts))
    return np.concatenate([part[np.arange(X) % len(part)] for part in parts], axis=1)


def _seen(seen: Evals, run: str, later: pd.Series) -> Seen:
    mine = seen.frame[seen.frame["run"] == run]
    arrays = (mine[name].to_numpy() for name in ("compute", "value", "stderr"))
    return Seen(*arrays, later.to_numpy())


def scores(x_XP: Floats, table: pd.DataFrame) -> dict:
    """Scores of draws [X, P] against `table` (run, value, horizon); see `score_set`."""
    value = table["value"].to_numpy()
    lo, mid, hi = np.quantile(x_XP, [(1 - PROB) / 2, 0.5, (1 + PROB) / 2], axis=0)
    weight = 1 / table.groupby("run")["run"].transform("size").to_numpy()
    inside, outside = (
        (lo <= value) & (value <= hi),
        np.maximum(lo - value, 0) + np.maximum(value - hi, 0),
    )
    per_P = {
        "coverage": inside,
        "width": hi - lo,
        "interval": hi - lo + 2 / (1 - PROB) * outside,
        "crps": crps(x_XP, value),
        "square": (mid - value) ** 2,
    }
    out = {name: float(np.average(x, weights=weight)) for name, x in per_P.items()}
    out["rmse"] = out.pop("square") ** 0.5
    edges = [low for low, _ in BANDS.values()] + [np.inf]
    band_P = np.digitize(table["horizon"], edges[1:-1], right=True)
    for b, band in enumerate(BANDS):
        mine = band_P == b
        if mine.any():
            for name, x in (("coverage", inside), ("rmse", (mid - value) ** 2)):
                mean = float(np.average(x[mine], weights=weight[mine]))
                out[f"{name} {band:g}x"] = mean if name == "coverage" else mean**0.5
    return out | {"n": len(value), "runs": int(table["run"].nunique())}


# ---------------------------------------------------------------- all of them


def simulations(studies: int) -> Iterator[tuple[int, Curves, Truth]]:
    """Seed, study and truth; all kinds with one seed come together."""
    for seed in range(studies):
        for variant in VARIANTS:
            evals, truth = simulate(variant, seed)
            name, group = f"{variant} {seed}", f"simulated {variant}"
            yield seed, Curves(name, group, lambda evals=evals: evals), truth


def score_simulation(evals: Evals, truth: Truth, method: str, slow: bool) -> Iterator[dict]:
    """As `score_set`, for a further evaluation at each of HORIZONS times the last compute; the
    rules SLOW only if `slow`."""
    posterior = sc.fit(evals, method=method).unsafe()
    order = [truth.runs.index(run) for run in posterior.runs]
    R, H = len(order), len(HORIZONS)
    compute = HORIZONS * truth.C_max
    asked = [compute] * R, [np.full(H, np.nan)] * R, list(range(R))
    drawn = {
        "posterior": posterior.predictive(*asked)[0],
        "curve": posterior.with_doubt(None).predictive(*asked)[0],
    }
    found = sc.evidence(evals) if slow else None
    if found is not None:
        drawn["chosen"] = _chosen(drawn["posterior"], found, evals, asked, method=method)
    windows = [_seen(evals, run, pd.Series(compute)) for run in posterior.runs]
    for rule in (rule for rule in SIMPLE if slow or rule not in SLOW):
        drawn[rule] = _asked(SIMPLE[rule], windows)
    table = pd.DataFrame({"run": np.repeat(posterior.runs, H), "horizon": np.tile(HORIZONS, R)})
    table["value"] = truth.fresh_RH[order].ravel()
    for rule, x_XP in drawn.items():
        family = {"families": _families(found)} if rule == "chosen" else {}
        yield {"rule": rule} | scores(x_XP, table) | family


def work(out: Path, data: Path, studies: int, method: str) -> pd.DataFrame:
    """Write one line per set, share and rule that `out/scored.jsonl` lacks; all of its lines."""
    log, name = RunRecord(out), "scored.jsonl"
    if (out / name).exists():
        log.truncate({name: (out / name).read_bytes().rfind(b"\n") + 1})  # a line cut short
    rows = read_rows(out / name)
    for row in (row for row in rows if row["method"] != method):
        reason = f"{out} holds scores by {row['method']}"
        raise InputError("method", method, reason, "give another out=DIR")
    done = {(row["set"], row["share"], row["rule"]) for row in rows}
    for curves, share, make in _jobs(data, studies, method):
        if (curves.name, share, LAST_RULE) in done:
            continue
        try:
            found = list(make())
        except InputError as error:
            print(f"{curves.name}, {share:g}: left out, {error}")
            continue
        labels = {"set": curves.name, "group": curves.group, "share": share, "method": method}
        for row in found:
            if (curves.name, share, row["rule"]) not in done:  # of a set that was interrupted
                log.append(name, labels | row)
        print(
            f"{curves.name}, {share:g}: "
            + ", ".join(f"{r['rule']} {r['coverage']:.2f}" for r in found)
        )
    return pd.DataFrame(read_rows(out / name))


def _jobs(data: Path, studies: int, method: str):
    for curves in (
        *own_studies(ROOT / "analysis" / "results"),
        *others(data, ROOT / "tests" / "data"),
    ):
        try:
            evals = curves.read()
        except (InputError, FileNotFoundError) as error:
            print(f"{curves.name}: left out, {error}")
            continue
        for share in SHARES:
            yield curves, share, partial(score_set, evals, share, method)
        jax.clear_caches()  # programs of other shapes; Linux limits the mappings of a process
    for seed, curves, truth in simulations(studies):
        slow = seed < SLOW_STUDIES
        yield curves, 1.0, partial(score_simulation, curves.read(), truth, method, slow)


KEYS = ["set", "group", "share"]
MEANS = ["coverage", "width", "interval", "crps", "rmse"]


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over the sets of each group, then over groups: one row per group and rule."""
    means = table.groupby(["group", "set", "rule"])[MEANS].mean().groupby(["group", "rule"]).mean()
    simulated = means.index.get_level_values("group").str.startswith("simulated")
    for label, part in (("all simulated", means[simulated]), ("all measured", means[~simulated])):
        whole = part.groupby("rule").mean()
        means = pd.concat([means, pd.concat({label: whole}, names=["group"])])
    return means.reset_index()


def run(out: Path, data: Path, studies: int, method: str) -> None:
    """Write the tables of all sets."""
    table = work(out, data, studies, method)
    means = summary(table)
    means.to_csv(out / "scores.csv", index=False, float_format="%.4g")
    bands = [name for name in table if name.startswith(("coverage ", "rmse "))]
    rows = table.groupby(["group", "rule"])[bands].mean().reset_index()
    rows.to_csv(out / "bands.csv", index=False, float_format="%.3g")
    chosen = table[table["rule"] == "chosen"].reset_index(drop=True)
    families = pd.concat([chosen[KEYS], pd.DataFrame(chosen["families"].tolist())], axis=1)
    families.to_csv(out / "families.csv", index=False, float_format="%.2f")
    wide = means.pivot(index="group", columns="rule", values=["coverage", "interval"])
    print(wide.to_string(float_format="{:.3f}".format))
    print(f"wrote scored.jsonl, scores.csv, bands.csv, families.csv in {out}")
