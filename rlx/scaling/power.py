"""Plan before you spend: would a study tell two recipes apart?

    table = sc.power({"A": 0.65, "B": 1.5, "C_mid": 1.0, "R0": 0.25}, horizon=10.0)
    plot.power(table)

For each design (seeds, evaluations, compute) studies of two recipes are simulated, a base and a
rival that differs by a stated amount, and fitted by Laplace's method with the doubt beyond the
data. Each posterior answers two questions about the recipes' typical seeds:

    ceiling   x = R_rival(H) - R_base(H)              pass rates at the horizon H
    compute   x = log(C*_base(y) / C*_rival(y))       compute to y = R0 + 0.8 (R_base(H) - R0)

and the verdict has a direction if P(x > margin) or P(x < -margin) is at least `decide`, as in
rlx.scaling.effects. H is the same for every design: a study trained to a share of 0.1 extrapolates
tenfold, one trained to a share of 1 not at all.

The true curves have the doubt as well. It is drawn first. Then the rival's curve is solved for, so
that x with the doubt is the stated difference: a difference of ceilings by changing A alone, one of
compute by changing C_mid alone.

`right` and `wrong` count verdicts. `expected` is their chance if medians m of x are normal. A
normal posterior of sd s that pulls a difference d towards 0 by a factor b has a median of mean b d
and sd s sqrt(b). Both are compared with the same studies: study k has the same seeds and doubt for
every difference, and where there is none its median m0 has mean 0, so that few studies give

    b = mean_k (m_k - m0_k) / d                (where d = 0, that of the smallest difference)
    r^2 = mean_k m0_k^2 / (s_k^2 b)            over the studies of all designs; at most 1
    expected = mean_k Phi((b d - margin - u_k) / (r s_k sqrt(b))),    u_k = m_k - q_k(1 - decide)

r is below 1 where posteriors allow for more than the simulated studies vary, such as seeds that
differ more. A count needs many studies, this average needs few. In analysis/results/power it is a
quarter above the counts of twenty studies, and a tenth above those of sixty others.

Letters: X draws, J = 2 recipes, K studies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm
from tqdm import tqdm

from rlx.errors import InputError
from rlx.scaling.compare import SHARE
from rlx.scaling.doubt import Doubt, Noise, noise
from rlx.scaling.draws import Curves, Draws
from rlx.scaling.families import FAMILIES
from rlx.scaling.infer import DOUBT
from rlx.scaling.paths import STEPS, first_passage, paths, reach
from rlx.scaling.posterior import fit
from rlx.scaling.simulate import (
    SEED_SD,
    TRIALS,
    WANDER_LENGTH,
    WANDER_SD,
    check_curves,
    check_design,
    path,
    simulate,
)

Floats = NDArray[np.float64]
Parameters = Mapping[str, float]

BASE = {"A": 0.65, "B": 1.5, "C_mid": 1.0, "R0": 0.25}
NAMES = ("base", "rival")
FAR = 4.0  # largest difference of a or log C_mid between a rival and its base
CLOSE = 0.002  # largest error of a rival's x
LEAST = 1e-3  # of b and r
MOST_DRAWS = 50  # draws of the doubt to find a rival


class Difference(NamedTuple):
    """Between rival and base: a difference of pass rate at the horizon, or a ratio of compute."""

    quantity: str  # "ceiling" or "compute"
    amount: float

    @property
    def truth(self) -> float:
        """x, see the module's docstring."""
        return self.amount if self.quantity == "ceiling" else float(np.log(self.amount))


Drawn = Mapping[Difference, Sequence[Floats]]  # draws of x of each study of a design


