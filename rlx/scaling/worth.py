"""The value of new evaluations before a choice, and a plan that buys the highest value per compute:
the part of `allocate` that needs no fit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NEGLIGIBLE = 1e-4  # pass rate: smaller values are not worth buying
ROUNDING = 1e-12  # of pass rate


@dataclass(frozen=True)
class Offer:
    """New evaluations of one run, or of a new seed of one recipe, in increasing sizes."""

    kind: str  # "run" or "recipe"
    index: int  # in fit.runs or fit.recipes
    compute: list[float]  # of every size
    summary: list[Floats]  # of every size [X, F]: features of its evaluations in each draw
    opens: int | None = None  # column of the payoffs that can be chosen after buying


Plan = dict[int, int]  # size of every offer that is bought


@dataclass(frozen=True)
class Problem:
    """Options to choose from, with their payoff in each draw, and offers before choosing."""

    payoff_XN: Floats
    open_N: NDArray[np.bool_]  # can be chosen without buying
    offers: list[Offer]

    def value(self, plan: Plan) -> float:
        """The value of a plan's evaluations, see `allocate`; 0 if negative."""
        if not plan:
            return 0.0
        opened_N = self._opened(list(plan))
        Z_XF = np.concatenate([self.offers[k].summary[size] for k, size in plan.items()], axis=1)
        gain = preposterior(Z_XF, self.payoff_XN[:, opened_N]) - self._now()
        return gain if gain > ROUNDING else 0.0

    def perfect(self) -> float:
        """The value of knowing all payoffs."""
        return float(self._regret().mean())

    def error(self) -> float:
        """Monte Carlo standard error of `perfect`, if draws are independent."""
        return float(self._regret().std() / len(self.payoff_XN) ** 0.5)

    def _regret(self) -> Floats:
        """[X] the best payoff minus that of the current choice."""
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
        """The plan grown by the highest added value per compute."""
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
        """(offer, size, additional compute) of everything that the remaining compute can buy."""
        out = []
        for k, offer in enumerate(self.offers):
            paid = offer.compute[plan[k]] if k in plan else 0.0
            larger = range(plan.get(k, -1) + 1, len(offer.compute))
            out += [(k, size, offer.compute[size] - paid) for size in larger]
        return [(k, size, cost) for k, size, cost in out if cost <= left]

    def alone(self) -> dict[tuple[str, int], tuple[float, float]]:
        """(kind, index) of every offer: compute and value of its size of most value per compute."""
        out = {}
        for k, offer in enumerate(self.offers):
            worth = [self.value({k: size}) for size in range(len(offer.compute))]
            size = int(np.argmax(np.array(worth) / offer.compute))
            out[offer.kind, offer.index] = (offer.compute[size], worth[size])
        return out

    def p_best(self) -> Floats:
        """P(U_n is the highest of those that can be chosen now), [N]."""
        best_X = np.where(self.open_N, self.payoff_XN, -np.inf).argmax(1)
        return np.bincount(best_X, minlength=len(self.open_N)) / len(best_X)


def preposterior(Z_XF: Floats, payoff_XN: Floats) -> float:
    """E[max_n E[U_n | Z]] by linear regression of U on Z over joint draws.

        E[U_n | Z] = mean U_n + (Z - mean Z) beta_n

    The draws are halved (chains apart). The n of a draw is chosen with the coefficients of the
    other half and valued with those of its own: coefficients that are large by chance add nothing
    on average, and the estimate is slightly low rather than high.

    Args:
        Z_XF: features of new evaluations in each draw.
        payoff_XN: U of each option.

    Source: Strong, Oakley, Brennan & Breeze 2015, Med. Decis. Making 35:570, the regression.
    """
    mean_N, half = payoff_XN.mean(0), len(Z_XF) // 2
    halves = [slice(0, half), slice(half, None)]
    Z = [Z_XF[h] - Z_XF[h].mean(0) for h in halves]
    beta = [
        np.linalg.pinv(z.T @ z, rcond=1e-10, hermitian=True) @ (z.T @ (payoff_XN[h] - mean_N))
        for z, h in zip(Z, halves, strict=True)
    ]
    total = 0.0
    for mine, other in ((0, 1), (1, 0)):
        n_X = (mean_N + Z[mine] @ beta[other]).argmax(1)
        total += (mean_N + Z[mine] @ beta[mine])[np.arange(len(n_X)), n_X].sum()
    return float(total / len(Z_XF))
