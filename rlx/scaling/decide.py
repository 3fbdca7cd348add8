"""What a posterior says to do: which choices matter (`effects`), where compute goes (`allocate`).

Letters: X draws, J recipes, R runs, P pairs of recipes, T new evaluations, N things to choose from,
K numbers that summarise new evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rlx.errors import InputError
from rlx.scaling.families import Family
from rlx.scaling.posterior import ScalingFit

Floats = NDArray[np.float64]

SHARE = 0.8  # of the gain to the ceiling, where compute is compared
QUANTITIES = ("dA", "compute_ratio", "pace_ratio", "dlogC_mid", "B_ratio", "B_tail_ratio")

# ---------------------------------------------------------------- effects


def effects(
    fit: ScalingFit,
    axis: str,
    *,
    reference: object = None,
    margin_A: float = 0.02,
    margin_compute: float = 0.10,
    target: float | None = None,
    prob: float = 0.9,
    decide: float = 0.9,
) -> pd.DataFrame:
    """Each level of an ablation axis against a reference level: ceiling movers, efficiency shapers.

    Averages over pairs of recipes (i at the level, j at the reference) that agree on every other
    axis, draw by draw; C*(y) is the compute at which a curve reaches pass rate y:

        dA            = mean (A_i - A_j)
        compute_ratio = exp mean log(C*_i(y) / C*_j(y)),   y = target, or R0 + 0.8 (min(A) - R0)
        pace_ratio    = the same, each at 0.8 of its own gain, y_i = R0_i + 0.8 (A_i - R0_i)
        dlogC_mid     = mean log(C_mid_i / C_mid_j)
        B_ratio, B_tail_ratio   geometric means likewise

    A higher ceiling alone makes any fixed pass rate cheaper; pace_ratio leaves that out. B_tail =
    B kappa is the exponent with which the gap to the ceiling closes, the B of arXiv 2510.13786
    (Eq. 1); under `burr`, B itself is not. With kappa shared by all runs the two ratios agree.

    A curve that never reaches y has C* = inf: the ratio is inf where the level never does, 0 where
    the reference never does. Draws in which neither does (or both start above y) compare nothing:
    they are left out of the quantiles and count as `p_uncompared`, neither for a difference nor
    against one. With several pairs, those that compare are averaged; one that is inf outweighs all.

    Args:
        fit: the posterior.
        axis: a column of the study's axes, or "recipe".
        reference: the level to compare with; default the lowest of a numeric axis, else the first.
        margin_A: difference of ceilings that matters; .02 is the error margin of arXiv 2510.13786.
        margin_compute: relative difference of compute that matters.
        target: pass rate y; see above.
        prob: mass of the equal-tailed intervals.
        decide: probability that a verdict takes.

    Returns:
        One row per other level, by value on a numeric axis: axis, level, reference, matched (pairs
        that agree on the other axes, recipe names set aside where none agrees on those too; 0: all
        cells of the level against all of the reference); quantiles of the above (`dA_q05`, ...);
        p_raises = P(dA > margin_A), p_lowers = P(dA < -margin_A), p_ceiling, their sum;
        p_cheaper = P(log compute_ratio < -log(1 + margin_compute)), p_dearer, p_efficiency
        likewise; p_sooner, p_later, p_pace likewise of pace_ratio; p_reach, p_reach_reference =
        P(C* is finite); p_uncompared; verdict; extrapolation (of C*, the farther of a pair, over
        the last compute; median); prior_share of dA (posterior sd / prior sd).

        verdict, a direction beyond the margin that has probability `decide` at least: "ceiling
        mover" (it raises A, or it lowers A), "both" (and it is sooner, or later), "efficiency
        shaper" (cheaper and sooner, or dearer and later: at equal pass rate, and not for its
        ceiling alone). "neither" (p_ceiling and p_efficiency + p_uncompared <= 1 - decide), else
        "undecided": a posterior that is merely wide puts much beyond both margins and knows no
        direction. How often recipes that are equal get a verdict: experiments/verdicts.py.

    Raises:
        InputError: an unknown axis or level, an axis of one level, an option out of its range.

    Source: after arXiv 2510.13786, sections 3 and 4, which judge by |dA| > .02 and B of point fits.
    """
    _check_effects(margin_A, margin_compute, target, prob, decide)
    cells = _levels(fit, axis)
    names = _ordered(cells[axis])
    reference = names[0] if reference is None else _find_level(axis, reference, names)
    rows = []
    for level in (name for name in names if name != reference):
        pairs, matched = _pairs(cells, axis, level, reference)
        contrast = _contrasts(fit, pairs, target)
        p = _probabilities(contrast, margin_A, np.log1p(margin_compute))
        row: dict[str, object] = {"axis": axis, "level": level, "reference": reference}
        row["matched"] = matched
        for name in QUANTITIES:
            row.update(_quantiles(contrast[name], prob, name))
        row.update(p, verdict=_verdict(p, decide))
        row["extrapolation"] = float(np.median(contrast["far"]))
        row["prior_share"] = _prior_share(fit, pairs, contrast["dA"])
        rows.append(row)
    return pd.DataFrame(rows)


def _check_effects(margin_A, margin_compute, target, prob, decide) -> None:
    for key, value in (("margin_A", margin_A), ("margin_compute", margin_compute)):
        if not value >= 0:
            raise InputError(key, value, "negative", "give a margin of 0 or more")
    if target is not None and not 0 < target < 1:
        raise InputError("target", target, "not a pass rate", "give a fraction between 0 and 1")
    if not 0 < prob < 1:
        raise InputError("prob", prob, "not the mass of an interval", "give 0.9")
    if not 0.5 < decide <= 1:
        raise InputError("decide", decide, "decides nothing", "give more than 0.5, at most 1")


def _levels(fit: ScalingFit, axis: str) -> pd.DataFrame:
    """Level of every recipe (rows) on every axis (columns)."""
    levels = fit.tree["levels"].to_dataset()
    columns = {str(k).removeprefix("axis_"): levels[k].values for k in levels.data_vars}
    cells = pd.DataFrame(columns).astype(str)
    if axis not in cells:
        raise InputError("axis", axis, "not in this fit", f"use one of {', '.join(cells)}")
    if cells[axis].nunique() < 2:
        reason = f"has one level, {cells[axis].iloc[0]}"
        raise InputError("axis", axis, reason, "compare recipes that differ on an axis")
    return cells


def _ordered(levels: pd.Series) -> list[str]:
    """By value where all are numbers, else as they come."""
    names = list(dict.fromkeys(levels))
    values = pd.to_numeric(pd.Series(names), errors="coerce")
    return names if values.isna().any() else [names[i] for i in np.argsort(values, kind="stable")]


def _find_level(axis: str, level: object, names: list[str]) -> str:
    if str(level) not in names:
        reason = f"not a level of {axis}"
        raise InputError("reference", level, reason, f"use one of {', '.join(names)}")
    return str(level)


def _pairs(
    cells: pd.DataFrame, axis: str, level: str, reference: str
) -> tuple[list[tuple[int, int]], int]:
    """Recipes (i at the level, j at the reference) to compare, and how many of them are matched."""
    left, right = (np.flatnonzero(cells[axis] == name) for name in (level, reference))
    others = [name for name in cells if name != axis]
    every = [(int(i), int(j)) for i in left for j in right]
    for same in (others, [name for name in others if name != "recipe"]):
        key = [tuple(row) for row in cells[same].to_numpy()]
        pairs = [(i, j) for i, j in every if key[i] == key[j]]
        if pairs and (same or not others):
            return pairs, len(pairs)
    return every, 0


def _contrasts(
    fit: ScalingFit, pairs: list[tuple[int, int]], target: float | None
) -> dict[str, Floats]:
    """The quantities of `effects` [X], `reach` and `reach_reference` (shares of the pairs), and
    `far`, C* over the last compute."""
    i_P, j_P = np.array(pairs).T
    A, C_mid, B, B_tail = (_draws(fit, name) for name in ("A", "C_mid", "B", "B_tail"))
    p = fit._parameters("recipe")
    pace = fit.family.compute_to(p["R0"] + SHARE * (p["A"] - p["R0"]), **p)
    C_PX = [np.array(fit._efficiency(i, j, target, "recipe")[2]) for i, j in pairs]
    C_i, C_j = np.stack(C_PX, axis=1)
    last = fit.last_compute("recipe")

    def ratio(x_XJ: Floats) -> Floats:
        return np.exp(_mean_over_pairs(_log_ratio(x_XJ[:, i_P].T, x_XJ[:, j_P].T)))

    far_PX = np.maximum(C_i / last[i_P, None], C_j / last[j_P, None])
    return {
        "dA": (A[:, i_P] - A[:, j_P]).mean(1),
        "compute_ratio": np.exp(_mean_over_pairs(_log_ratio(C_i, C_j))),
        "pace_ratio": ratio(pace),
        "dlogC_mid": np.log(ratio(C_mid)),
        "B_ratio": ratio(B),
        "B_tail_ratio": ratio(B_tail),
        "reach": np.isfinite(C_i).mean(0),
        "reach_reference": np.isfinite(C_j).mean(0),
        "far": far_PX.mean(0),
    }


def _draws(fit: ScalingFit, param: str) -> Floats:
    """[X, J]"""
    x = fit.param(param)
    return x.values.reshape(-1, x.shape[-1])


def _log_ratio(C_i: Floats, C_j: Floats) -> Floats:
    """log(C_i / C_j); NaN where both are inf, or both 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(C_i) - np.log(C_j)