def power(
    base: Parameters = BASE,
    *,
    horizon: float | None = None,
    shares: Sequence[float] = (0.1, 0.25, 0.5, 1.0),
    seeds: Sequence[int] = (1, 3, 5),
    points: Sequence[int] = (20,),
    ceilings: Sequence[float] | None = (0.02, 0.05),
    ratios: Sequence[float] | None = (1.2, 1.5),
    margin_A: float = 0.02,
    margin_compute: float = 0.10,
    decide: float = 0.9,
    studies: int = 20,
    family: str = "sigmoid",
    curve: str = "burr",
    seed_sd: Sequence[float] = SEED_SD,
    wander_sd: float = WANDER_SD,
    wander_length: float = WANDER_LENGTH,
    trials: int = TRIALS,
    doubt: Doubt | None = DOUBT,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """How often studies of two recipes give the right verdict, see the module's docstring.

    Args:
        base: A, B, C_mid, R0 and the family's own parameters of the base.
        horizon: compute H, in the unit of C_mid, at which ceilings are compared; default 10 C_mid.
        shares: of the horizon, to which each run is trained.
        seeds: runs of a recipe.
        points: evaluations of a run.
        ceilings: differences of pass rate at H; ratios: of compute. The case of no difference is
            always added; None leaves that question out.
        margin_A, margin_compute, decide: of the verdict. By design a difference no larger than its
            margin is hardly ever found.
        studies: how many are simulated for each design and difference.
        family: of the true curves; curve: of the fit.
        seed_sd, wander_sd, wander_length, trials: see `simulate`.
        doubt: of the truth and of the fit; None: neither has any.
        seed: of everything drawn. Study k draws the same seeds and doubt in every design.
        progress: show a progress bar.

    Returns:
        One row per design and difference: seeds, points, share; compute and evaluations, of all
        runs together; quantity ("ceiling" or "compute") and difference (a pass rate, or a ratio);
        studies; right, wrong and undecided, shares of the studies; mcse, the Monte Carlo error of
        `right`; sd, the posterior sd of x, mean; expected. Where there is no difference every
        verdict is wrong, `right` is NaN, and mcse and expected are those of `wrong`.

    Raises:
        InputError: an option out of its range, or a difference that no rival can have.
    """
    check_curves({"base": base}, family)
    horizon = 10 * base["C_mid"] if horizon is None else horizon
    noises: dict[str, Any] = {"seed_sd": seed_sd, "wander_sd": wander_sd, "trials": trials}
    noises |= {"wander_length": wander_length}
    _check_lists(shares, seeds, points, ceilings or (), ratios or ())
    _check_rule(horizon, margin_A, margin_compute, decide, studies)
    for G, M in product(seeds, points):
        check_design(G, M, horizon, **noises)
    margins = {"ceiling": margin_A, "compute": float(np.log1p(margin_compute))}
    asked = [] if ceilings is None else [Difference("ceiling", x) for x in (0.0, *ceilings)]
    asked += [] if ratios is None else [Difference("compute", x) for x in (1.0, *ratios)]
    if not asked:
        raise InputError("ceilings", None, "no question with ratios=None", "give one of the two")
    for difference, share in product(asked, shares):  # before anything is fitted
        rival_of(base, difference, share, horizon, family, None, (seed, 0))
    options: dict[str, Any] = {"curve": curve, "doubt": doubt, "pad_to": 8 * -(-max(points) // 8)}
    of_quantity: dict[str, list[Difference]] = {}
    for difference in dict.fromkeys(asked):
        of_quantity.setdefault(difference.quantity, []).append(difference)
    designs = [Design(*design) for design in product(seeds, points, shares, of_quantity)]
    bar = tqdm(total=sum(len(of_quantity[design.quantity]) for design in designs) * studies,
               unit="study", disable=not progress)  # fmt: skip

    def found(design: Design, difference: Difference, k: int) -> Floats:
        """Draws of x of study k."""
        rival, y = rival_of(base, difference, design.share, horizon, family, doubt, (seed, k))
        two = dict(zip(NAMES, (base, rival), strict=True))
        of_k = {"compute": design.share * horizon, "family": family, "seed": _number(seed, k)}
        evals, _ = simulate(two, seeds=design.seeds, points=design.points, **noises, **of_k)
        bar.update()
        posterior = fit(evals, method="laplace", **options)
        return contrast(posterior, difference.quantity, horizon, y)

    drawn: dict[Design, Drawn] = {}
    for design in designs:
        every = of_quantity[design.quantity]
        drawn[design] = {d: [found(design, d, k) for k in range(studies)] for d in every}
    bar.close()
    return _table(drawn, horizon, margins, decide)


class Design(NamedTuple):
    """Of a study, and what it is asked."""

    seeds: int
    points: int
    share: float
    quantity: str


def _table(
    drawn: Mapping[Design, Drawn], horizon: float, margins: Mapping[str, float], decide: float
) -> pd.DataFrame:
    """The rows of `power`."""
    b = {design: factors(x_DKX) for design, x_DKX in drawn.items()}
    asked: dict[str, list[Design]] = {}
    for design in drawn:
        asked.setdefault(design.quantity, []).append(design)
    r = {name: ratio([(drawn[of], b[of]) for of in designs]) for name, designs in asked.items()}
    rows = []
    for design, x_DKX in drawn.items():
        G, M, share, quantity = design
        for difference, x_KX in x_DKX.items():
            row: dict[str, object] = {"seeds": G, "points": M, "share": share}
            row |= {"compute": 2 * G * share * horizon, "evaluations": 2 * G * M}
            row |= {"quantity": quantity, "difference": difference.amount, "studies": len(x_KX)}
            pull = Pull(b[design][difference], r[quantity])
            rows.append(row | verdicts(x_KX, difference, margins[quantity], decide, pull))
    return pd.DataFrame(rows)


def _check_lists(
    shares: Sequence[float],
    seeds: Sequence[int],
    points: Sequence[int],
    ceilings: Sequence[float],
    ratios: Sequence[float],
) -> None:
    for key, grid in (("shares", shares), ("seeds", seeds), ("points", points)):
        if not len(grid):
            raise InputError(key, "", "empty", "give one or more numbers")
    for key, grid in (("shares", shares), ("ratios", ratios)):
        for x in grid:
            if not (x > 0 and np.isfinite(x)):
                raise InputError(key, f"{x:g}", "not positive", "give positive numbers")
    for x in ceilings:
        if not -1 < x < 1:
            reason = "not a difference of pass rates"
            raise InputError("ceilings", f"{x:g}", reason, "give fractions, such as 0.05")


def _check_rule(
    horizon: float, margin_A: float, margin_compute: float, decide: float, studies: int
) -> None:
    if not (horizon > 0 and np.isfinite(horizon)):
        raise InputError("horizon", f"{horizon:g}", "not positive", "give a positive compute")
    for key, x in (("margin_A", margin_A), ("margin_compute", margin_compute)):
        if not x >= 0:
            raise InputError(key, f"{x:g}", "negative", "give a margin of 0 or more")
    if not 0.5 < decide <= 1:
        reason = "decides nothing"
        raise InputError("decide", f"{decide:g}", reason, "give more than 0.5, at most 1")
    if not (studies >= 1 and studies == int(studies)):
        raise InputError("studies", studies, "not a count", "give a whole number, at least 1")


def _number(*words: int) -> int:
    """A seed for every tuple of whole numbers, different for each."""
    return int(np.random.SeedSequence(words).generate_state(1)[0])


# ------------------------------------------------------------------ the truth


@dataclass(frozen=True)
class World:
    """The true curves: beyond compute `last`, that of the last evaluation, with the doubt."""

    family: str
    last: float
    doubt: Doubt | None
    noise: Noise | None

    def curves(self, p: Parameters) -> Curves:
        """One curve, [1, 1]."""
        return Curves(FAMILIES[self.family], {k: np.array([[x]]) for k, x in p.items()})

    def rates(self, p: Parameters, j: int, compute_C: Floats) -> Floats:
        """Pass rates [C] of recipe j, whose curve has parameters p."""
        return path(self.curves(p), compute_C, self.last, self.noise, np.array([j]), self.doubt)[0]

    def cost(self, p: Parameters, j: int, y: float) -> float:
        """Compute to pass rate y, inf where it is not reached; as rlx.scaling.paths.reach."""
        C = float(self.curves(p).compute_to(y)[0, 0])
        if C <= self.last:
            return C
        R_XNC = self.rates(p, j, self.last * STEPS)[None, None]
        return self.last * float(first_passage(R_XNC, np.array([[y]]))[0, 0])


def rival_of(
    base: Parameters,
    difference: Difference,
    share: float,
    horizon: float,
    family: str,
    doubt: Doubt | None,
    seed: tuple[int, int],
) -> tuple[dict[str, float], float]:
    """Parameters of the rival, and the pass rate y to which compute is compared.

    If no rival has the difference under a draw of the doubt, for instance because it takes the base
    to 1, the doubt is drawn again.

    Raises:
        InputError: there is no rival after MOST_DRAWS draws.
    """
    for again in range(MOST_DRAWS):
        drawn = (
            None
            if doubt is None
            else noise(1, 2, doubt, np.random.default_rng(_number(*seed, again)))
        )
        world = World(family, share * horizon, doubt, drawn)
        level = float(world.rates(base, 0, np.array([horizon]))[0])
        y = base["R0"] + SHARE * (level - base["R0"])
        rival = _solved(base, difference, world, horizon, level, y)
        if rival is not None:
            return rival, y
    key = {"ceiling": "ceilings", "compute": "ratios"}[difference.quantity]
    reason = f"no curve differs so much from A = {base['A']:g} at C = {horizon:g}"
    raise InputError(key, f"{difference.amount:g}", reason, "give a smaller one, or another base")


def _solved(
    base: Parameters, difference: Difference, world: World, horizon: float, level: float, y: float
) -> dict[str, float] | None:
    """The rival's parameters; None if no rival has the difference."""
    there, R0 = np.array([horizon]), base["R0"]
    a = logit((base["A"] - R0) / (1 - R0))
    cost = world.cost(base, 0, y)

    def rival(u: float) -> dict[str, float]:
        if difference.quantity == "ceiling":
            return {**base, "A": float(R0 + (1 - R0) * expit(a + u))}
        return {**base, "C_mid": float(base["C_mid"] * np.exp(-u))}

    def error(u: float) -> float:
        if difference.quantity == "ceiling":
            return float(world.rates(rival(u), 1, there)[0]) - level - difference.truth
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.log(cost) - np.log(world.cost(rival(u), 1, y))
        return float(np.clip(np.nan_to_num(x, nan=-np.inf), -99, 99)) - difference.truth

    if error(-FAR) * error(FAR) >= 0:
        return None
    u = float(brentq(error, -FAR, FAR, xtol=1e-6))
    return rival(u) if abs(error(u)) < CLOSE else None


# ------------------------------------------------------------------ the verdict


def contrast(posterior: Draws, quantity: str, horizon: float, y: float) -> Floats:
    """Draws of x [X], of the rival against the base; NaN where neither reaches y."""
    j, i = (posterior.index("recipe", name) for name in NAMES)
    if quantity == "ceiling":
        level_XJ = paths(posterior, np.array([horizon]), "recipe")[..., 0]
        return level_XJ[:, i] - level_XJ[:, j]
    cost_XJ = reach(posterior, y, "recipe")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(cost_XJ[:, j]) - np.log(cost_XJ[:, i])


class Pull(NamedTuple):
    """How medians differ from the truth, see the module's docstring."""

    b: float
    r: float


def verdicts(
    x_KX: Sequence[Floats], difference: Difference, margin: float, decide: float, pull: Pull
) -> dict[str, float]:
    """The columns `right` to `expected` of `power`."""
    truth, K = difference.truth, len(x_KX)
    more = np.array([np.mean(x_X > margin) >= decide for x_X in x_KX])
    less = np.array([np.mean(x_X < -margin) >= decide for x_X in x_KX])
    right, wrong = (more, less) if truth > 0 else (less, more)
    if truth == 0:
        right, wrong = np.zeros(K, bool), more | less
    hoped = (right if truth else wrong).sum()
    p = (hoped + 0.5) / (K + 1)  # no error of 0 where all studies agree
    low_K = quantile(x_KX, 1 - decide) if truth >= 0 else -quantile(x_KX, decide)
    with np.errstate(invalid="ignore"):
        u_K = np.sign(truth or 1) * quantile(x_KX, 0.5) - low_K
    s_K = np.array([spread(x_X) for x_X in x_KX])
    expected = chance(u_K, s_K, abs(truth), pull, margin)
    return {
        "right": right.mean() if truth else np.nan,
        "wrong": wrong.mean(),
        "undecided": 1 - (right | wrong).mean(),
        "mcse": float(np.sqrt(p * (1 - p) / (K + 1))),
        "sd": float(s_K.mean()),
        "expected": expected * (1 if truth else 2),
    }


def quantile(x_KX: Sequence[Floats], q: float) -> Floats:
    """Of each study, over draws of which some may be infinite; NaN ones are left out."""
    return np.array([np.nanquantile(x_X, q, method="inverted_cdf") for x_X in x_KX])


def spread(x_X: Floats) -> float:
    """The sd by quantiles, half the distance from 16 to 84 %, because some draws may be inf."""
    low, high = np.nanquantile(x_X, norm.cdf([-1, 1]), method="inverted_cdf")
    return float(high - low) / 2


def factors(x_DKX: Drawn) -> dict[Difference, float]:
    """b of each difference of a design, see the module's docstring; 1 if it is not seen."""
    m_DK = {difference: quantile(x_KX, 0.5) for difference, x_KX in x_DKX.items()}
    (none_K,) = (m_K for difference, m_K in m_DK.items() if difference.truth == 0)
    b_D = {}
    for difference in sorted(m_DK, key=lambda difference: -abs(difference.truth)):
        with np.errstate(invalid="ignore"):
            sure = np.isfinite(moved_K := m_DK[difference] - none_K)
        if difference.truth and sure.any():
            b_D[difference] = float(np.clip(moved_K[sure].mean() / difference.truth, LEAST, 1.0))
        else:
            b_D[difference] = list(b_D.values())[-1] if b_D and not difference.truth else 1.0
    return b_D


def ratio(
    designs: Sequence[tuple[Drawn, Mapping[Difference, float]]],
) -> float:
    """r of all designs of a question, from their draws and their b; 1 if it is not seen."""
    squared = []
    for x_DKX, b_D in designs:
        (none,) = (difference for difference in x_DKX if difference.truth == 0)
        s_K = np.array([spread(x_X) for x_X in x_DKX[none]])
        squared.extend(quantile(x_DKX[none], 0.5) ** 2 / (s_K**2 * b_D[none]))
    sure = np.isfinite(squared)
    r = float(np.sqrt(np.mean(np.array(squared)[sure]))) if sure.any() else 1.0
    return min(max(r, LEAST), 1.0)  # above 1 by chance: few studies


def chance(u_K: Floats, s_K: Floats, truth: float, pull: Pull, margin: float) -> float:
    """P(a verdict of this direction), see the module's docstring.

    A study in which too many draws never reach y has no verdict.
    """
    sure = np.isfinite(u_K + s_K)
    z_K = (pull.b * truth - margin - u_K[sure]) / (pull.r * s_K[sure] * np.sqrt(pull.b))
    return float(norm.cdf(z_K).sum() / len(u_K))