def _mean_over_pairs(x_PX: Floats) -> Floats:
    """Mean over the pairs that are not NaN; inf and -inf make NaN."""
    known_PX = ~np.isnan(x_PX)
    with np.errstate(invalid="ignore"):
        return np.where(known_PX, x_PX, 0.0).sum(0) / known_PX.sum(0)


def _quantiles(x_X: Floats, prob: float, name: str) -> dict[str, float]:
    """Equal-tailed interval and median of the draws that are not NaN."""
    points = ((1 - prob) / 2, 0.5, (1 + prob) / 2)
    known = x_X[~np.isnan(x_X)]
    q = np.quantile(known, points, method="inverted_cdf") if len(known) else [np.nan] * 3
    return {f"{name}_q{100 * p:02.0f}": float(x) for p, x in zip(points, q, strict=True)}


def _probabilities(
    contrast: dict[str, Floats], margin_A: float, margin_log: float
) -> dict[str, float]:
    dA = contrast["dA"]
    with np.errstate(divide="ignore"):
        log_ratio, log_pace = np.log(contrast["compute_ratio"]), np.log(contrast["pace_ratio"])
    true = {
        "p_ceiling": np.abs(dA) > margin_A,
        "p_raises": dA > margin_A,
        "p_lowers": dA < -margin_A,
        "p_efficiency": np.abs(log_ratio) > margin_log,
        "p_cheaper": log_ratio < -margin_log,
        "p_dearer": log_ratio > margin_log,
        "p_pace": np.abs(log_pace) > margin_log,
        "p_sooner": log_pace < -margin_log,
        "p_later": log_pace > margin_log,
        "p_reach": contrast["reach"],
        "p_reach_reference": contrast["reach_reference"],
        "p_uncompared": np.isnan(log_ratio),
    }
    return {name: float(np.mean(x)) for name, x in true.items()}


def _verdict(p: dict[str, float], decide: float) -> str:
    moves = max(p["p_raises"], p["p_lowers"]) >= decide
    paces = max(p["p_sooner"], p["p_later"]) >= decide
    if moves:
        return "both" if paces else "ceiling mover"
    if any(
        min(p[a], p[b]) >= decide for a, b in (("p_cheaper", "p_sooner"), ("p_dearer", "p_later"))
    ):
        return "efficiency shaper"
    possible = p["p_efficiency"] + p["p_uncompared"]
    return "neither" if max(p["p_ceiling"], possible) <= 1 - decide else "undecided"


def _prior_share(fit: ScalingFit, pairs: list[tuple[int, int]], dA_X: Floats) -> float:
    i_P, j_P = np.array(pairs).T
    A = fit._prior_parameters("recipe")["A"]
    return float(dA_X.std() / (A[:, i_P] - A[:, j_P]).mean(1).std())


# ---------------------------------------------------------------- allocate

OBJECTIVES = ("pick_best", "best_final")
SEEDS = {"run": "typical", "recipe": "new"}  # whose curve new evaluations follow
PIECES, MOST_PIECES = 8, 64  # of a budget: the default, the most
MAX_DRAWS = 4000
PER_CHUNK, PER_SEED = 4, 12  # new evaluations, at most; where there are more, neighbours are pooled
BLOCKS = 3  # means of neighbours that summarise new evaluations
NEGLIGIBLE = 1e-4  # of pass rate: nothing is spent for less
ROUNDING = 1e-12  # of pass rate
FANTASY_SEED = 0


def allocate(
    fit: ScalingFit,
    budget: float,
    *,
    horizon: float | None = None,
    chunk: float | None = None,
    objective: str = "pick_best",
    trials: float | None = None,
) -> pd.DataFrame:
    """Where to spend compute before choosing: continue or stop each run, add a seed to a recipe.

    New evaluations y are worth the better choice that they allow (Raiffa & Schlaifer 1961, Applied
    Statistical Decision Theory, chapter 4: expected value of sample information), in pass rate:

        value = E_y[max_n E[U_n | y]] - max_n E[U_n]

    U_n is the ceiling A of recipe n's typical seed ("pick_best": the choice is a recipe), or
    R_n(horizon) ("best_final": the choice is the run to be continued; a new seed, once bought, is
    one more). Every draw fantasises its own y: curve + wander + sampling noise, at the cadence of
    the run. E[U_n | y] is the linear regression of U_n, over the draws, on the means of 3 blocks
    of y (Strong, Oakley, Brennan & Breeze 2015, Med. Decis. Making 35:570): no refits, and jointly
    for all that is bought.

    The plan is greedy: again and again the size of the offer that adds the most value per compute,
    until nothing affordable adds more than 1e-4 and than the Monte Carlo error; the rest of the
    budget is not spent. Sizes are 1, 2, 4, ... chunks of a run, for one chunk may be worth nothing
    where several are (Frazier & Powell 2010, Decis. Anal. 7:378), and one new seed of a recipe,
    from C = 0 to the recipe's last compute. Runs that departed from their curve are neither
    continued nor chosen, nor is a recipe all of whose runs did.

    Args:
        fit: the posterior.
        budget: compute to spend, in the unit of the fit.
        horizon: compute at which "best_final" compares; default twice the study's last compute.
        chunk: compute of the smallest continuation; default budget / 8.
        objective: "pick_best" or "best_final".
        trials: graded samples of a new evaluation; default as those fitted.

    Returns:
        One row per run, then one per recipe: kind, name; action ("continue" or "stop"; "add seed"
        or "no seed"); compute, of the plan; payoff = E[U] (of A, that of the row's own curve; of
        R(horizon), on a recipe's row that of a new seed); p_best = P(its U is the highest), on a
        run's row in "pick_best" that of its recipe, on a recipe's row in "best_final" that of its
        runs; offered, value, value_per_compute: the size that is worth most per compute, bought
        alone (NaN: nothing on offer); gain_mean, gain_q05, gain_q95 = R(C + budget) - R(C);
        extrapolation of the gain; prior_share of A; status as `ScalingFit.status`.
        `attrs`: objective, horizon, chunk; spent; value of the whole plan; perfect =
        E[max U] - max E[U], more than which no evaluations are worth; error, its Monte Carlo
        standard error, about that of all values.

    Raises:
        InputError: an unknown objective; budget, chunk, horizon or trials out of range; no run
            follows its curve.
    """
    chunk = budget / PIECES if chunk is None else chunk
    last = float(fit.last_compute("run").max())
    horizon = 2 * last if horizon is None else horizon
    _check_allocate(budget, chunk, horizon, last, objective, trials)
    stays_R = np.array([status != "departed" for status in fit.status("run")])
    if not stays_R.any():
        raise InputError("runs", "all", "departed from their curves", "cut them with Evals.until")
    thin = _thinned(fit)
    payoff_XN, open_N = _payoffs(thin, stays_R, objective, horizon)
    offers = _run_offers(thin, stays_R, budget, chunk, trials)
    offers += _seed_offers(thin, stays_R, budget, objective, trials)
    problem = Problem(payoff_XN, open_N, offers)
    plan = problem.greedy(budget)
    table = _table(fit, problem, plan, objective, budget)
    table.attrs = {"objective": objective, "horizon": horizon, "chunk": chunk}
    table.attrs |= {"spent": float(table["compute"].sum()), "value": problem.value(plan)}
    table.attrs |= {"perfect": problem.perfect(), "error": problem.error()}
    return table


def _thinned(fit: ScalingFit) -> ScalingFit:
    """Every so many draws, so that about MAX_DRAWS remain."""
    every = -(-len(fit._sites("theta_run")) // MAX_DRAWS)
    tree = fit.tree.copy()
    tree["posterior"] = fit.tree["posterior"].to_dataset().isel(draw=slice(None, None, every))
    return ScalingFit(tree, unsafe=fit.is_unsafe)


def _check_allocate(budget, chunk, horizon, last, objective, trials) -> None:
    if objective not in OBJECTIVES:
        raise InputError("objective", objective, "unknown", f"use {' or '.join(OBJECTIVES)}")
    if not 0 < budget < np.inf:
        raise InputError("budget", budget, "buys nothing", "give a compute above 0")
    if not budget / MOST_PIECES <= chunk <= budget:
        reason = f"not in [budget / {MOST_PIECES}, budget]"
        raise InputError("chunk", chunk, reason, "leave it out: an eighth of the budget")
    if not last <= horizon < np.inf:
        reason = f"not beyond the last compute, {last:g}"
        raise InputError("horizon", horizon, reason, "give a compute ahead of all runs")
    if trials is not None and not trials > 0:
        raise InputError("trials", trials, "no graded samples", "give a number above 0")


@dataclass(frozen=True)
class Offer:
    """New evaluations of one run, or of a new seed of one recipe, in increasing sizes."""

    kind: str  # "run" or "recipe"
    index: int  # in fit.runs or fit.recipes
    compute: list[float]  # of every size
    summary: list[Floats]  # of every size [X, K]: what its evaluations say in each draw
    opens: int | None = None  # column of the payoffs that may be chosen after buying


Plan = dict[int, int]  # size of every offer that is bought


@dataclass(frozen=True)
class Problem:
    """What may be chosen, with its payoff in each draw, and what may be bought before."""

    payoff_XN: Floats
    open_N: NDArray[np.bool_]  # may be chosen although nothing is bought
    offers: list[Offer]

    def value(self, plan: Plan) -> float:
        """What the evaluations of a plan are worth, see `allocate`; 0 where they seem to harm."""
        if not plan:
            return 0.0
        opened_N = self._opened(list(plan))
        Z_XK = np.concatenate([self.offers[k].summary[size] for k, size in plan.items()], axis=1)
        gain = preposterior(Z_XK, self.payoff_XN[:, opened_N]) - self._now()
        return gain if gain > ROUNDING else 0.0

    def perfect(self) -> float:
        """What it is worth to know all payoffs."""
        return float(self._regret().mean())

    def error(self) -> float:
        """Monte Carlo standard error of `perfect`, if draws are independent."""
        return float(self._regret().std() / len(self.payoff_XN) ** 0.5)

    def _regret(self) -> Floats:
        """[X] the best payoff less that of what is chosen now."""
        now = np.where(self.open_N, self.payoff_XN.mean(0), -np.inf).argmax()
        opened_N = self._opened(list(range(len(self.offers))))
        return self.payoff_XN[:, opened_N].max(1) - self.payoff_XN[:, now]

    def _now(self) -> float:
        return float(self.payoff_XN[:, self.open_N].mean(0).max())

    def _opened(self, bought: list[int]) -> NDArray[np.bool_]:
        opened_N = self.open_N.copy()
        for k in bought:
            if (column := self.offers[k].opens) is not None:
                opened_N[column] = True
        return opened_N

    def greedy(self, budget: float) -> Plan:
        """The plan that grows by the highest added value per compute."""
        plan: Plan = {}
        left, least = budget * (1 + 1e-9), max(NEGLIGIBLE, self.error())
        while True:
            worth, best, best_rate = self.value(plan), None, 0.0
            for k, size, cost in self._affordable(plan, left):
                more = self.value(plan | {k: size}) - worth
                if more > least and more / cost > best_rate:
                    best, best_rate = (k, size, cost), more / cost
            if best is None:
                return plan
            plan, left = plan | {best[0]: best[1]}, left - best[2]

    def _affordable(self, plan: Plan, left: float) -> list[tuple[int, int, float]]:
        """(offer, size, further compute) of all that the compute left can buy."""
        out = []
        for k, offer in enumerate(self.offers):
            paid = offer.compute[plan[k]] if k in plan else 0.0
            larger = range(plan.get(k, -1) + 1, len(offer.compute))
            out += [(k, size, offer.compute[size] - paid) for size in larger]
        return [(k, size, cost) for k, size, cost in out if cost <= left]

    def alone(self) -> dict[tuple[str, int], tuple[float, float]]:
        """(kind, index) of every offer: its size that is worth most per compute, and that worth."""
        out = {}
        for k, offer in enumerate(self.offers):
            worth = [self.value({k: size}) for size in range(len(offer.compute))]
            size = int(np.argmax(np.array(worth) / offer.compute))
            out[offer.kind, offer.index] = (offer.compute[size], worth[size])
        return out

    def p_best(self) -> Floats:
        """P(U_n is the highest of those that may be chosen now), [N]."""
        best_X = np.where(self.open_N, self.payoff_XN, -np.inf).argmax(1)
        return np.bincount(best_X, minlength=len(self.open_N)) / len(best_X)


def preposterior(Z_XK: Floats, payoff_XN: Floats) -> float:
    """E[max_n E[U_n | Z]] by linear regression of U on Z over joint draws.

        E[U_n | Z] = mean U_n + (Z - mean Z) beta_n

    The draws are halved (chains apart). The n of a draw is chosen by the coefficients of the other
    half and valued by those of its own: coefficients that chance makes large are worth nothing on
    average, and the estimate is a little low rather than high.

    Args:
        Z_XK: what new evaluations say in each draw.
        payoff_XN: U of each thing to choose from.

    Source: Strong, Oakley, Brennan & Breeze 2015, Med. Decis. Making 35:570, the regression.
    """
    mean_N, half = payoff_XN.mean(0), len(Z_XK) // 2
    halves = [slice(0, half), slice(half, None)]
    Z = [Z_XK[h] - Z_XK[h].mean(0) for h in halves]
    beta = [
        np.linalg.pinv(z.T @ z, rcond=1e-10, hermitian=True) @ (z.T @ (payoff_XN[h] - mean_N))
        for z, h in zip(Z, halves, strict=True)
    ]
    total = 0.0
    for own, other in ((0, 1), (1, 0)):
        n_X = (mean_N + Z[own] @ beta[other]).argmax(1)
        total += (mean_N + Z[own] @ beta[own])[np.arange(len(n_X)), n_X].sum()
    return float(total / len(Z_XK))


def _payoffs(
    fit: ScalingFit, stays_R: NDArray[np.bool_], objective: str, horizon: float
) -> tuple[Floats, NDArray[np.bool_]]:
    """U [X, N] and what may be chosen now [N]: recipes, or runs and then one new seed of each
    recipe."""
    if objective == "pick_best":
        return fit._parameters("recipe")["A"], _recipes_of(fit, stays_R)
    payoff = [fit._at(np.array([horizon]), by, SEEDS[by])[..., 0] for by in ("run", "recipe")]
    return np.concatenate(payoff, axis=1), np.r_[stays_R, np.zeros(len(fit.recipes), bool)]


def _recipes_of(fit: ScalingFit, stays_R: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Recipes with a run that follows its curve [J]."""
    return np.bincount(fit._recipe_of_run, stays_R, len(fit.recipes)) > 0


def _run_offers(
    fit: ScalingFit, stays_R: NDArray[np.bool_], budget: float, chunk: float, trials: float | None
) -> list[Offer]:
    """1, 2, 4, ... chunks of every run that follows its curve."""
    rng, source = np.random.default_rng(FANTASY_SEED), Source.of(fit, "run", trials)
    gap_R, last_R = fit._filtered[2], fit.last_compute("run")
    sizes = [2**i for i in range(int(np.log2(budget / chunk * (1 + 1e-9))) + 1)]
    offers = []
    for r in map(int, np.flatnonzero(stays_R)):
        per = int(np.clip(chunk / gap_R[r] * (1 + 1e-9), 1, PER_CHUNK))
        y_XT = source.evaluations(rng, r, last_R[r], chunk / per, gap_R[r], per * sizes[-1])
        summary = [_blocks(y_XT[:, : per * size]) for size in sizes]
        offers.append(Offer("run", r, [chunk * size for size in sizes], summary))
    return offers


def _seed_offers(
    fit: ScalingFit, stays_R: NDArray[np.bool_], budget: float, objective: str, trials: float | None
) -> list[Offer]:
    """One new seed of every recipe that the budget can take to the recipe's last compute."""
    rng, source = np.random.default_rng(FANTASY_SEED + 1), Source.of(fit, "recipe", trials)
    gap_R, last_J = fit._filtered[2], fit.last_compute("recipe")
    offers = []
    for j in map(int, np.flatnonzero(_recipes_of(fit, stays_R) & (last_J <= budget * (1 + 1e-9)))):
        gap = float(gap_R[fit._recipe_of_run == j].mean())
        T = int(np.clip(last_J[j] / gap * (1 + 1e-9), 1, PER_SEED))
        y_XT = source.evaluations(rng, j, 0.0, last_J[j] / T, gap, T)
        opens = len(fit.runs) + j if objective == "best_final" else None
        offers.append(Offer("recipe", j, [float(last_J[j])], [_blocks(y_XT)], opens))
    return offers


@dataclass(frozen=True)
class Source:
    """What new evaluations are drawn from: the runs of a fit, or a new seed of each recipe."""

    family: Family
    parameters: dict[str, Floats]  # of the curves [X, N]
    wander_mean_XN: Floats  # where the evaluations start
    wander_var_XN: Floats
    noise_sd_XN: Floats
    sigma_X: Floats  # sd of the wander
    length_X: Floats  # of its correlation, in gaps

    @classmethod
    def of(cls, fit: ScalingFit, by: str, trials: float | None) -> Source:
        p = fit._parameters(by, SEEDS[by])
        now_XN1 = fit.family.at(fit.last_compute(by), **p)[..., None]
        mean, var = fit._wander(np.zeros(1), by)
        return cls(
            fit.family,
            p,
            mean[..., 0],
            var[..., 0],
            np.broadcast_to(fit._noise_sd(now_XN1, by, trials), now_XN1.shape)[..., 0],
            np.exp(fit._sites("log_wander_sd")),
            np.exp(fit._sites("log_wander_length")),
        )

    def evaluations(
        self, rng: np.random.Generator, n: int, start: float, step: float, gap: float, T: int
    ) -> Floats:
        """Evaluations [X, T] of one run at start + step, start + 2 step, ...; one per draw.

            y = R(C) + w + e,   w <- rho w + sigma sqrt(1 - rho^2) z,   rho = exp(-step/gap/length)

        A step of several gaps pools as many evaluations: the sd of e falls with the root.
        """
        C_T = start + step * np.arange(1, T + 1)
        y_XT = self.family.at(C_T, **{k: x[:, n, None] for k, x in self.parameters.items()})
        z_TX, e_TX = rng.normal(size=(2, T, len(y_XT)))
        rho = np.exp(-step / gap / self.length_X)
        w = self.wander_mean_XN[:, n] + np.sqrt(self.wander_var_XN[:, n]) * rng.normal(
            size=len(rho)
        )
        for t in range(T):
            w = rho * w + self.sigma_X * np.sqrt(1 - rho**2) * z_TX[t]
            y_XT[:, t] += w
        noise = self.noise_sd_XN[:, n] * np.sqrt(min(1.0, gap / step))
        return np.clip(np.clip(y_XT, 0, 1) + noise[:, None] * e_TX.T, 0, 1)


def _blocks(y_XT: Floats) -> Floats:
    """Means of up to BLOCKS pieces of consecutive evaluations [X, K], in standard deviations."""
    pieces = np.array_split(y_XT, min(BLOCKS, y_XT.shape[1]), axis=1)
    Z_XK = np.stack([piece.mean(1) for piece in pieces], axis=1)
    return (Z_XK - Z_XK.mean(0)) / np.maximum(Z_XK.std(0), 1e-12)


def _table(
    fit: ScalingFit, problem: Problem, plan: Plan, objective: str, budget: float
) -> pd.DataFrame:
    """The rows of `allocate`."""
    offers = problem.offers
    bought = {(offers[k].kind, offers[k].index): offers[k].compute[i] for k, i in plan.items()}
    alone, payoff_N, p_N = problem.alone(), problem.payoff_XN.mean(0), problem.p_best()
    R, J, recipe_R = len(fit.runs), len(fit.recipes), fit._recipe_of_run
    if objective == "pick_best":
        payoff = {"run": fit._parameters("run")["A"].mean(0), "recipe": payoff_N}
        p_best = {"run": p_N[recipe_R], "recipe": p_N}
    else:
        payoff = {"run": payoff_N[:R], "recipe": payoff_N[R:]}
        p_best = {"run": p_N[:R], "recipe": np.bincount(recipe_R, p_N[:R], J)}
    parts = []
    for kind, yes, no in (("run", "continue", "stop"), ("recipe", "add seed", "no seed")):
        keys = [(kind, i) for i in range(len(fit._names(kind)))]
        part = pd.DataFrame({"kind": kind, "name": fit._names(kind)})
        part["action"] = [yes if key in bought else no for key in keys]
        part["compute"] = [bought.get(key, 0.0) for key in keys]
        part["payoff"], part["p_best"] = payoff[kind], p_best[kind]
        part["offered"] = [alone.get(key, (np.nan, np.nan))[0] for key in keys]
        part["value"] = [alone.get(key, (np.nan, np.nan))[1] for key in keys]
        part["value_per_compute"] = part["value"] / part["offered"]
        gain = fit.gain(budget, by=kind)
        for column in ("mean", "q05", "q95"):
            part[f"gain_{column}"] = gain[column]
        part["extrapolation"], part["prior_share"] = gain["extrapolation"], gain["prior_share"]
        part["status"] = fit.status(kind)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)
